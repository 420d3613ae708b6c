"""The demonstration writes a data set that BIDS accepts and reports what a perfect result would be as such."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shd_bids.cli import demo
from shd_bids.gradients.dti import fit_tensor, fractional_anisotropy
from shd_bids.gradients.files import read_fsl
from shd_bids.images import load_volume, save_volume


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert demo.main([str(folder), "--data-only"]) == 0
    return folder


def test_data_set_is_valid_bids(folder):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    command = [validator, folder / "bids", "--format", "json", "--ignoreWarnings"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert json.loads(run.stdout)["issues"]["issues"] == []


def test_callosal_fibres_of_the_real_crop_run_from_left_to_right(folder):
    """The roof of the lateral ventricle, found by eye in the b=0 image, decides the convention of the directions."""
    stem = folder / "bids" / "sub-real" / "dwi" / "sub-real_dwi"
    volume = load_volume(stem.with_suffix(".nii.gz"))
    table = read_fsl(stem.with_suffix(".bval"), stem.with_suffix(".bvec"), volume.affine, volume.shape[3])
    roof = volume.data[:, 6:, 9].reshape(-1, volume.shape[3])  # x = 2 to 8 mm, highest slice
    tensors = fit_tensor(table.take(roof), table)
    main_axis = np.linalg.eigh(tensors)[1][..., -1]
    anisotropy = fractional_anisotropy(tensors)
    assert np.median(anisotropy) > 0.5
    assert np.median(np.abs(main_axis[:, 0])) > 0.9


def test_simulated_truth_holds_two_and_three_fibre_crossings(folder):
    truth = load_volume(folder / "truth" / demo.TRUTH, keep_negative=True).data
    number = (np.linalg.norm(truth.reshape(*truth.shape[:3], -1, 3), axis=-1) > 0).sum(axis=-1)
    assert (number == 0).any()
    assert (number == 2).sum() > 300
    assert (number == 3).sum() > 100


def test_findings_of_the_truth_itself_are_perfect(folder, tmp_path):
    shutil.copytree(folder / "truth", tmp_path / "truth")
    truth = load_volume(folder / "truth" / demo.TRUTH, keep_negative=True)
    for subject in ("sim", "real"):
        stem = tmp_path / "derivatives" / f"sub-{subject}" / "dwi" / f"sub-{subject}_space-orig"
        save_volume(stem.with_name(stem.name + "_model-shdtv_param-peaks_dwimap.nii.gz"), truth.data, truth.affine)
        save_volume(stem.with_name(stem.name + "_desc-brain_mask.nii.gz"), np.ones(truth.shape[:3]), truth.affine)
    text = demo.findings(tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("  all"))
    assert "found 100%" in row
    assert "false   0%" in row
    assert "error  0.0 degrees" in row
    assert "crossing at 20-45 deg" in text
