"""The SH basis: orthonormality, even parity, the reading of MRtrix3, and the addition theorem."""

import numpy as np
import pytest
from dipy.reconst.shm import real_sh_tournier_from_index

from shd_bids.sphere import healpix
from shd_bids.sphere.harmonics import (
    degrees,
    l_max_of,
    n_coefficients,
    sh_basis,
    sh_inverse,
    zonal_factors,
    zonal_means,
)


def _directions(rng, n=40):
    points = rng.normal(size=(n, 3))
    points[:3] = np.eye(3)
    points[3] = [0, 0, -1]
    return points


def test_basis_is_orthonormal(rng):
    # Gauss-Legendre in z times equal azimuths integrates degree 16 exactly.
    z, weights = np.polynomial.legendre.leggauss(12)
    azimuth = np.arange(24) * 2 * np.pi / 24
    ring = np.sqrt(1 - z**2)[:, None]
    points = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), np.broadcast_to(z[:, None], (12, 24))], axis=-1)
    basis = sh_basis(points.reshape(-1, 3), 8)
    area = np.repeat(weights, 24) * 2 * np.pi / 24
    np.testing.assert_allclose(basis.T @ (area[:, None] * basis), np.eye(45), atol=1e-13)


def test_basis_is_even_and_sees_only_direction(rng):
    points = _directions(rng)
    np.testing.assert_allclose(sh_basis(points, 18), sh_basis(-3 * points, 18), atol=1e-12)


def test_addition_theorem(rng):
    basis = sh_basis(_directions(rng), 18)
    for degree in range(0, 19, 2):
        power = (basis[:, degrees(18) == degree] ** 2).sum(axis=1)
        np.testing.assert_allclose(power, (2 * degree + 1) / (4 * np.pi), rtol=1e-12)


def test_basis_is_that_of_mrtrix(rng):
    points = _directions(rng)
    x, y, z = (points / np.linalg.norm(points, axis=1, keepdims=True)).T
    expected = [
        real_sh_tournier_from_index(int(m), int(degree), np.arccos(z), np.arctan2(y, x), legacy=False)
        for degree in range(0, 19, 2)
        for m in range(-degree, degree + 1)
    ]
    np.testing.assert_allclose(sh_basis(points, 18), np.stack(expected, axis=1), atol=1e-12)


def test_inverse_recovers_coefficients(rng):
    coefficients = rng.normal(size=(190, 2))
    points = healpix.hemisphere(8)
    np.testing.assert_allclose(sh_inverse(points, 18) @ (sh_basis(points, 18) @ coefficients), coefficients, atol=1e-9)


def test_counts_known_on_paper():
    assert [n_coefficients(degree) for degree in (0, 2, 8, 18)] == [1, 6, 45, 190]
    assert [l_max_of(n) for n in (1, 6, 45, 190)] == [0, 2, 8, 18]
    np.testing.assert_allclose(zonal_factors(2), np.sqrt(4 * np.pi / np.array([1, 5, 5, 5, 5, 5])))


def test_zonal_means_are_those_of_the_density():
    exponents, z = np.array([-9.0, 0.0, 3.0, 90.0]), np.linspace(0, 1, 200_001)
    density = np.exp(exponents[:, None] * z**2)
    legendre = [np.polynomial.legendre.Legendre.basis(degree)(z) for degree in (0, 2, 4, 6, 8)]
    expected = [[np.trapezoid(p * d, z) / np.trapezoid(d, z) for p in legendre] for d in density]
    np.testing.assert_allclose(zonal_means(exponents, 8), expected, atol=1e-8)
    np.testing.assert_allclose(zonal_means(0.0, 8), [1, 0, 0, 0, 0], atol=1e-14)  # only degree 0 when isotropic


def test_wrong_input_is_refused(rng):
    with pytest.raises(ValueError, match="even"):
        sh_basis(np.eye(3), 3)
    with pytest.raises(ValueError, match="expected 1, 6, 15"):
        l_max_of(7)
    with pytest.raises(ValueError, match="no length"):
        sh_basis(np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="lower the degree"):
        sh_inverse(_directions(rng, 10), 8)
