"""Simulated crops: seeds fix them, they hold what a training needs, and processes share them."""

from dataclasses import replace
from itertools import islice

import torch

from shd_bids.training import simulated
from shd_bids.training.config import TrainingConfig
from shd_bids.training.simulated import draw_case

CONFIG = TrainingConfig(nside=2, channels=(8, 8), l_max=4, size=6, batch=2, steps=6, pool=4, seed=3)


def test_a_seed_fixes_a_case():
    one, again, other = (draw_case((1, n), CONFIG) for n in (0, 0, 1))
    torch.testing.assert_close(one.channels, again.channels, rtol=0, atol=0)
    assert not torch.equal(one.truth.density, other.truth.density)


def test_a_crop_has_the_truth_and_the_signal_of_one_voxel_each():
    case = draw_case((2, 0), CONFIG)
    n_channels, *shape, n_vertices = case.channels.shape
    assert shape == [CONFIG.size] * 3 and case.truth.density.shape == (*shape, n_vertices)
    assert n_channels == len(CONFIG.inputs.channels) and case.signal.shape[-1] == len(case.volumes)
    fractions = case.truth.fractions.sum(-1) + 4 * torch.pi * case.truth.density.float().mean(-1)
    assert fractions.min() > 0.8 and fractions.max() < 1.2  # coarse vertices miss some of a narrow lobe
    b0 = case.signal.float()[..., case.b0].mean(-1)[case.mask]
    assert 0.3 < b0.median() < 6, "the signal is not relative to that of white matter"


def test_processes_share_the_crops_of_every_step(monkeypatch):
    monkeypatch.setattr(simulated, "draw_case", lambda seed, config: seed)
    config = replace(CONFIG, pool=12, batch=4, reuse=2)

    def first_steps(**share):
        return list(islice(simulated.batches(config, 2, n_workers=0, **share), 9))

    together = zip(*(first_steps(rank=rank, n_processes=2) for rank in range(2)), strict=True)
    assert [one + other for one, other in together] == first_steps()
