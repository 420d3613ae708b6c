"""Volumes shown to a super-resolved network: one shell and b=0, evenly spread."""

import numpy as np

from shd_bids import simulation
from shd_bids.fod.inputs.volumes import InputVolumes, spread_directions


def test_all_of_b0_and_some_directions_of_the_nearest_shell_are_shown(rng):
    gradients = simulation.make_gradients(rng, {700.0: 30, 1200.0: 40, 3000.0: 50}, n_b0=4)
    shown = gradients.select(InputVolumes(1000, 29).choose(gradients))
    assert [(shell.bvalue, len(shell.indices)) for shell in shown.shells] == [(0, 4), (1200, 29)]
    few = gradients.select(InputVolumes(600, 99).choose(gradients))
    assert [(shell.bvalue, len(shell.indices)) for shell in few.shells] == [(0, 4), (700, 30)]


def test_chosen_directions_are_further_apart_than_the_first_ones(rng):
    axes = rng.normal(size=(200, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    chosen = spread_directions(axes, 20)
    assert len(set(chosen.tolist())) == 20 and np.abs(axes[chosen[0], 2]) == np.abs(axes[:, 2]).max()

    def nearest(some):
        return np.degrees(np.arccos(np.minimum((np.abs(some @ some.T) - 2 * np.eye(len(some))).max(axis=1), 1))).min()

    assert nearest(axes[chosen]) > 15 > nearest(axes[:20])
