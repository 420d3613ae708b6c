"""Sites that differ by a gain: responses of each site, or normalisation, take it out of the fibre density."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.integration.app import call, call_group
from tests.phantoms import head, write_head

pytestmark = pytest.mark.slow
GAIN = 1.7
WM = "dwi/sub-{}_space-orig_model-shdtv_param-wm_dwimap.nii.gz"


def test_the_gain_of_a_site_leaves_the_fibre_density_and_another_protocol_is_refused(tmp_path, capfd):
    raw, out = tmp_path / "raw", tmp_path / "out"
    signal, table, _ = head(np.random.default_rng(8), size=12)
    for site, subject, gain in (("A", "01", 1.0), ("B", "02", GAIN)):
        image = write_head(raw, gain * signal, table, subject=subject)
        image.with_name(f"sub-{subject}_dwi.json").write_text(json.dumps({"StationName": site}))
    assert call(raw, out, level="response") == 0
    assert call_group(raw, out) == 0
    assert call(raw, out, "--responses", "group", level="fod") == 0
    assert ratio(out) == pytest.approx(1.0, rel=1e-3)
    write_head(raw, signal, table, subject="03")  # of an unknown scanner
    assert call(raw, out, "--responses", "group", level="fod") == 65
    assert "sub-03: --responses group: no set for its protocol" in capfd.readouterr().err


def test_normalisation_takes_out_a_gain_that_no_sidecar_tells(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    signal, table, _ = head(np.random.default_rng(8), size=10)
    for subject, gain in (("01", 1.0), ("02", GAIN)):
        write_head(raw, gain * signal, table, subject=subject)
    assert call(raw, out, level="response") == 0
    assert call_group(raw, out) == 0
    found = {}
    for mode in ("off", "global"):
        assert call(raw, out, "--responses", "group", "--normalise", mode, level="fod") == 0
        found[mode] = ratio(out)
    assert found == pytest.approx({"off": GAIN, "global": 1.0}, rel=0.02)


def ratio(out):
    """Return the fibre density of the second subject over that of the first."""
    one, two = (nib.load(out / f"sub-{name}" / WM.format(name)).get_fdata()[..., 0] for name in ("01", "02"))
    return two.sum() / one.sum()
