"""Apparent fibre density and direction-encoded colour: integrals and known axes."""

import numpy as np
import pytest

from shd_bids.peaks.measures import afd_total, dec, largest_peak
from shd_bids.peaks.search import find_peaks
from shd_bids.sphere.harmonics import sh_basis
from shd_bids.sphere.healpix import hemisphere
from tests.peaks.fods import lobes, random_fods


def test_total_density_is_the_integral(rng):
    """By quadrature over equal areas, good to half a percent."""
    coefficients = random_fods(rng, 20, 8)
    samples = sh_basis(hemisphere(16), 8) @ coefficients.T
    np.testing.assert_allclose(afd_total(coefficients), 4 * np.pi * samples.mean(axis=0), rtol=0.01)
    pure = np.zeros((1, 45))
    pure[0, 0] = 1 / np.sqrt(4 * np.pi)
    assert afd_total(pure)[0] == pytest.approx(1.0)


def test_colour_follows_the_axis():
    """A lobe along x is red, y green, z blue, the length is the density, and an empty voxel is black."""
    coefficients = np.concatenate([lobes(np.eye(3)[:, None], np.ones((3, 1)), 8), np.zeros((1, 45))])
    colour = dec(coefficients)
    np.testing.assert_array_equal(colour[:3].argmax(axis=1), [0, 1, 2])
    np.testing.assert_allclose(np.linalg.norm(colour[:3], axis=1), afd_total(coefficients[:3]), rtol=1e-5)
    assert (colour[3] == 0).all()
    assert (dec(np.array([[-1.0, 0, 0, 0, 0, 0]])) == 0).all()


def test_largest_peak_is_the_first_of_all(rng):
    """Also of functions without a lobe that stands out, as of noise."""
    noise = rng.normal(size=(200, 91)).astype(np.float32)
    coefficients = np.concatenate([noise, random_fods(rng, 50, 12)])
    everything, largest = find_peaks(coefficients, relative_threshold=0.0), largest_peak(coefficients)
    np.testing.assert_allclose(largest.directions[:, 0], everything.directions[:, 0], atol=1e-5)
    np.testing.assert_allclose(largest.heights[:, 0], everything.heights[:, 0], rtol=1e-5)
