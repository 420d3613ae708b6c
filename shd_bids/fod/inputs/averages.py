"""Averages over neighbouring voxels of a mask: over cubes, and along the axis of each vertex of the hemisphere."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor
from torch.nn.functional import conv3d, pad

from shd_bids.boxes import Box, chunks

_LEAST_WEIGHT = 1e-6  # a voxel of the mask has its own
_AXES_AT_ONCE = 32  # 10 MB of values in a cross-section of 70 x 70 voxels, of which a convolution makes copies


def means_around(values: Tensor, inside: Tensor, box: Box, reaches: Iterable[int]) -> list[Tensor]:
    """Average (X, Y, Z, N) over the cube of ``2 reach + 1`` voxels around each voxel of a box, as far as they lie inside."""
    weight = inside[..., None].to(values.dtype)
    weighted = values * weight
    return [_sum_around(weighted, box, reach) / _sum_around(weight, box, reach).clamp_min(1) for reach in reaches]


def _sum_around(values: Tensor, box: Box, reach: int) -> Tensor:
    """Add up the values within ``reach`` of each voxel of a box along each axis, (x, y, z, N)."""
    for axis, side in enumerate(box):
        total = values.narrow(axis, side.start, side.stop - side.start).clone()
        for shift in (s for s in range(-reach, reach + 1) if s):
            first, last = max(side.start + shift, 0), min(side.stop + shift, values.shape[axis])
            if first < last:
                part = values.narrow(axis, first, last - first)
                total.narrow(axis, first - shift - side.start, last - first).add_(part)
        values = total
    return values


def voxel_steps(affine: np.ndarray) -> np.ndarray:
    """Return the steps between voxels in the world, in columns, (3, 3), in units of their mean size."""
    return affine[:3, :3] / np.cbrt(np.abs(np.linalg.det(affine[:3, :3])))


def along_weights(axes: np.ndarray, affine: np.ndarray, *, reach: int, length: float, width: float) -> np.ndarray:
    r"""Return the weights of the voxels around one in averages along axes, (V, 2 reach + 1, ...), each of sum 1.

    A voxel at d, in units of the mean size of voxels, weighs :math:`e^{-(d \cdot u)^2/2l^2 - |d - (d \cdot u) u|^2/2w^2}`.
    """
    shift = np.arange(-reach, reach + 1)
    around = np.stack(np.meshgrid(shift, shift, shift, indexing="ij"), axis=-1) @ voxel_steps(affine).T
    along = (around @ axes.T) ** 2
    across = (around**2).sum(axis=-1, keepdims=True) - along
    weights = np.exp(-along / (2 * length**2) - across / (2 * width**2))
    return np.moveaxis(weights / weights.sum(axis=(0, 1, 2)), -1, 0)


def average_along(values: Tensor, inside: Tensor, box: Box, weights: Tensor) -> Tensor:
    """Average values (C, V, X, Y, Z) over the voxels of a mask around each voxel of a box, along the axis of each vertex.

    Parameters
    ----------
    values : Tensor, shape (C, V, X, Y, Z)
        Zero outside the mask.
    inside : Tensor of bool, shape (X, Y, Z)
        Mask.
    box : tuple of slice
    weights : Tensor, shape (V, 1, n, n, n)
        Of :func:`along_weights`.

    Returns
    -------
    Tensor, shape (V, x, y, z, C)
        Zero outside the mask.
    """
    reach = weights.shape[-1] // 2
    missing = [(reach - b.start, reach - n + b.stop) for b, n in zip(box, inside.shape, strict=True)]
    zeros = [min(ends) for ends in missing]  # as many on both sides cost no copy
    more = [n - both for ends, both in zip(reversed(missing), reversed(zeros), strict=True) for n in ends]
    there = pad(inside.to(values.dtype)[None, None], more)
    result = values.new_empty(values.shape[1], *inside[box].shape, len(values))
    for part in chunks(len(weights), _AXES_AT_ONCE):
        around, own = pad(values[:, part], more), weights[part]
        total = conv3d(around, own, padding=zeros, groups=len(own))
        total_weight = conv3d(there, own, padding=zeros).clamp_min_(_LEAST_WEIGHT)
        result[part] = total.div_(total_weight).mul_(inside[box]).permute(1, 2, 3, 4, 0)
    return result
