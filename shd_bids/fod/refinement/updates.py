r"""Data consistency: updates of lobe weights by the signal, as many as predict held-out directions better.

.. math:: f \leftarrow f\,\frac{K^T y}{K^T K f}

K is the signal of unit lobes and of the isotropic tissues (ISRA, see :class:`shd_bids.solvers.ISRA`), with momentum. What the
network found empty stays nearly so, and nothing becomes negative. The b=0 signal is fitted as any other: matching it exactly
would hand its noise on to all shells.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shd_bids.fod.refinement.dictionary import LobeDictionary, LobeField
from shd_bids.fod.refinement.held_out import Fold, cross_validated
from shd_bids.gradients.table import GradientTable
from shd_bids.solvers import ISRA, low_rank

_LEAST_WEIGHT = 1e-6


class DataUpdates:
    """A number of updates by all volumes."""

    def __init__(self, dictionary: LobeDictionary, n_updates: int):
        self._dictionary, self._n_updates = dictionary, n_updates
        self._isra = ISRA.build(low_rank(dictionary.kernel))

    def __call__(self, field: LobeField, signal: np.ndarray) -> LobeField:
        """Update a field towards signals (n, N) relative to the scale of the dictionary."""
        if not self._n_updates:
            return field
        start = _everywhere(field, self._dictionary)
        found = self._isra(start, torch.as_tensor(signal), n_updates=self._n_updates, momentum=True)
        return self._dictionary.unstacked(found, field)


def held_out_updates(
    field_of: Callable[[slice, np.ndarray], LobeField],
    signal: np.ndarray,
    gradients: GradientTable,
    dictionary: LobeDictionary,
) -> int:
    """Return the smallest number of updates whose error on held-out directions is close to the least.

    Parameters
    ----------
    field_of : callable
        Gives the field of a slice of the sample, from no other volumes than those given.
    signal : ndarray, shape (n, N)
        Of a sample of the voxels, relative to the scale of the dictionary; one number serves all.
    gradients : GradientTable
    dictionary : LobeDictionary
    """
    config, kernel = dictionary.config, dictionary.kernel

    def errors(fold: Fold) -> dict[int, np.ndarray]:
        field, measured = field_of(fold.voxels, fold.shown), torch.as_tensor(signal[fold.voxels], dtype=torch.float32)
        known, wanted = measured[:, fold.shown], measured[:, fold.hidden]
        predicting = torch.as_tensor(kernel[fold.hidden].T, dtype=torch.float32)
        found = {0: ((dictionary.stacked(field) @ predicting - wanted) ** 2).numpy()}
        steps = ISRA.build(low_rank(kernel[fold.shown])).steps(_everywhere(field, dictionary), known, momentum=True)
        for n_updates, updated in enumerate(islice(steps, config.updates[-1] + 1)):
            if n_updates in config.updates[1:]:
                found[n_updates] = ((updated @ predicting - wanted) ** 2).numpy()
        return found

    return cross_validated(errors, gradients, tolerance=config.tolerance) or 0


def _everywhere(field: LobeField, dictionary: LobeDictionary) -> Tensor:
    """Return stacked values (n, A + T - 1) with a little weight on all axes and of each tissue, so that each can grow."""
    values, config = dictionary.stacked(field), dictionary.config
    weights, isotropic = values.split([len(dictionary.axes), len(dictionary.tissues)], dim=1)
    even = config.spread * weights.mean(dim=1, keepdim=True) + _LEAST_WEIGHT
    return torch.cat([weights + even, isotropic.clamp_min(config.least_isotropic)], dim=1)
