"""Shells on the hemisphere: what the harmonics can hold is kept, and another protocol is refused."""

import numpy as np
import pytest
import torch

from shd_bids import simulation
from shd_bids.errors import WeightsError
from shd_bids.fod.config import InputConfig
from shd_bids.fod.inputs.inputs import make_inputs
from shd_bids.fod.inputs.shells import Shells, shell_channels
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_basis
from shd_bids.sphere.healpix import hemisphere

NSIDE = 4


@pytest.fixture
def scan(rng):
    gradients = simulation.make_gradients(rng, {1000.0: 30, 3000.0: 60}, n_b0=4)
    responses = simulation.true_responses(simulation.draw_microstructure(rng, 1), gradients)
    empty = np.zeros((1, 1, 1), dtype=bool)
    return Scan(np.zeros((0, gradients.n_volumes)), empty, np.eye(4), gradients, responses, 1 / 30)


def shells_of(scan, bvalues):
    config = InputConfig(channels=shell_channels(bvalues))
    return make_inputs(scan, config, nside=NSIDE, dtype=torch.float64)


def test_shells_keep_what_the_harmonics_can_hold(scan):
    gradients, rng = scan.gradients, np.random.default_rng(5)
    coefficients = rng.normal(size=(7, 15)) @ np.diag([20.0] + [1.0] * 14)
    signal = coefficients @ sh_basis(np.where(gradients.bvals[:, None] > 50, gradients.directions, [0, 0, 1]), 4).T
    signal[:, gradients.b0_indices] = 30.0
    seen = shells_of(scan, [0.0, 1000.0, 3000.0])
    assert isinstance(seen, Shells) and seen.reach == 0
    maps = seen(torch.as_tensor(signal)[:, None, None])[:, :, 0, 0] * seen.scale
    assert maps.shape == (3, 7, len(hemisphere(NSIDE)))
    np.testing.assert_allclose(maps[0], 30.0, rtol=1e-9)
    truth = coefficients @ sh_basis(hemisphere(NSIDE), 4).T
    np.testing.assert_allclose(maps[1], truth, atol=1e-9)
    np.testing.assert_allclose(maps[2], truth, atol=1e-9)


@pytest.mark.parametrize("bvalues", [[0.0, 1000.0], [0.0, 1000.0, 2000.0]])
def test_a_network_of_shells_refuses_another_protocol(scan, bvalues):
    with pytest.raises(WeightsError, match=r"found \[0.0, 1000.0, 3000.0\]; use the shipped weights"):
        shells_of(scan, bvalues)
