"""The published method in whole calls: trained from nothing on a cohort, then applied to each of its series."""

import json

import nibabel as nib
import numpy as np
import pytest

from shd_bids.fod.weights import load_weights
from tests.integration.app import MAPS, call, call_cohort
from tests.phantoms import head, write_head

pytestmark = pytest.mark.slow
OPTIONS = ("--network", "published", "--weights", "none", "--max-steps", "3")


def test_a_cohort_trains_the_published_network_and_applies_it_without_refinement(tmp_path, capfd):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for subject, seed in (("01", 8), ("02", 9)):
        write_head(raw, *head(np.random.default_rng(seed), size=8)[:2], subject=subject)
    assert call_cohort(raw, out, *OPTIONS) == 0
    path = out / "group_desc-cohort_weights.safetensors"
    record, weights = json.loads(path.with_suffix(".json").read_text()), load_weights(path)
    assert (record["Method"], record["StartWeights"], record["Steps"]) == ("SHD-TV", "none", 3)
    assert not weights.is_refined and len(weights.training["cohort"]["series"]) == 2
    assert call(raw, out, "--fit", "cohort", "--participant-label", "01", level="fod") == 0
    image = out / "sub-01" / MAPS.format("wm")
    model = json.loads(image.with_suffix("").with_suffix(".json").read_text())["Model"]
    assert model["Parameters"]["WeightsSHA256"] == record["SHA256"]
    assert model["Parameters"]["Method"] == "SHD-TV" and not model["Parameters"]["Refinement"]
    assert "Elaldi" in model["Description"]
    fod = nib.load(image).get_fdata()
    assert np.isfinite(fod).all() and fod.any(axis=-1).sum() > 100
