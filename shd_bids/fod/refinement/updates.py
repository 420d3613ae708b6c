r"""Data consistency: updates of lobe weights by the signal, as many as predict held-out directions better.

.. math:: f \leftarrow f\,\frac{K^T y}{K^T K f}

K is the signal of unit lobes and of the isotropic tissues (ISRA, see :class:`shd_bids.solvers.ISRA`), with momentum. What the
network found empty stays nearly so. What lobes do not hold of an fODF, such as the smooth top of a broad one, stays beside them
as it was: lobes alone would make it several narrow ones. The b=0 signal is fitted as any other: matching it exactly
would hand its noise on to all shells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.fod.refinement.held_out import Fold, cross_validated
from shd_bids.gradients.table import GradientTable
from shd_bids.solvers import ISRA, low_rank

_LEAST_WEIGHT = 1e-6


class DataUpdates:
    """A number of updates by all volumes."""

    def __init__(self, dictionary: LobeDictionary, n_updates: int):
        self._dictionary, self._n_updates = dictionary, n_updates
        self._isra = ISRA.build(low_rank(dictionary.kernel)) if n_updates else None

    def __call__(self, fod: FOD, signal: np.ndarray) -> FOD:
        """Update fODFs towards signals (n, N) relative to the scale of the dictionary."""
        if self._isra is None:
            return fod
        start = _Start.of(fod, self._dictionary)
        found = self._isra(start.everywhere(), start.wanted(signal), n_updates=self._n_updates, momentum=True)
        return start.moved(found)


@dataclass(frozen=True, eq=False)
class _Start:
    """fODFs as lobes, which the updates move, and what lobes do not hold of them, which stays.

    Attributes
    ----------
    fod : FOD
    weights : Tensor, shape (n, A)
        Of the lobes.
    missed : Tensor, shape (n, N)
        What the signal of the fODFs has beyond that of the lobes.
    dictionary : LobeDictionary
    """

    fod: FOD
    weights: Tensor
    missed: Tensor
    dictionary: LobeDictionary

    @classmethod
    def of(cls, fod: FOD, dictionary: LobeDictionary) -> _Start:
        weights = dictionary.decompose(fod.wm)
        rest = fod.wm - weights.numpy() @ dictionary.lobes
        return cls(fod, weights, torch.as_tensor(rest @ dictionary.wm.T), dictionary)

    def everywhere(self) -> Tensor:
        """Return weights and isotropic amplitudes (n, A + T - 1) with a little everywhere, so that each can grow."""
        config = self.dictionary.config
        even = config.spread * self.weights.mean(dim=1, keepdim=True) + _LEAST_WEIGHT
        isotropic = torch.as_tensor(self.dictionary.isotropic_of(self.fod), dtype=torch.float32)
        return torch.cat([self.weights + even, isotropic.clamp_min(config.least_isotropic)], dim=1)

    def wanted(self, signal: np.ndarray, volumes: np.ndarray | slice = slice(None)) -> Tensor:
        """Return the signal (n, N) in some volumes that lobes and isotropic tissues are to give."""
        return torch.as_tensor(signal[:, volumes], dtype=torch.float32) - self.missed[:, volumes]

    def moved(self, values: Tensor) -> FOD:
        """Return the fODFs with other weights and isotropic amplitudes (n, A + T - 1)."""
        n_axes = self.weights.shape[1]
        change = (values[:, :n_axes] - self.weights).numpy() @ self.dictionary.lobes
        return self.dictionary.with_isotropic(self.fod.wm + change, values[:, n_axes:].numpy())


def held_out_updates(
    prior: Callable[[slice, np.ndarray], FOD], signal: np.ndarray, gradients: GradientTable, dictionary: LobeDictionary
) -> int:
    """Return the smallest number of updates whose error on held-out directions is close to the least.

    Parameters
    ----------
    prior : callable
        Gives the fODFs of a slice of the sample, turned by no other volumes than those given.
    signal : ndarray, shape (n, N)
        Of a sample of the voxels, relative to the scale of the dictionary; one number serves all.
    gradients : GradientTable
    dictionary : LobeDictionary
    """
    config = dictionary.config

    def errors(fold: Fold) -> dict[int, np.ndarray]:
        fod, measured = prior(fold.voxels, fold.shown), signal[fold.voxels]
        start = _Start.of(fod, dictionary)
        wanted, predicting = (
            start.wanted(measured, fold.hidden),
            torch.as_tensor(dictionary.kernel[fold.hidden].T).float(),
        )
        found = {0: (dictionary.predict(fod) - measured)[:, fold.hidden] ** 2}
        isra = ISRA.build(low_rank(dictionary.kernel[fold.shown]))
        steps = isra.steps(start.everywhere(), start.wanted(measured, fold.shown), momentum=True)
        for n_updates, updated in enumerate(islice(steps, config.updates[-1] + 1)):
            if n_updates in config.updates[1:]:
                found[n_updates] = ((updated @ predicting - wanted) ** 2).numpy()
        return found

    return cross_validated(errors, gradients, tolerance=config.tolerance) or 0
