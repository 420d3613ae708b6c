"""The package on arrays: what it offers, loaded when it is asked for, and how it refuses what does not fit."""

import subprocess
import sys

import numpy as np
import pytest

import shd_bids
from shd_bids import FOD, PeakOptions, Scan, TrackingOptions, estimate_responses, find_peaks, fit_fod, track
from shd_bids.errors import GradientError, InputError
from shd_bids.interfaces.peaks import find_image_peaks
from shd_bids.sphere.harmonics import sh_basis
from tests.tiny import tiny_scan, tiny_weights

WHITE = PeakOptions(peak_absolute_threshold=0.1)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return tiny_scan()


@pytest.fixture(scope="module")
def along_x(scan) -> FOD:
    """One fibre along x in every voxel."""
    n = len(scan.voxels)
    wm = np.repeat(sh_basis(np.array([[1.0, 0, 0]]), 8), n, axis=0).astype(np.float32)
    return FOD(wm, np.zeros(n, np.float32), np.zeros(n, np.float32))


@pytest.mark.parametrize("name", shd_bids.__all__)
def test_everything_offered_is_there_and_documented(name):
    offered = getattr(shd_bids, name)
    assert offered.__name__ == name
    assert len(offered.__doc__.splitlines()[0]) > 20
    assert name in dir(shd_bids)


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'fit_fodf'"):
        shd_bids.fit_fodf  # noqa: B018  (the look-up is what is tested)


def test_package_alone_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'nibabel'} & set(sys.modules)"
    code = f"import sys, shd_bids; dir(shd_bids); print(sorted({heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_fit_gives_one_row_a_voxel_and_volumes_of_them(scan):
    fod = fit_fod(scan, tiny_weights())
    assert fod.wm.shape == (len(scan.voxels), 15)
    volume = scan.to_volume(fod.wm)
    assert volume.shape == (*scan.mask.shape, 15)
    np.testing.assert_array_equal(volume[scan.mask], fod.wm)
    assert not volume[~scan.mask].any()


@pytest.mark.slow
def test_weights_decide_about_the_refinement(scan):
    refined = [fit_fod(scan, tiny_weights(), refine=refine) for refine in (None, True, False)]
    updates = [fod.facts.correction_updates for fod in refined]
    assert updates[0] == updates[1]
    assert updates[2] == 0
    np.testing.assert_array_equal(refined[0].wm, refined[1].wm)
    assert not np.array_equal(refined[1].wm, refined[2].wm)


def test_peaks_are_the_maxima(along_x):
    peaks = find_peaks(along_x, WHITE)
    assert set(peaks.n_fibres) == {1}
    np.testing.assert_allclose(np.abs(peaks.directions[:, 0]), [[1, 0, 0]] * len(along_x), atol=1e-3)


def test_streamlines_run_along_the_fibres_and_repeat(scan, along_x):
    options = TrackingOptions(tracking_algorithm="det", select=20, min_length=2.0)
    first, again = (track(along_x, scan, options, random_seed=1, n_threads=n) for n in (1, 2))
    assert 0 < len(first) <= 20
    assert first.ends.shape == (len(first), 2)
    assert first.facts.n_accepted == len(first)
    for line, same in zip(first.streamlines, again.streamlines, strict=True):
        np.testing.assert_array_equal(line, same)
        assert np.ptp(line[:, 1:], axis=0).max() < 0.1 < np.ptp(line[:, 0])


def test_fods_of_other_voxels_are_refused(scan, along_x):
    with pytest.raises(ValueError, match=r"expected one row a mask voxel"):
        track(along_x[:5], scan)
    with pytest.raises(ValueError, match=r"values of shape \(5, 45\), expected one row for each of 900 voxels"):
        scan.to_volume(along_x.wm[:5])


@pytest.mark.parametrize(
    ("signal", "mask", "message"),
    [
        ((10, 10, 10), np.ones((10, 10, 10), bool), r"signal of shape \(10, 10, 10\), expected \(10, 10, 10, 53\)"),
        ((10, 10, 9, 53), np.ones((10, 10, 10), bool), r"expected \(10, 10, 10, 53\) by mask and gradients"),
        ((10, 10, 10, 53), np.ones((10, 10, 10), int), r"type int64, expected \(x, y, z\) and bool; use mask > 0"),
        ((10, 10, 10, 53), np.ones(1000, bool), r"mask of shape \(1000,\)"),
    ],
)
def test_wrong_shapes_say_both_numbers(scan, signal, mask, message):
    signal = np.ones(signal)
    with pytest.raises(InputError, match=message):
        estimate_responses(signal, mask, scan.gradients)
    with pytest.raises(InputError, match=message):
        Scan.of_volume(signal, mask, scan.gradients, scan.responses, np.eye(4))


def test_volumes_without_a_direction_have_their_way_out(scan):
    table = scan.gradients.without([4])
    with pytest.raises(GradientError, match=r"gradients\.take\(signal\) leaves out"):
        table.check_shapes(np.ones((10, 10, 10, 53)), scan.mask)
    table.check_shapes(table.take(np.ones((10, 10, 10, 53))), scan.mask)


def test_command_line_finds_the_same_peaks():
    assert "find_fibres" in find_image_peaks.__code__.co_names
