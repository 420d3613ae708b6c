"""Pooling and unpooling over space and sphere.

As published (Elaldi, Gerig and Dey 2024, arXiv:2411.11819; ``utils/pooling.py`` of their code): with the children c of a coarse
vertex p in the nested order of HEALPix, and the 2 x 2 x 2 voxels d of a coarse voxel x,

    pooled(p, x) = 1/4 sum_c 1/8 sum_d  y(4 p + c, 2 x + d),    unpooled(4 p + c, 2 x + d) = y(p, x).

Tensors are (vertex, batch, x, y, z, channel). Pooling, unpooling and their adjoints are sums over a few vertices and a box of
voxels, so one operation does all four.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from shd_bids.nn.backends import backend_for
from shd_bids.nn.backends.arguments import Ranges
from shd_bids.sphere import healpix


class Pooling(nn.Module):
    """Average the four children of each coarse vertex and, if asked, two voxels along each axis.

    Parameters
    ----------
    nside : int
        Resolution of the finer grid.
    hemisphere : bool
    stride : int
        0 leaves space alone. 2 halves it (even sizes). 1 averages neighbouring pairs, P -> P - 1: the published rule
        for patches of odd size.
    """

    child_index: Tensor  # (V_coarse, 4)
    parent_index: Tensor  # (V, 1)

    def __init__(self, nside: int, *, hemisphere: bool, stride: int):
        super().__init__()
        self.stride = stride
        children = torch.tensor(healpix.children(nside, hemisphere_only=hemisphere))
        parents = torch.tensor(healpix.parents(nside, hemisphere_only=hemisphere))[:, None]
        self.register_buffer("child_index", children, persistent=False)
        self.register_buffer("parent_index", parents, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Average (V, B, X, Y, Z, F) to (V / 4, B, X', Y', Z', F)."""
        down = [_pairs(size, self.stride) for size in x.shape[2:5]]
        back = [_pair_owners(size, self.stride) for size in x.shape[2:5]]
        factor = 1 / (4 * (8 if self.stride else 1))
        return _BoxSum.apply(x, self.child_index, down, self.parent_index, back, factor)

    def unpool(self, x: Tensor) -> Tensor:
        """Copy (V / 4, B, X', Y', Z', F) to (V, B, X, Y, Z, F): each vertex its parent, each voxel its source."""
        up = [_sources(size, self.stride) for size in x.shape[2:5]]
        back = [_source_owners(size, self.stride) for size in x.shape[2:5]]
        return _BoxSum.apply(x, self.parent_index, up, self.child_index, back, 1.0)


@dataclass(frozen=True)
class Unpooled:
    """An unpooled map that is not formed yet, for readers that need not form it.

    Attributes
    ----------
    pool : Pooling
    source : Tensor, shape (V / 4, B, X', Y', Z', F)
        What it copies.
    """

    pool: Pooling
    source: Tensor

    def to(self, dtype: torch.dtype) -> "Unpooled":
        """Return the map at another precision."""
        return Unpooled(self.pool, self.source.to(dtype))

    def formed(self) -> Tensor:
        """Return the map, (V, B, X, Y, Z, F)."""
        return self.pool.unpool(self.source)


class _BoxSum(torch.autograd.Function):
    """Sum over source vertices and boxes of voxels; backward is the same with the transposed tables."""

    @staticmethod
    def forward(ctx, x, index, ranges, index_back, ranges_back, factor):
        ctx.tables = index_back, ranges_back, factor
        return _box_sum(x, index, ranges, factor)

    @staticmethod
    def backward(ctx, gradient):
        return _box_sum(gradient, *ctx.tables), None, None, None, None, None


def _box_sum(x: Tensor, index: Tensor, ranges: list[Ranges], factor: float) -> Tensor:
    return backend_for(x).box_sum(x, index, ranges, factor)


@lru_cache
def _pairs(size: int, stride: int) -> Ranges:
    """Voxels averaged into each coarse voxel."""
    start = torch.arange(0, size - 1, stride) if stride else torch.arange(size)
    return Ranges(torch.stack([start, start + (2 if stride else 1)]))


@lru_cache
def _pair_owners(size: int, stride: int) -> Ranges:
    """Coarse voxels that each voxel goes into."""
    return _transposed(_pairs(size, stride).table, size)


@lru_cache
def _sources(size: int, stride: int) -> Ranges:
    """Coarse voxel that each voxel copies: nearest by size, as published."""
    full = (size - 1) * stride + 2 if stride else size
    source = torch.arange(full) * size // full
    return Ranges(torch.stack([source, source + 1]))


@lru_cache
def _source_owners(size: int, stride: int) -> Ranges:
    """Voxels that copy each coarse voxel."""
    return _transposed(_sources(size, stride).table, size)


def _transposed(table: Tensor, size: int) -> Ranges:
    """Return for each of ``size`` sources the range of results that use it (ranges are monotonic)."""
    source = torch.arange(size)[:, None]
    used = (table[0] <= source) & (source < table[1])  # (size, results)
    start = used.int().argmax(1)
    return Ranges(torch.stack([start, start + used.sum(1)]))
