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

    found = SHDerivatives(l_max, torch.device("cpu")).along_sphere(
        torch.tensor(coefficients.T, dtype=torch.float32), torch.tensor(points, dtype=torch.float32)
    )
    axes, gradient, hessian = (array.double().numpy() for array in (found.axes, found.gradient, found.hessian))
    towards = np.einsum("nij,nj->ni", axes, tangent)
    np.testing.assert_allclose(np.linalg.norm(towards, axis=1), 1, atol=1e-6)
    step = 1e-4
    slope = (along(step) - along(-step)) / (2 * step)
    curvature = (along(step) + along(-step) - 2 * along(0)) / step**2
    scale = np.abs(along(0)).max()  # float32, and one degree more per derivative
    np.testing.assert_allclose(found.value, along(0), atol=1e-5 * scale)
    np.testing.assert_allclose((gradient * towards).sum(axis=1), slope, atol=1e-5 * scale * l_max)
    bent = np.einsum("ni,nij,nj->n", towards, hessian, towards)
    np.testing.assert_allclose(bent, curvature, atol=1e-5 * scale * l_max**2)
    mean, radius = (array.double().numpy() for array in found.eigenvalues)
    expected = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(np.stack([mean - radius, mean + radius], axis=1), expected, atol=1e-4 * scale * l_max)
