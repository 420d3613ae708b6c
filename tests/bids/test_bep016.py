"""Output names and sidecars hold against the BIDS validator, its schema extended by what BEP016 and BEP046 draft.

The released schema knows neither the entities ``model``, ``param``, ``tract`` and ``track`` nor the suffixes of fitted
maps, so a plain validator ignores most outputs. Extended, it still checks entities, their order and all sidecar rules.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shd_bids.bids.names import OUTPUTS, output_path, sidecar, sidecar_path
from shd_bids.bids.relmat import nodes_sidecar, relmat_sidecar
from shd_bids.images import save_volume
from tests.bids.test_names import FACTS, REGIONS, TRACKING, fill
from tests.bids_trees import dwi_run

BIN = Path(sys.executable).parent
ENTITIES = {"model": "model", "parameter": "param", "tract": "tract", "track": "track"}
MEASURE = "meas"
RULES = {
    "dwimap": ([".nii.gz", ".json"], ["model", "parameter"]),
    "response": ([".txt"], ["model", "parameter"]),
    "tractogram": ([".trx", ".tck", ".trk", ".txt", ".json"], ["tract", "track"]),
    "qc": ([".tsv", ".json"], []),
    "relmat": ([".dense.tsv", ".json"], ["atlas", "scale", "meas"]),
    "nodeindices": ([".tsv", ".json"], ["atlas", "scale"]),
}
"""Suffix -> extensions, entities beyond those of a mask that are required."""

pytestmark = pytest.mark.skipif(
    not ((BIN / "bids-validator-deno").exists() and (BIN / "bst").exists()),
    reason="needs bids-validator-deno and bidsschematools",
)


@pytest.fixture(scope="module")
def schema(tmp_path_factory) -> Path:
    """Export the released schema and add the drafts."""
    file = tmp_path_factory.mktemp("schema") / "schema.json"
    subprocess.run([BIN / "bst", "export", "--output", file], check=True, capture_output=True)
    schema = json.loads(file.read_text())
    objects, imaging = schema["objects"], schema["rules"]["files"]["deriv"]["imaging"]
    for key, name in (ENTITIES | {MEASURE: MEASURE}).items():
        objects["entities"][key] = {**objects["entities"]["label"], "name": name, "display_name": name}
    order = schema["rules"]["entities"]
    order[order.index("space") + 1 : order.index("space") + 1] = list(ENTITIES)
    order.insert(order.index("scale") + 1, MEASURE)
    for suffix, (extensions, entities) in RULES.items():
        objects["suffixes"][suffix] = {**objects["suffixes"]["mask"], "value": suffix, "display_name": suffix}
        imaging[f"dwi_{suffix}"] = {
            **imaging["dwi_mask"],
            "suffixes": [suffix],
            "extensions": extensions,
            "entities": {**imaging["dwi_mask"]["entities"], **dict.fromkeys(entities, "required")},
        }
    for extension in (".trx", ".tck", ".trk", ".dense.tsv"):
        objects["extensions"][extension[1:]] = {"value": extension, "display_name": extension, "description": extension}
    file.write_text(json.dumps(schema))
    return file


@pytest.fixture
def derivatives(tmp_path) -> Path:
    """Every output of one series, small and nameless inside, with its real name and sidecar."""
    run = dwi_run(
        tmp_path / "raw", source_uri="bids:raw:sub-01/dwi/sub-01_dwi.nii.gz", spatial_reference="bids:raw:t1.nii.gz"
    )
    out = tmp_path / "out"
    for key, row in OUTPUTS.items():
        blanks = fill(key)
        path = output_path(out, run, key, **blanks)
        path.parent.mkdir(parents=True, exist_ok=True)
        if row["extension"] == ".nii.gz":
            save_volume(path, np.zeros((3, 3, 3, 2), np.float32), np.eye(4))
        elif row["suffix"] == "qc":
            path.write_text("n_volumes\tb\n1\t2\n")
        elif row["suffix"] == "relmat":
            path.write_text("1\t0\n0\t2\n")
        elif row["suffix"] == "nodeindices":
            path.write_text("matrix_index\tnode_file\tnode_index\tname\tvolume\n0\tlabels.nii.gz\t3\ta\t8\n")
        else:
            path.write_text("# \n1 2\n")
        if row["extension"] != ".txt":
            sidecar_path(path).write_text(json.dumps(content_of(run, key, blanks)))
    (out / "dataset_description.json").write_text(
        json.dumps(
            {
                "Name": "shd_bids",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "shd_bids", "Version": "0"}],
                "DatasetLinks": {"raw": "../raw"},
            }
        )
    )
    (out / "README.md").write_text("Derivatives of one series, for a test of their names.\n")
    return out


def content_of(run, key: str, blanks: dict) -> dict:
    """The sidecar of an output."""
    if key == "relmat":
        facts = FACTS | {"connectomes": {REGIONS.label: {"AssignmentRadius": 4.0}}}
        return relmat_sidecar(run, REGIONS, "streamlineCount", facts, **TRACKING)
    return nodes_sidecar(REGIONS) if key == "nodeindices" else sidecar(run, key, FACTS, **blanks)


def problems(folder: Path, schema: Path) -> list[tuple[str, str]]:
    """Codes and files of all errors the validator tells; a table has no voxels, so it needs no SpatialReference."""
    command = [BIN / "bids-validator-deno", folder, "--schema", schema.as_uri(), "--format", "json"]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert run.returncode in (0, 16), run.stdout + run.stderr
    issues = json.loads(run.stdout)["issues"]["issues"]
    return [
        (issue["code"], issue["location"])
        for issue in issues
        if issue["severity"] == "error"
        and not (
            issue.get("subCode") == "SpatialReference" and issue["location"].endswith(("_qc.tsv", "_nodeindices.tsv"))
        )
    ]


def test_every_output_is_a_valid_draft_file(derivatives, schema):
    assert problems(derivatives, schema) == []


def test_the_extended_schema_still_finds_a_wrong_name(derivatives, schema):
    (map_file,) = derivatives.rglob("*_param-nufo_dwimap.nii.gz")
    map_file.rename(map_file.with_name(map_file.name.replace("param-", "parameter-")))
    codes = {code for code, _ in problems(derivatives, schema)}
    assert codes & {"NOT_INCLUDED", "ENTITY_NOT_IN_RULE", "FILENAME_MISMATCH", "INVALID_ENTITY_LABEL"}, codes


def test_the_extended_schema_still_finds_a_missing_key(derivatives, schema):
    for file in derivatives.rglob("*_mask.json"):
        file.write_text("{}")
    assert {code for code, _ in problems(derivatives, schema)} == {"SIDECAR_KEY_REQUIRED"}
