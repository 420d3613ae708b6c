"""The first stage: gradients in world axes, mask, and an error where the input is wrong."""

import json

import nibabel as nib
import numpy as np
import pytest

from shd_bids.errors import GradientError
from shd_bids.gradients.table import GradientTable
from shd_bids.images import load_mask, load_volume
from shd_bids.interfaces.base import read_json
from shd_bids.interfaces.gradients import RequireOrientation
from tests.interfaces.stages import prepare, run
from tests.phantoms import RAS, many_bundles, write_head


def test_gradients_are_read_in_world_axes(dwi_file, tmp_path, simulated):
    signal, table, _ = simulated
    outputs = prepare(dwi_file, tmp_path / "gradients")
    read = GradientTable.from_dict(read_json(tmp_path / "gradients" / "gradients.json"))
    np.testing.assert_allclose(read.directions, table.directions, atol=1e-6)
    b0 = load_volume(outputs.b0_file)
    np.testing.assert_allclose(b0.data, signal[..., table.b0_indices].mean(-1), rtol=1e-5)
    facts = read_json(tmp_path / "gradients" / "facts.json")
    assert [shell["n_volumes"] for shell in facts["shells"]] == [4, 20, 40]
    assert facts["orientation_check"]["is_given_best"]
    assert facts["qc"]["gradient_flip_suggested"]["value"] == "n/a"
    assert facts["sidecar"]["mask_origin"] == "estimated"
    json.dumps(facts, allow_nan=False)


def test_directions_that_cannot_be_judged_are_a_doubt(dwi_file, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("shd_bids.gradients.orientation.CLEAR_LEAD", 1e9)
    prepare(dwi_file, tmp_path / "gradients")
    notes = read_json(tmp_path / "gradients" / "facts.json")["notes"]
    assert any("cannot be judged" in note for note in notes)
    assert "cannot be judged" in caplog.text


@pytest.fixture
def flipped(tmp_path):
    """A head whose directions were written without the sign change that BIDS asks for; and the right table."""
    signal, table = many_bundles(np.random.default_rng(3))
    wrong = table.directions.copy()  # as along the image axes, though the determinant is positive
    return write_head(tmp_path / "raw", signal, table, bvecs=wrong), table


def agreement(folder, table):
    """Return the cosine between the directions read and the true ones, up to the sign that no signal can tell."""
    read = GradientTable.from_dict(read_json(folder / "gradients.json"))
    return np.abs(np.sum(read.directions * table.directions, axis=1))[table.bvals > 50]


def gate(prepared, folder, shown=()):
    files = {"gradients_file": prepared.gradients_file, "facts_file": prepared.facts_file}
    return run(RequireOrientation, folder, shown_files=list(shown), **files)


def test_flipped_gradients_stop_the_series_and_say_where_it_shows(flipped, tmp_path):
    prepared = prepare(flipped[0], tmp_path / "gradients")
    axes, coherence = np.loadtxt(prepared.orientation_file, dtype=str, skiprows=1, unpack=True)
    assert len(axes) == 24 and axes[0] == "-x,y,z" and "x,y,z" in axes
    assert np.all(np.diff(coherence.astype(float)) <= 0)
    shown = [
        "/out/sub-01_desc-gradients_dwi.png",
        "/out/sub-01_desc-orientation_dwi.tsv",
        "/out/sub-01_desc-mask_dwi.png",
    ]
    with pytest.raises(GradientError, match=r"sub-01_dwi.nii.gz: .*--gradient-check fix.*; shown in") as caught:
        gate(prepared, tmp_path / "gate", shown)
    assert [path in str(caught.value) for path in shown] == [True, True, False]


def test_gradients_that_fit_are_passed_on(dwi_file, tmp_path):
    for action in ("error", "off"):
        prepared = prepare(dwi_file, tmp_path / action, gradient_check=action)
        assert gate(prepared, tmp_path / f"{action}_gate").gradients_file == prepared.gradients_file


def test_flipped_gradients_are_mended_where_asked(flipped, tmp_path):
    dwi_file, table = flipped
    for action in ("fix", "warn", "off"):
        gate(prepare(dwi_file, tmp_path / action, gradient_check=action), tmp_path / f"{action}_gate")
    assert any("corrected" in note for note in read_json(tmp_path / "fix" / "facts.json")["notes"])
    np.testing.assert_allclose(agreement(tmp_path / "fix", table), 1, atol=1e-6)
    assert agreement(tmp_path / "warn", table).min() < 0.9
    assert agreement(tmp_path / "off", table).min() < 0.9
    assert not read_json(tmp_path / "warn" / "facts.json")["orientation_check"]["is_given_best"]
    assert read_json(tmp_path / "off" / "facts.json")["orientation_check"] is None


def test_volumes_of_a_scan_that_stopped_early_are_dropped_when_few(tmp_path, simulated):
    signal, table, _ = simulated
    signal = signal.copy()
    signal[..., -2:] = 0
    prepare(write_head(tmp_path / "raw", signal, table), tmp_path / "few")
    read = GradientTable.from_dict(read_json(tmp_path / "few" / "gradients.json"))
    assert (read.n_volumes, read.n_source_volumes) == (table.n_volumes - 2, table.n_volumes)
    last = table.n_volumes - 1
    notes = " ".join(read_json(tmp_path / "few" / "facts.json")["notes"])
    assert f"volume {last - 1} is empty; volume {last} is empty" in notes
    signal[..., -30:] = 0
    with pytest.raises(GradientError, match=r"sub-01_dwi\.nii\.gz: 30 of 60 weighted volumes"):
        prepare(write_head(tmp_path / "raw", signal, table), tmp_path / "many")


def test_given_mask_wins_and_loses_voxels_without_signal(tmp_path, simulated):
    signal = simulated[0].copy()
    signal[3, 3, 3] = 0
    dwi_file = write_head(tmp_path / "raw", signal, simulated[1])
    mask = np.zeros(signal.shape[:3], np.uint8)
    mask[2:-2, 2:-2, 2:-2] = 1
    nib.save(nib.Nifti1Image(mask, RAS), tmp_path / "mask.nii.gz")
    outputs = prepare(dwi_file, tmp_path / "out", mask_file=str(tmp_path / "mask.nii.gz"), mask_origin="given")
    mask[3, 3, 3] = 0
    np.testing.assert_array_equal(load_mask(outputs.mask_file, load_volume(dwi_file)), mask > 0)
    assert read_json(tmp_path / "out" / "facts.json")["qc"]["mask_zero_signal_fraction"]["value"] == pytest.approx(1e-3)
