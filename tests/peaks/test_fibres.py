"""Fibres: a peak whose direction noise leaves open is none, and what is kept stays as it was."""

import numpy as np
import pytest

from shd_bids.options import PeakOptions
from shd_bids.peaks.fibres import Fibres, find_fibres
from shd_bids.peaks.lobes import CONTAINED
from shd_bids.peaks.search import find_peaks
from tests.peaks.fods import lobes, random_fods


def fibres(coefficients, *, noise, limit, wm=0.4):
    """Return fibres where noise alone moves directions: those of a lobe of density one by so many degrees."""
    n = len(coefficients)
    return find_fibres(
        coefficients,
        PeakOptions(peak_interval=limit, peak_absolute_threshold=0.0),
        wm_fraction=np.full(n, wm),
        csf_fraction=np.zeros(n),
        prominence=0.1,
        direction_errors=np.array([[0.0, 90.0], [noise, noise], [0.0, 0.0]]),
    )


def shown(found: Fibres) -> list[np.ndarray]:
    return [
        found.peaks.directions,
        found.peaks.amplitudes,
        found.lobes.dispersion,
        found.lobes.density,
        found.intervals,
    ]


@pytest.fixture(scope="module")
def fods():
    return random_fods(np.random.default_rng(8), 60, 12).astype(np.float32)


def test_without_a_limit_all_peaks_are_fibres(fods):
    found = fibres(fods, noise=40.0, limit=90.0)
    all_peaks = find_peaks(fods, prominence=0.1)
    np.testing.assert_array_equal(found.peaks.directions, all_peaks.directions)
    np.testing.assert_array_equal(found.peaks.amplitudes, all_peaks.amplitudes)


@pytest.mark.parametrize("limit", [20.0, 45.0])
def test_what_is_within_the_limit_is_kept_in_order_and_nothing_else(fods, limit):
    every, found = (fibres(fods, noise=8.0, limit=angle) for angle in (90.0, limit))
    is_sure = (every.peaks.amplitudes > 0) & (every.intervals <= limit)
    assert 0 < is_sure.sum() < (every.peaks.amplitudes > 0).sum()
    np.testing.assert_array_equal(found.peaks.n_fibres, is_sure.sum(axis=1))
    for before, after in zip(shown(every), shown(found), strict=True):
        for voxel, kept in enumerate(is_sure):
            np.testing.assert_array_equal(after[voxel, : kept.sum()], before[voxel, kept])
            assert not after[voxel, kept.sum() :].any()


def test_the_largest_peak_of_white_matter_stays(fods):
    every, white = (fibres(fods, noise=300.0, limit=limit, wm=0.6) for limit in (90.0, 45.0))
    assert (fibres(fods, noise=300.0, limit=45.0).peaks.n_fibres == 0).all()
    assert (white.peaks.n_fibres == 1).all()
    for before, after in zip(shown(every), shown(white), strict=True):
        np.testing.assert_array_equal(after[:, 0], before[:, 0])


def test_twice_the_density_bears_twice_the_noise():
    axes = np.array([[[0.6, 0.0, 0.8]]])
    one, two = (weight * lobes(axes, np.ones((1, 1)), 12).astype(np.float32) for weight in (0.3, 0.6))
    density = fibres(one, noise=0.0, limit=45.0).lobes.density[0, 0]
    least = 45.0 * density / CONTAINED  # noise that brings the interval of the first to the limit
    assert fibres(one, noise=0.99 * least, limit=45.0).peaks.n_fibres[0] == 1
    assert fibres(one, noise=1.01 * least, limit=45.0).peaks.n_fibres[0] == 0
    assert fibres(two, noise=1.98 * least, limit=45.0).peaks.n_fibres[0] == 1
    assert fibres(two, noise=2.02 * least, limit=45.0).peaks.n_fibres[0] == 0
