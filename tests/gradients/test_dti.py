"""Tensors: exact where the signal is that of a tensor, and values known on paper."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.gradients.dti import fit_tensor, fractional_anisotropy


@pytest.fixture
def protocol(rng):
    """Two b=0 volumes and 30 directions of b=1000."""
    return simulation.make_gradients(rng, {1000.0: 30}, n_b0=2)


def test_tensor_of_a_tensor_signal_is_exact(rng, protocol):
    axes = np.linalg.qr(rng.normal(size=(50, 3, 3)))[0]
    truth = axes @ (np.array([1.7e-3, 0.4e-3, 0.2e-3]) * axes).swapaxes(1, 2)
    exponent = np.einsum("g,gi,gj,nij->ng", protocol.bvals, protocol.directions, protocol.directions, truth)
    fitted = fit_tensor(rng.uniform(10, 2000, (50, 1)) * np.exp(-exponent), protocol)
    np.testing.assert_allclose(fitted, truth, atol=1e-9)


def test_tensor_of_nothing_is_zero(protocol):
    tensors = fit_tensor(np.zeros((3, protocol.n_volumes)), protocol)
    np.testing.assert_array_equal(tensors, 0)
    np.testing.assert_array_equal(fractional_anisotropy(tensors), 0)


def test_fa_on_paper():
    stick, ball = np.diag([1.0, 0, 0]), np.eye(3)
    np.testing.assert_allclose(fractional_anisotropy(np.stack([stick, ball])), [1, 0], atol=1e-7)
