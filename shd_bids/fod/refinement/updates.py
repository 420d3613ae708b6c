r"""Data consistency: updates of lobe weights by the signal, as many as predict held-out directions better.

.. math:: f \leftarrow f\,\frac{K^T y}{K^T K f}

K is the signal of unit lobes and of the isotropic tissues (ISRA, see :class:`shd_bids.solvers.ISRA`), with momentum. What the
network found empty stays nearly so, and nothing becomes negative. The b=0 signal is fitted as any other: matching it exactly
would hand its noise on to all shells.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shd_bids.fod.refinement.dictionary import LobeDictionary, LobeField
from shd_bids.fod.refinement.held_out import first_close, held_out_directions
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


def held_out_updates(field: LobeField, signal: np.ndarray, gradients: GradientTable, dictionary: LobeDictionary) -> int:
    """Return the smallest number of updates whose error on a fifth of the directions, held out, is close to the least.

    Parameters
    ----------
    field : LobeField
        Of a sample of the voxels; one number serves all.
    signal : ndarray, shape (n, N)
        Relative to the scale of the dictionary.
    gradients : GradientTable
    dictionary : LobeDictionary
    """
    config, kernel = dictionary.config, dictionary.kernel
    hidden, shown = held_out_directions(gradients)
    if not len(hidden) or not len(signal):
        return 0
    known, wanted = (torch.as_tensor(signal[:, volumes], dtype=torch.float32) for volumes in (shown, hidden))
    predicting = torch.as_tensor(kernel[hidden].T, dtype=torch.float32)
    errors = {0: float(((dictionary.stacked(field) @ predicting - wanted) ** 2).mean())}
    steps = ISRA.build(low_rank(kernel[shown])).steps(_everywhere(field, dictionary), known, momentum=True)
    for n_updates, updated in enumerate(islice(steps, config.updates[-1] + 1)):
        if n_updates in config.updates[1:]:
            errors[n_updates] = float(((updated @ predicting - wanted) ** 2).mean())
    return first_close(errors, tolerance=config.tolerance)


def _everywhere(field: LobeField, dictionary: LobeDictionary) -> Tensor:
    """Return stacked values (n, A + T - 1) with a little weight on all axes and of each tissue, so that each can grow."""
    values, config = dictionary.stacked(field), dictionary.config
    weights, isotropic = values.split([len(dictionary.axes), len(dictionary.tissues)], dim=1)
    even = config.spread * weights.mean(dim=1, keepdim=True) + _LEAST_WEIGHT
    return torch.cat([weights + even, isotropic.clamp_min(config.least_isotropic)], dim=1)
