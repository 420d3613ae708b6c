"""Shapes of lobes: widths, densities and mean directions of known Bingham densities."""

import numpy as np
import pytest

from shd_bids.peaks.lobes import measure_lobes
from shd_bids.peaks.search import find_peaks
from shd_bids.sphere.harmonics import SQRT_4PI, sh_inverse
from shd_bids.sphere.healpix import hemisphere

GRID = hemisphere(32)
TO_SH = sh_inverse(GRID, 18)
FRAME = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]


def bingham(along: float, across: float, frame: np.ndarray = FRAME) -> np.ndarray:
    """Return the coefficients (190,) of a lobe of unit integral around the last axis of a frame; widths in degrees."""
    local = GRID @ frame
    density = np.exp(-(local[:, :2] ** 2 / (2 * np.deg2rad([along, across]) ** 2)).sum(axis=1))
    coefficients = TO_SH @ density
    return coefficients / (SQRT_4PI * coefficients[0])


def deviations(along: float, across: float) -> np.ndarray:
    """Return the standard deviations (2,) of the angles of a lobe from its axis, towards both widths, by summation; degrees."""
    points = GRID  # of the upper half
    density = np.exp(-(points[:, :2] ** 2 / (2 * np.deg2rad([along, across]) ** 2)).sum(axis=1))
    offsets = np.rad2deg(np.arccos(points[:, 2].clip(-1, 1)))[:, None] * points[:, :2]
    offsets /= np.maximum(np.linalg.norm(points[:, :2], axis=1), 1e-9)[:, None]
    return np.sqrt(density @ offsets**2 / density.sum())


def angle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arccos(np.abs((first * second).sum(axis=-1)).clip(max=1)))


@pytest.mark.parametrize(("along", "across"), [(6, 6), (10, 10), (15, 8), (25, 8), (20, 20), (35, 20)])
def test_widths_and_density_of_a_bingham_lobe(along, across):
    fod = 0.7 * bingham(along, across)[None]
    lobes = measure_lobes(fod, find_peaks(fod))
    np.testing.assert_allclose(lobes.dispersion[0, 0], deviations(along, across), rtol=0.06)
    assert lobes.density[0, 0] == pytest.approx(0.7, rel=0.03)
    assert (lobes.dispersion[0, 1:] == 0).all() and (lobes.density[0, 1:] == 0).all()


def test_densities_of_a_crossing_add_up():
    turned = FRAME[:, [2, 0, 1]]
    fod = (0.6 * bingham(9, 9) + 0.3 * bingham(12, 12, turned))[None]
    lobes = measure_lobes(fod, find_peaks(fod))
    np.testing.assert_allclose(lobes.density[0, :2], [0.6, 0.3], rtol=0.05)
    np.testing.assert_allclose(lobes.dispersion[0, :2], [deviations(9, 9), deviations(12, 12)], rtol=0.05)


def tilted(degrees: float) -> np.ndarray:
    """Return the frame turned about its second axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return FRAME @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def test_maxima_without_a_saddle_are_one_fibre_between_them():
    """Two maxima on one flat ridge are one peak in their middle; a saddle parts them, as no prominence does."""
    ridge = (bingham(9, 8, tilted(11)) + bingham(9, 8, tilted(-11)))[None]
    assert find_peaks(ridge).n_fibres[0] == 2
    joined = find_peaks(ridge, prominence=0.15)
    assert joined.n_fibres[0] == 1
    assert angle(joined.directions[0, 0], FRAME[:, 2]) < 0.5
    apart = (bingham(9, 8, tilted(16)) + bingham(9, 8, tilted(-16)))[None]
    assert find_peaks(apart, prominence=0.15).n_fibres[0] == 2


def test_mean_of_a_broad_lobe_is_nearer_than_its_roughened_maximum():
    rng = np.random.default_rng(2)
    fods = bingham(20, 20) + 0.008 * rng.normal(size=(200, 190))
    maxima, means = find_peaks(fods, max_peaks=1), find_peaks(fods, max_peaks=1, prominence=0.15)
    off = [np.median(angle(peaks.directions[:, 0], FRAME[:, 2])) for peaks in (maxima, means)]
    assert off[1] < 0.6 * off[0]


def test_means_turn_with_the_lobe_and_spare_what_crosses_it():
    pair = bingham(12, 12) + 0.8 * bingham(12, 12, tilted(70))
    found = find_peaks(pair[None], prominence=0.15)
    assert found.n_fibres[0] == 2
    assert angle(found.directions[0, 0], FRAME[:, 2]) < 0.3
    assert angle(found.directions[0, 1], tilted(70)[:, 2]) < 0.3


def test_ripples_on_a_flat_top_do_not_narrow_a_fan():
    """Two bundles side by side without a saddle are as wide as their directions spread, not as the curvature at a maximum."""
    fan = (bingham(9, 8, tilted(12)) + bingham(9, 8, tilted(-12)))[None]
    lobes = measure_lobes(fan, find_peaks(fan, prominence=0.3))
    whole = np.hypot(12.0, deviations(9, 8)[0])
    assert lobes.dispersion[0, 0, 0] == pytest.approx(whole, rel=0.3)
    assert lobes.dispersion[0, 0, 1] == pytest.approx(deviations(9, 8)[1], rel=0.1)
