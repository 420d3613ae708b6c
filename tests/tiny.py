"""A network that computes in moments and a small scan for it, for tests of what happens around the network."""

import numpy as np
import torch

from shd_bids import simulation
from shd_bids.fod.config import CHANNELS
from shd_bids.fod.weights import Weights
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.response.response import Response, Responses
from shd_bids.scan import Scan


def tiny_weights() -> Weights:
    """Return untrained weights of two coarse levels."""
    torch.manual_seed(0)
    config = UNetConfig(len(CHANNELS), 3, nside=2, channels=(4, 4))
    net = UNet(config)
    return Weights(config=config, state=net.state_dict(), l_max=4, sha256="0" * 64, name="tiny", training={})


def tiny_scan() -> Scan:
    """Return a crossing of 70 degrees with its true responses, in a mask without its lowest slice."""
    rng = np.random.default_rng(0)
    phantom = simulation.crossing_phantom(rng, size=10, angles=(70.0,))
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 30}, n_b0=3)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    signal = 500 * simulation.add_noise(simulation.noiseless_signal(phantom, micro, gradients), 1 / 30, rng)
    true = simulation.true_responses(micro, gradients)
    responses = Responses(*(Response(t.tissue, t.bvalues, 500 * t.coefficients) for t in true.tissues))
    mask = np.ones(phantom.gm.shape, dtype=bool)
    mask[:, :, 0] = False
    return Scan.of_volume(signal, mask, gradients, responses, np.eye(4))
