"""Lobes: unit integral, symmetry about the axis."""

import numpy as np
import pytest

from shd_bids.sphere.healpix import vertices
from shd_bids.sphere.lobes import lobes


@pytest.mark.parametrize("kappa", [2.0, 10.0, 40.0])
def test_integral_is_one(rng, kappa):
    axes = rng.normal(size=(5, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    np.testing.assert_allclose(4 * np.pi * lobes(vertices(32), axes, kappa).mean(axis=1), 1, rtol=5e-3)


def test_value_depends_on_the_angle_to_the_axis_alone(frame):
    directions, axis = frame, np.array([0.6, 0.0, 0.8])
    value = lobes(directions, axis[None], 8.0)[0]
    np.testing.assert_allclose(lobes(-directions, axis[None], 8.0)[0], value)
    np.testing.assert_allclose(
        value / lobes(axis[None], axis[None], 8.0)[0], np.exp(8 * ((directions @ axis) ** 2 - 1))
    )
