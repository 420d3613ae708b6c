"""What a network is fed with: maps from the signal of a block of voxels to input channels on the hemisphere."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from shd_bids.boxes import Box
from shd_bids.fod.config import CHANNELS, InputConfig
from shd_bids.fod.inputs.blocks import SlabCache
from shd_bids.fod.inputs.estimates import Estimates
from shd_bids.fod.inputs.shells import Shells
from shd_bids.scan import Scan


class Inputs(Protocol):
    """Input maps of one scan.

    Attributes
    ----------
    reach : int
        Voxels around one, along each axis, that its input depends on.
    """

    @property
    def reach(self) -> int: ...

    def to(self, device: torch.device | str) -> Inputs:
        """Return the same maps on another device."""

    def __call__(
        self, signal: Tensor, inside: Tensor | None = None, box: Box | None = None, cache: SlabCache | None = None
    ) -> Tensor:
        """Map the signal of a block (X, Y, Z, N), and a mask (X, Y, Z), to the channels in a box of it, (C, x, y, z, V)."""


def make_inputs(scan: Scan, config: InputConfig, *, nside: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Return the input maps of a scan for a network on the hemisphere grid of ``nside``.

    Raises
    ------
    WeightsError
        When the network wants shells that the scan does not have.
    """
    if config.channels == CHANNELS:
        return Estimates.of(scan, config, nside=nside, dtype=dtype)
    return Shells.of(scan, config.channels, nside=nside, dtype=dtype)
