"""The volumes of a scan that a network is shown where it predicts more than it sees (super-resolved)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shd_bids.gradients.table import GradientTable


@dataclass(frozen=True)
class InputVolumes:
    """All volumes at b=0 and some directions of one shell.

    Attributes
    ----------
    bvalue : float
        Of the shell, s/mm2; the nearest of a scan is taken.
    directions : int
        Most directions of it, spread evenly.
    """

    bvalue: float
    directions: int

    def choose(self, gradients: GradientTable) -> np.ndarray:
        """Return the numbers of the chosen volumes, ascending."""
        shell = min(gradients.shells[1:], key=lambda shell: abs(shell.bvalue - self.bvalue))
        chosen = shell.indices[spread_directions(gradients.directions[shell.indices], self.directions)]
        return np.sort(np.concatenate([gradients.b0_indices, chosen]))


def spread_directions(axes: np.ndarray, n: int) -> np.ndarray:
    r"""Choose ``n`` of some axes (N, 3), evenly spread, and return their numbers.

    From the axis nearest to z on, each next one has the least :math:`\sum_j 1 / \arccos|u \cdot u_j|` to those before, the
    selection of the published code (``other/create_bvals_subset.py``).
    """
    angles = np.arccos(np.clip(np.abs(axes @ axes.T), 0, 1))
    energy = 1 / np.maximum(angles, 1e-6)
    chosen = [int(np.abs(axes[:, 2]).argmax())]
    while len(chosen) < min(n, len(axes)):
        total = energy[:, chosen].sum(axis=1)
        total[chosen] = np.inf
        chosen.append(int(total.argmin()))
    return np.array(chosen)
