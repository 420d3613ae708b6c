"""Records in the terms of BIDS-Prov: every reference leads somewhere, every kind has what the draft requires."""

import json
import re

import pytest

from shd_bids.bids.names import output_path
from shd_bids.bids.prov import describe_call, stage_that_writes, write_prov
from shd_bids.bids.stages import STAGES
from tests.bids_trees import dwi_run

REQUIRED = {
    "Activities": {"Id", "Label", "Command"},
    "ProvEntities": {"Id", "Label"},
    "Environments": {"Id", "Label"},
    "Software": {"Id", "Label", "Version"},
}
"""Keys of each kind in bids-specification, branch ``bep028``."""

IDENTIFIER = re.compile(r"bids:[A-Za-z0-9_-]*:\S+")


@pytest.fixture
def run(tmp_path):
    return dwi_run(tmp_path / "raw")


@pytest.fixture
def content(run):
    """A call that fitted fODFs with the responses of an earlier one."""
    outputs = {
        f"{key}": output_path(run.folder.parents[-1], run, key).as_posix() for key in ("mask", "wm_response", "wm")
    }
    item = {
        "reused": ["gradients", "response"],
        "inputs": {"bids:raw:sub-01/dwi/sub-01_dwi.nii.gz": "a" * 64, "weights/shd_bids.safetensors": "b" * 64},
        "outputs": {path: {"bytes": 1, "sha256": "c" * 64} for path in outputs.values()},
        "stages": {
            stage: {"started": "2026-01-01T10:00:00+00:00", "seconds": 61.2}
            for stage in ("gradients", "response", "fod")
        },
    }
    return describe_call("20260101-1", "shd_bids a b participant", {"shd_bids": "1", "torch": "2"}, [(run, item)])


def objects(content):
    return [item for kind in REQUIRED for item in content[kind]]


def references(content):
    """Yield what objects name as used, generating or responsible."""
    for item in objects(content):
        for key in ("Used", "AssociatedWith", "GeneratedBy"):
            value = item.get(key, [])
            yield from [value] if isinstance(value, str) else value


def test_kinds_have_their_keys_and_identifiers_are_unique(content):
    assert set(content) == set(REQUIRED)
    for kind, keys in REQUIRED.items():
        assert content[kind] and all(keys <= set(item) for item in content[kind])
    identifiers = [item["Id"] for item in objects(content)]
    assert len(set(identifiers)) == len(identifiers)
    assert all(IDENTIFIER.fullmatch(identifier) for identifier in identifiers)


def test_every_reference_leads_to_an_object(content):
    assert set(references(content)) <= {item["Id"] for item in objects(content)}


def test_only_what_was_computed_is_an_activity(content, run):
    (activity,) = content["Activities"]
    assert activity["Label"] == "fod of sub-01"
    assert (activity["StartedAtTime"], activity["EndedAtTime"]) == (
        "2026-01-01T10:00:00+00:00",
        "2026-01-01T10:01:01+00:00",
    )
    used = " ".join(activity["Used"])
    assert "weights-shd_bids.safetensors" in used and "_response.txt" in used and "sub-01_dwi.nii.gz" not in used
    generated = {
        item["AtLocation"]: item.get("GeneratedBy") for item in content["ProvEntities"] if "AtLocation" in item
    }
    by_stage = {stage_that_writes(run)[path]: activity_id for path, activity_id in generated.items()}
    assert by_stage == {"gradients": None, "response": None, "fod": activity["Id"]}


def test_every_output_has_a_stage(run):
    assert set(stage_that_writes(run).values()) <= {stage.name for stage in STAGES}


def test_files_have_the_names_of_the_draft(content, tmp_path):
    write_prov(tmp_path, "sub01x2026-1", content)
    folder = tmp_path / "prov" / "prov-sub01x20261"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"prov-sub01x20261_{suffix}.json" for suffix in ("act", "ent", "env", "soft")
    ]
    assert json.loads((folder / "prov-sub01x20261_act.json").read_text()) == {"Activities": content["Activities"]}
