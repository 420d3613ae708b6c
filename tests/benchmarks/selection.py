"""Tissue responses of scans and of simulated volumes, which have no skull at their border."""

from __future__ import annotations

import numpy as np
from measured import Measured

from shd_bids.response.estimate import N_EROSIONS, estimate_responses
from shd_bids.response.response import Responses


def select(scan: Measured, *, to_border: bool) -> tuple[Responses, np.ndarray]:
    """Estimate the responses as the package does, and return them with the voxels of single fibres, (X, Y, Z).

    ``to_border`` is for a mask of the whole volume: the volume is continued by the layers that are eroded from a mask.
    """
    by = N_EROSIONS if to_border else 0
    around = [(by, by)] * 3
    padded = np.pad(scan.signal, [*around, (0, 0)], mode="edge")
    found = estimate_responses(padded, np.pad(scan.mask, around, mode="edge"), scan.gradients)
    inner = tuple(slice(by, by + n) for n in scan.mask.shape)
    return found.responses, found.voxels["wm"][inner]
