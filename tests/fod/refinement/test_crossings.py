"""Two fibres in place of one long lobe: moments kept, known directions, and what must stay as it is."""

import numpy as np
import pytest

from shd_bids.fod.refinement.crossings import split_crossings
from shd_bids.peaks.search import find_peaks
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.spiral import spiral

AXES = spiral(768)


def along(frame, degrees, weights):
    """Spread masses on the axes around directions at angles (K,) from the first vector of a frame towards the second."""
    angles = np.radians(degrees)[:, None]
    directions = np.cos(angles) * frame[0] + np.sin(angles) * frame[1]
    near = np.exp(400 * ((directions @ AXES.T) ** 2 - 1))
    return np.asarray(weights) @ (near / near.sum(axis=1, keepdims=True))


def directions_of(masses):
    """Directions and amplitudes of the peaks of masses (A,), each widened to a lobe."""
    grid = hemisphere(8)
    fod = masses @ np.exp(90 * ((AXES @ grid.T) ** 2 - 1)) @ sh_inverse(grid, 18).T
    peaks = find_peaks(fod[None].astype(np.float32), max_peaks=4, relative_threshold=0.1, min_separation=10)
    found = np.linalg.norm(peaks.directions[0], axis=1) > 0
    return peaks.directions[0][found], peaks.amplitudes[0][found]


def test_sum_and_moments_along_the_lobe_are_kept(rng, frame):
    lobe = 3 * along(frame, np.linspace(-18, 18, 30), rng.dirichlet(np.ones(30)))
    found = split_crossings(lobe[None], AXES)[0]
    assert np.abs(found - lobe).max() > 0.01
    np.testing.assert_allclose(found.sum(), 3, rtol=1e-6)
    tensors = [np.einsum("a,ai,aj->ij", masses, AXES, AXES) for masses in (lobe, found)]
    np.testing.assert_allclose(tensors[1], tensors[0], atol=0.02)


@pytest.mark.parametrize("half", [8.0, 10.0, 14.0])
@pytest.mark.parametrize("weaker", [0.5, 0.3])
def test_two_fibres_that_melted_are_found_where_they_were(frame, half, weaker):
    angles = np.array([-half, half])
    blur = np.linspace(-1.5, 1.5, 7)[:, None] * 3  # as where neither direction is sure
    melted = along(frame, (angles + blur).ravel(), np.tile([weaker, 1 - weaker], 7) / 7)
    directions, _ = directions_of(split_crossings(melted[None], AXES)[0])
    assert len(directions) == 2
    truth = np.cos(np.radians(angles))[:, None] * frame[0] + np.sin(np.radians(angles))[:, None] * frame[1]
    assert np.abs(directions @ truth.T).max(axis=1).min() > np.cos(np.radians(3))


def test_an_even_band_becomes_two_fibres_a_standard_deviation_from_its_middle(frame):
    band = along(frame, np.linspace(-18, 18, 73), np.full(73, 1 / 73))
    directions, amplitudes = directions_of(split_crossings(band[None], AXES)[0])
    angles = np.degrees(np.arctan((directions @ frame[1]) / (directions @ frame[0])))
    np.testing.assert_allclose(np.sort(angles), np.array([-1, 1]) * 36.5 / np.sqrt(12), atol=1)
    np.testing.assert_allclose(amplitudes[0], amplitudes[1], rtol=0.1)


def test_round_lobes_wide_crossings_and_empty_voxels_stay_as_they_are(frame):
    narrow, wide = (np.exp(kappa * ((AXES @ frame[0]) ** 2 - 1)) for kappa in (60, 20))
    crossing = along(frame, np.array([0.0, 65.0]), [0.5, 0.5])
    beside = along(frame, np.linspace(-15, 15, 30), np.full(30, 0.7 / 30)) + along(frame, np.array([80.0]), [0.3])
    masses = np.stack([narrow, wide, crossing, beside, np.zeros(len(AXES))])
    np.testing.assert_array_equal(split_crossings(masses, AXES), masses)


def test_a_measured_spread_takes_the_place_of_the_moments(frame):
    lobe, band = along(frame, np.array([0.0]), [2.0]), along(frame, np.linspace(-18, 18, 73), np.full(73, 1 / 73))
    masses, spread = np.stack([lobe, lobe, band]), np.radians([10, 0, 10])[:, None] * frame[2]
    found = split_crossings(masses, AXES, spread)
    np.testing.assert_array_equal(found[1], lobe)
    for one, amount in zip(found[[0, 2]], (2, 1), strict=True):
        np.testing.assert_allclose(one.sum(), amount, rtol=1e-6)
        directions, amplitudes = directions_of(one)
        angles = np.degrees(np.arctan((directions @ frame[2]) / (directions @ frame[0])))
        np.testing.assert_allclose(np.sort(angles), [-10, 10], atol=1.5)  # axes lie 6 degrees apart
        np.testing.assert_allclose(amplitudes[0], amplitudes[1], rtol=0.1)


def test_voxels_do_not_depend_on_one_another_nor_on_the_sign_of_axes(rng):
    frames = np.linalg.qr(rng.normal(size=(9, 3, 3)))[0]
    masses = np.stack([along(f, np.linspace(-16, 16, 9), rng.dirichlet(np.ones(9))) for f in frames])
    together = split_crossings(masses, AXES)
    assert (np.abs(together - masses).max(axis=1) > 1e-3).any()
    signs = rng.choice([-1.0, 1.0], size=(len(AXES), 1))
    for one, expected in zip(masses, together, strict=True):
        np.testing.assert_allclose(split_crossings(one[None], signs * AXES)[0], expected, atol=1e-12)


def test_no_voxels_are_no_problem():
    assert split_crossings(np.zeros((0, len(AXES)), dtype=np.float32), AXES).shape == (0, len(AXES))
