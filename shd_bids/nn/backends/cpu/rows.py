"""Batch normalisation, ReLU, pooling and unpooling by the compiled kernel, see :mod:`shd_bids.nn.backends.eager`."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from shd_bids.nn.backends.arguments import Ranges
from shd_bids.nn.backends.cpu.build import library


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, float64, of each channel of y (rows, F)."""
    y = y.contiguous()
    mean, variance = torch.empty(2, y.shape[1], dtype=torch.float64)
    library().shd_moments(*y.shape, y.data_ptr(), mean.data_ptr(), variance.data_ptr(), *_how())
    return mean, variance


def rectify(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return max(0, y scale + shift) for y (rows, F)."""
    y, scale, shift = y.contiguous(), scale.contiguous(), shift.contiguous()
    out = torch.empty_like(y)
    library().shd_rectify(*y.shape, *(t.data_ptr() for t in (y, scale, shift, out)), *_how())
    return out


def gradient_sums(gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradient of :func:`rectify` where the unit is on, and that times y - centre, over rows: two (F,) float64."""
    sums = torch.empty(2, y.shape[1], dtype=torch.float64)
    pointers = (t.data_ptr() for t in (gradient, y, scale, shift, centre, *sums))
    library().shd_gradient_sums(*y.shape, *pointers, *_how())
    return sums[0], sums[1]


def rectify_gradient(
    gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, offset: Tensor, slope: Tensor, *, out: Tensor
) -> None:
    """Put scale times the gradient where the unit is on, less offset + slope y, into ``out``, which may be y."""
    pointers = (t.data_ptr() for t in (gradient, y, scale, shift, offset, slope, out))
    library().shd_rectify_gradient(*y.shape, *pointers, *_how())


def box_sum(x: Tensor, index: Tensor, ranges: Sequence[Ranges], factor: float) -> Tensor:
    """Sum x (V, B, X, Y, Z, F) over source vertices, index (V', S), and boxes of voxels; times ``factor``."""
    x = x.contiguous()
    size = [axis.table.shape[1] for axis in ranges]
    tables = torch.cat([axis.table.flatten() for axis in ranges])
    out = x.new_empty(len(index), x.shape[1], *size, x.shape[5])
    library().shd_box_sum(
        x.data_ptr(),
        out.data_ptr(),
        len(index),
        x.shape[1],
        (ctypes.c_int64 * 3)(*x.shape[2:5]),
        (ctypes.c_int64 * 3)(*size),
        x.shape[5],
        index.shape[1],
        index.data_ptr(),
        tables.data_ptr(),
        factor,
        *_how(),
    )
    return out


def _how() -> tuple[int, int]:
    return torch.get_num_threads(), library().shd_best_level()
