"""Blocks of a volume: signals of voxels put where they lie, maps applied to the voxels of a mask, values kept between blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shd_bids.boxes import Box, overlap, shifted, within
from shd_bids.solvers import cache_chunks
from shd_bids.threads import run_on_threads


@dataclass(eq=False)
class SlabCache:
    """Values of voxels around the last block of a volume: the next one has most of its neighbours in common with it.

    Attributes
    ----------
    corner : tuple of int
        Where the block to come starts in the volume; whoever reads the blocks sets it.
    """

    corner: tuple[int, int, int] = (0, 0, 0)
    _box: Box | None = None
    _values: Tensor | None = None

    def recall(self, box: Box, values: Tensor, wanted: Tensor) -> None:
        """Fill in values (C, V, x, y, z) of a box of the block as far as they are known, and mark what is no longer wanted."""
        place = shifted(box, self.corner)
        if self._box is None or self._values is None or (shared := overlap(self._box, place)) is None:
            return
        here = within(shared, place)
        values[:, :, *here] = self._values[:, :, *within(shared, self._box)]
        wanted[here] = False

    def keep(self, box: Box, values: Tensor) -> None:
        """Keep the values of a box of the block, and no others."""
        self._box, self._values = shifted(box, self.corner), values


def to_block(voxels: np.ndarray, rows: np.ndarray, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Put signals (n, N) where they lie in a block, and say where there are any.

    Parameters
    ----------
    voxels : ndarray, shape (n, N)
    rows : ndarray of int, shape (X, Y, Z)
        Row of each voxel of the block, negative outside the mask.
    device
        Of the result.

    Returns
    -------
    signal : Tensor, shape (X, Y, Z, N)
        Zero outside the mask.
    inside : Tensor of bool, shape (X, Y, Z)
    """
    there = rows >= 0
    inside = torch.as_tensor(there, device=device)
    signal = torch.zeros(*rows.shape, voxels.shape[1], device=device)
    signal[inside] = torch.as_tensor(voxels[rows[there]], device=device)
    return signal, inside


def whole_block(signal: Tensor, inside: Tensor | None, box: Box | None) -> tuple[Tensor, Box]:
    """Give the mask and the box that stand for all of a block where there is none."""
    x, y, z = signal.shape[:3]
    whole = (slice(0, x), slice(0, y), slice(0, z))
    return signal.new_ones(x, y, z, dtype=torch.bool) if inside is None else inside, whole if box is None else box


def map_voxels(channels: Callable[..., Tensor], signals: list[Tensor], inside: Tensor, block: Tensor) -> None:
    """Map the voxels of a mask (x, y, z) into a block (V, x, y, z, C), so many at a time on each thread that all fits its cache.

    ``channels`` maps the values of voxels, (n, N) from each of ``signals`` (x, y, z, N), to (V, n, C).
    """
    rows = [signal[inside] for signal in signals]
    index = inside.flatten().nonzero()[:, 0]
    flat = block.view(len(block), inside.numel(), -1)

    def fill(part: slice) -> None:
        flat[:, index[part]] = channels(*(values[part] for values in rows))

    run_on_threads(fill, cache_chunks(index))
