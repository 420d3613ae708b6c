"""Names and sidecars against the rules of the drafts in ``drafts.json``, which the validator does not know."""

import json
import re
from pathlib import Path

import pytest

from shd_bids.bids.names import OUTPUTS, output_path, sidecar
from shd_bids.interfaces.tractography import _bep046
from shd_bids.options import TrackingOptions
from shd_bids.tractography.track import TrackingFacts
from tests.bids.test_names import FACTS, fill, parse_name, run  # noqa: F401

RULES = json.loads((Path(__file__).parent / "drafts.json").read_text())
URI = re.compile(r"bids:[A-Za-z0-9_-]*:\S+")


def with_suffix(*suffixes):
    """Return the keys of the table of outputs whose names end so."""
    return [key for key, row in OUTPUTS.items() if row["suffix"] in suffixes]


@pytest.mark.parametrize("key", with_suffix(*RULES["entities"]))
def test_names_have_the_entities_of_the_draft(run, key):  # noqa: F811
    entities, suffix, _ = parse_name(output_path(Path(), run, key, **fill(key)))
    rules = RULES["entities"][suffix]
    assert set(rules["required"]) <= set(entities) <= {*rules["required"], *rules["allowed"]}


@pytest.mark.parametrize("key", [key for key in with_suffix(*RULES["sidecars"]) if OUTPUTS[key]["extension"] != ".txt"])
def test_sidecars_have_the_keys_of_the_draft(run, key):  # noqa: F811
    content, rules = sidecar(run, key, FACTS, **fill(key)), RULES["sidecars"][OUTPUTS[key]["suffix"]]
    assert set(rules["required"]) <= set(content)
    assert all(content[name] in values for name, values in rules["values"].items() if name in content)
    assert content["Sources"] and all(URI.fullmatch(uri) for uri in content["Sources"])
    assert content["SpatialReference"] == "orig" or URI.fullmatch(content["SpatialReference"])


@pytest.mark.parametrize("key", with_suffix("dwimap"))
def test_orientation_is_told_as_the_draft_says(run, key):  # noqa: F811
    content = sidecar(run, key, FACTS, **fill(key))
    encoding = content["OrientationEncoding"]
    rules = RULES["orientation"][encoding["Type"]]
    assert set(rules["required"]) | {"Type"} <= set(encoding) <= {*rules["required"], *rules["allowed"], "Type"}
    for name, values in RULES["orientation_values"].items():
        assert encoding.get(name, values[0]) in values
    assert "NonNegativity" not in content or encoding["Type"] in RULES["non_negativity_of"]
    response = content.get("ResponseFunction")
    assert response is None or len({len(row) for row in response["Coefficients"]}) == 1


def test_blocks_of_the_tractogram_have_the_keys_of_the_draft():
    numbers = dict(n_seeds=4, n_generated=3, n_accepted=2, n_other_length=1, n_refused={}, n_ends={})
    facts = TrackingFacts(**numbers, step_size=1.0, max_angle=20.0, min_length=20.0, cutoff=0.1, uses_tissue=True)
    content = _bep046(facts, TrackingOptions(), seed=0)
    for block, keys in RULES["blocks"].items():
        assert set(content[block]) <= {*keys, *RULES["own"].get(block, ())}
    assert content["StreamlinePropagation"]["Interpolation"] in RULES["block_values"]["Interpolation"]
    sources = content["StreamlineSeeding"]["Sources"]
    assert all(source["Type"] in RULES["block_values"]["Type"] for source in sources)
