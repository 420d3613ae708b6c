"""Chebyshev filters and the eigenbasis that they are diagonal in."""

import numpy as np
import torch

from shd_bids.nn.layers.cheb import SphereBasis, chebyshev


def test_chebyshev_terms_by_their_recurrence():
    values = np.linspace(-1, 1, 9)
    terms = chebyshev(values, 5)
    np.testing.assert_allclose(terms[:, 4], 8 * values**4 - 8 * values**2 + 1, atol=1e-14)


def test_basis_survives_a_detour_through_low_precision():
    basis = SphereBasis(2, hemisphere=True, order=5)
    exact = basis.double().vectors.clone()
    torch.testing.assert_close(basis.bfloat16().double().vectors, exact, rtol=0, atol=0)
    assert not basis.state_dict()
