"""Responses: the zonal basis and isotropic signals."""

import numpy as np

from shd_bids.response.response import Response, zonal_basis
from shd_bids.sphere.harmonics import sh_basis


def test_zonal_basis_is_the_m0_part_of_the_spherical_harmonics():
    cosine = np.linspace(-1, 1, 21)
    directions = np.stack([np.sqrt(1 - cosine**2), np.zeros(21), cosine], axis=1)
    middle = [l * (l + 1) // 2 for l in range(0, 11, 2)]  # noqa: E741 the degree
    np.testing.assert_allclose(zonal_basis(cosine, 10), sh_basis(directions, 10)[:, middle], atol=1e-12)


def test_isotropic_signal_on_paper():
    """A signal of 1 has the coefficient sqrt(4 pi), as in MRtrix3."""
    gm = Response("gm", np.array([0.0, 1000]), np.sqrt(4 * np.pi) * np.array([[1.0], [0.4]]))
    np.testing.assert_allclose(gm.amplitude([0.0, 1.0]), [[1, 0.4], [1, 0.4]])
