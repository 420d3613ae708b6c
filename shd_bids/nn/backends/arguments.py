"""What the layers hand to a backend."""

from collections.abc import Callable
from typing import NamedTuple, ParamSpec

import torch
from torch import Tensor

from shd_bids.nn.layers.cheb import Grid

P = ParamSpec("P")


def constant_result(function: Callable[P, bool]) -> Callable[P, bool]:
    """Tell torch.compile that a function always returns the same, as its own decorator does, which takes a second to load."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Filters(NamedTuple):
    """The filters of one convolution, as published, and the grid that they are for.

    Attributes
    ----------
    sph : Tensor, shape (O, I, K)
        Weights of the Chebyshev terms.
    spa : Tensor, shape (O, I, 4), or None
        Weights of the distances within the 3 x 3 x 3 kernel; None filters each voxel alone.
    grid : Grid
    """

    sph: Tensor
    spa: Tensor | None
    grid: Grid


class Ranges:
    """Source voxels of each result along one axis, one or two of them.

    Parameters
    ----------
    table : Tensor, shape (2, X')
        The first, and one past the last.
    """

    def __init__(self, table: Tensor):
        self.table = table
        self.longest = int((table[1] - table[0]).max())
        self._copies = {table.device: table}

    def on(self, device: torch.device) -> Tensor:
        """Return the table on a device; it is sent there once, as each sending would wait for all work queued before."""
        if device not in self._copies:
            self._copies[device] = self.table.to(device)
        return self._copies[device]
