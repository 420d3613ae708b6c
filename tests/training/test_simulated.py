"""Simulated crops: seeds fix them, their truth integrates to the white matter, and processes share them."""

from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from shd_bids import simulation
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.training import simulated
from shd_bids.training.config import TrainingConfig
from shd_bids.training.simulated import draw_case, true_density

CONFIG = TrainingConfig(nside=2, channels=(8, 8), l_max=4, size=6, batch=2, steps=6, pool=4, sharpness=4.0, seed=3)


def test_a_seed_fixes_a_case():
    one, again, other = (draw_case((1, n), CONFIG) for n in (0, 0, 1))
    torch.testing.assert_close(one.channels, again.channels, rtol=0, atol=0)
    assert not torch.equal(one.truth.density, other.truth.density)


def test_true_density_integrates_to_the_white_matter(rng):
    phantom = simulation.random_phantom(rng, 6)
    density = true_density(phantom, nside=8, sharpness=20.0)
    np.testing.assert_allclose(4 * np.pi * density.mean(axis=-1), phantom.wm, atol=0.01)


def test_true_density_is_kept_by_the_harmonics_of_the_network(rng):
    phantom = simulation.random_phantom(rng, 6)
    default = TrainingConfig()
    density = true_density(phantom, nside=default.nside, sharpness=default.sharpness).reshape(-1, 384)
    coefficients = density @ sh_inverse(hemisphere(default.nside), default.l_max).T
    np.testing.assert_allclose(coefficients[:, 0] * np.sqrt(4 * np.pi), phantom.wm.reshape(-1), atol=0.02)


def test_processes_share_the_crops_of_every_step(monkeypatch):
    monkeypatch.setattr(simulated, "draw_case", lambda seed, config: seed)
    config = replace(CONFIG, pool=12, batch=4, reuse=2)

    def first_steps(**share):
        return list(islice(simulated.batches(config, 2, n_workers=0, **share), 9))

    together = zip(*(first_steps(rank=rank, n_processes=2) for rank in range(2)), strict=True)
    assert [one + other for one, other in together] == first_steps()
