"""Fibonacci axes: laws of an even covering of the hemisphere."""

import numpy as np
import pytest
from scipy.special import eval_legendre

from shd_bids.sphere.spiral import spiral


@pytest.mark.parametrize("n", [50, 768])
def test_axes_are_distinct_unit_vectors_of_one_half(n):
    axes = spiral(n)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, rtol=1e-12)
    assert (axes[:, 2] > 0).all()
    cosines = np.abs(axes @ axes.T) - 2 * np.eye(n)
    # In diameters of a round cap of equal area; at the equator an axis meets the opposite of another.
    nearest = np.arccos(cosines.max(axis=1)) / (2 * np.arccos(1 - 1 / n))
    assert nearest.min() > 0.4 and np.median(nearest) > 0.75


def test_even_weights_integrate_harmonics_nearly_exactly(rng):
    axes = spiral(768)
    poles = rng.normal(size=(20, 3))
    poles /= np.linalg.norm(poles, axis=1, keepdims=True)
    for degree in (2, 8, 18):
        assert np.abs(eval_legendre(degree, poles @ axes.T).mean(axis=1)).max() < 2e-3
