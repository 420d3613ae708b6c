"""A scan checks itself, and its parts are the same voxels and volumes."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from shd_bids.errors import InputError
from shd_bids.gradients.noise import estimate_noise
from shd_bids.response.mrtrix import format_response
from shd_bids.scan import Scan, read_scan
from shd_bids.simulation import draw_microstructure, make_gradients, true_responses


@pytest.fixture
def volume(rng):
    gradients = make_gradients(rng, {1000.0: 12, 2000.0: 15}, n_b0=2)
    responses = true_responses(draw_microstructure(rng, 1), gradients)
    signal = rng.uniform(0.5, 1.5, size=(6, 5, 4, gradients.n_volumes)).astype(np.float32)
    return signal, rng.random((6, 5, 4)) < 0.7, gradients, responses, np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture
def scan(volume):
    return Scan.of_volume(*volume)


def spread(scan):
    """The signal of a scan where it lies, (X, Y, Z, N); zero outside the mask."""
    return np.where((scan.rows >= 0)[..., None], scan.voxels[scan.rows], 0)


def test_it_holds_the_signal_of_the_mask_and_the_noise(volume, scan):
    signal, mask, gradients, *_ = volume
    np.testing.assert_array_equal(spread(scan), signal * mask[..., None])
    assert scan.sigma == estimate_noise(signal[mask], gradients)
    assert scan.snr == scan.scale / scan.sigma


def test_the_scale_is_the_signal_of_white_matter_at_b0(scan):
    predicted = scan.forward(0).matrix[scan.gradients.b0_indices[0], 0] / np.sqrt(4 * np.pi)
    assert scan.scale == pytest.approx(float(predicted), rel=1e-6)


def test_parts_that_do_not_fit_are_refused_with_both_numbers(scan):
    with pytest.raises(ValueError, match=r"voxels have shape \(3, 29\), mask and gradients say \(\d+, 29\)"):
        replace(scan, voxels=scan.voxels[:3])
    with pytest.raises(ValueError, match=r"affine shape \(3, 3\), expected 3 and \(4, 4\)"):
        replace(scan, affine=np.eye(3))
    with pytest.raises(ValueError, match="the wm response has 2 rows, the gradients have 3 shells"):
        replace(scan, responses=scan.responses.of_shells([0, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_in_the_mask_alone(volume, value):
    signal, mask, *others = volume
    signal[~mask, 0] = value
    Scan.of_volume(signal, mask, *others)
    signal[(*np.argwhere(mask)[3], 4)] = value
    with pytest.raises(InputError, match=rf"1 of {mask.sum()} voxels of the mask hold values that are not finite"):
        Scan.of_volume(signal, mask, *others)
    with pytest.raises(InputError, match="the mask is empty"):
        Scan.of_volume(signal, np.zeros_like(mask), *others)


def test_a_selection_keeps_its_volumes_and_the_responses_of_their_shells(scan):
    b0, low, _ = scan.gradients.shells
    kept = np.sort(np.concatenate([b0.indices, low.indices[::2]]))
    part = scan.select(kept)
    np.testing.assert_array_equal(part.voxels, scan.voxels[:, kept])
    np.testing.assert_array_equal(part.gradients.bvals, scan.gradients.bvals[kept])
    np.testing.assert_allclose(part.forward(4).matrix, scan.forward(4).matrix[kept], rtol=1e-5, atol=1e-6)


def test_a_smaller_mask_keeps_its_voxels(scan):
    mask = np.zeros_like(scan.mask)
    mask[1:4] = True
    np.testing.assert_array_equal(spread(scan.within(mask)), spread(scan) * mask[..., None])
    assert len(scan.within(np.zeros_like(mask)).voxels) == 0


def test_a_crop_is_the_box_at_the_same_place_in_the_world(scan):
    box = (slice(2, 5), slice(1, 5), slice(0, 3))
    part = scan.crop(box)
    np.testing.assert_array_equal(spread(part), spread(scan)[box])
    np.testing.assert_allclose(part.affine @ [0, 0, 0, 1], scan.affine @ [2, 1, 0, 1])


def test_a_thinned_scan_holds_the_crops_around_its_places(scan):
    thin = scan.thinned(2, side=2, seed=5)
    assert len(thin.places) == 2 and scan.mask[tuple(thin.places.T)].all()
    for x, y, z in thin.places:
        box = tuple(slice(max(i - 1, 0), max(i - 1, 0) + 2) for i in (x, y, z))
        np.testing.assert_array_equal(spread(thin)[box], spread(scan)[box])
    assert len(thin.voxels) <= 16


def test_files_give_the_scan(volume, scan, tmp_path):
    signal, mask, gradients, responses, affine = volume
    nib.save(nib.Nifti1Image(signal, affine), tmp_path / "dwi.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), tmp_path / "mask.nii")
    (tmp_path / "gradients.json").write_text(json.dumps(gradients.to_dict()))
    (tmp_path / "wm.txt").write_text(format_response(responses.wm))
    files = [tmp_path / name for name in ("dwi.nii", "mask.nii", "gradients.json")]
    found = read_scan(*files, [tmp_path / "wm.txt"])
    np.testing.assert_array_equal(found.voxels, scan.voxels)
    np.testing.assert_allclose(found.responses.wm.coefficients, responses.wm.coefficients)
    assert found.responses.gm is None and found.sigma == scan.sigma
    files[1] = tmp_path / "none.nii"
    with pytest.raises(InputError, match="no such file"):
        read_scan(*files, [tmp_path / "wm.txt"])
