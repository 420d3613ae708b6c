"""Derivatives of spherical functions: against differences along great circles."""

import numpy as np
import pytest
import torch

from shd_bids.sphere.derivatives import SHDerivatives
from shd_bids.sphere.harmonics import n_coefficients, sh_basis


@pytest.mark.parametrize("l_max", [2, 8, 18])
def test_derivatives_equal_differences_along_great_circles(rng, l_max):
    points = rng.normal(size=(40, 3))
    points[:4] = [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, 1, 0]]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    tangent = np.cross(points, rng.normal(size=points.shape))
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    coefficients = rng.normal(size=(40, n_coefficients(l_max)))

    def along(step: float) -> np.ndarray:
        return (sh_basis(np.cos(step) * points + np.sin(step) * tangent, l_max) * coefficients).sum(axis=1)

    value, gradient, hessian = (
        array.numpy().astype(np.float64)
        for array in SHDerivatives(l_max, torch.device("cpu"))(
            torch.tensor(coefficients.T, dtype=torch.float32), torch.tensor(points, dtype=torch.float32)
        )
    )
    step = 1e-4
    slope = (along(step) - along(-step)) / (2 * step)
    curvature = (along(step) + along(-step) - 2 * along(0)) / step**2
    radial = (gradient * points).sum(axis=1)
    scale = np.abs(along(0)).max()  # float32, and one degree more per derivative
    np.testing.assert_allclose(value, along(0), atol=1e-5 * scale)
    np.testing.assert_allclose((gradient * tangent).sum(axis=1), slope, atol=1e-5 * scale * l_max)
    np.testing.assert_allclose(
        np.einsum("ni,nij,nj->n", tangent, hessian, tangent) - radial, curvature, atol=1e-5 * scale * l_max**2
    )
