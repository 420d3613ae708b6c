"""What the kernel is given: its structures, as ``spectral/interface.h`` declares them, filled."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from shd_bids.nn.backends.arguments import Filters
from shd_bids.nn.backends.cpu.build import library
from shd_bids.nn.layers.cheb import Grid, chebyshev
from shd_bids.sphere import symmetry

CACHE_BYTES = 48 << 20  # of the expansion held at once, measured on caches of some 32 MB

# Below this many vertices one dense block costs less than the butterflies.
_DENSE_VERTICES = 24


class Basis(ctypes.Structure):
    """``ShdBasis``: the eigenbasis in factored form."""

    _fields_ = [(name, ctypes.c_int32) for name in ("vertices", "distinct", "order", "blocks")] + [
        (name, ctypes.c_void_p)
        for name in (
            "size",
            "copies",
            "analyse_start",
            "analyse_index",
            "analyse_sign",
            "synthesise_start",
            "synthesise_index",
            "synthesise_sign",
            "analyse_matrix",
            "synthesise_matrix",
            "terms",
        )
    ]


class Layer(ctypes.Structure):
    """``ShdLayer``: one convolution."""

    _fields_ = [
        ("shape", ctypes.c_int64 * 4),
        ("inputs", ctypes.c_int32),
        ("out_channels", ctypes.c_int32),
        ("in_channels", ctypes.c_void_p),
        ("weight_sph", ctypes.c_void_p),
        ("weight_spa", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("cache_bytes", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("inside", ctypes.c_void_p),
        ("parent", ctypes.c_void_p),
        ("read_cells", ctypes.c_void_p),
        ("inside_cells", ctypes.c_void_p),
        ("held", ctypes.c_void_p),
        ("ring", ctypes.c_int64),
        ("cells_ring", ctypes.c_int64),
    ]


class Slab(ctypes.Structure):
    """``ShdSlab``: planes of an input that came."""

    _fields_ = [("data", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("first", "planes", "lines", "line", "low", "left")
    ]


@lru_cache
def basis_of(grid: Grid, order: int) -> tuple[Basis, list[np.ndarray]]:
    """Lay the eigenbasis out for the kernel; the arrays are returned to keep them alive."""
    exact = symmetry.eigenbasis(grid.nside, hemisphere_only=grid.hemisphere)
    adapted, blocks, eigenvalues = exact.adapted, exact.blocks, exact.eigenvalues
    if len(adapted) <= _DENSE_VERTICES:
        adapted, blocks, eigenvalues = np.eye(len(adapted)), ((exact.vectors, 1),), eigenvalues[exact.mode]
    signs, analyse, synthesise, start = [], [], [], 0
    for rotation, copies in blocks:
        columns = adapted[:, start : start + len(rotation) * copies]
        scale = np.abs(columns[:, ::copies]).max(axis=0)
        signs.append(columns / np.repeat(scale, copies))
        analyse.append((rotation.T * scale).ravel())
        synthesise.append((rotation * scale[:, None]).ravel())
        start += len(rotation) * copies
    sign = np.concatenate(signs, axis=1)
    sign[np.abs(sign) < 1e-9] = 0
    tables = [
        np.array([len(rotation) for rotation, _ in blocks], dtype=np.int32),
        np.array([copies for _, copies in blocks], dtype=np.int32),
        *_compressed(sign.T),
        *_compressed(sign),
        np.concatenate(analyse).astype(np.float32),
        np.concatenate(synthesise).astype(np.float32),
        np.ascontiguousarray(chebyshev(eigenvalues, order), dtype=np.float32),
    ]
    return Basis(len(adapted), len(eigenvalues), order, len(blocks), *(t.ctypes.data for t in tables)), tables


def layer_of(
    shape: Sequence[int], channels: Sequence[int], filters: Filters, level: int | None
) -> tuple[Layer, object]:
    """Describe a layer on a volume (B, X, Y, Z); returned with what has to live as long.

    ``level`` is the instruction set, by default the best that the processor has.
    """
    widths = (ctypes.c_int32 * len(channels))(*channels)
    layer = Layer(
        (ctypes.c_int64 * 4)(*shape),
        len(channels),
        len(filters.sph),
        ctypes.cast(widths, ctypes.c_void_p),
        filters.sph.data_ptr(),
        None if filters.spa is None else filters.spa.data_ptr(),
        torch.get_num_threads(),
        library().shd_best_level() if level is None else level,
        CACHE_BYTES,
    )
    return layer, (widths, filters)


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    """Return the addresses of tensors, null for None."""
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def _compressed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row starts, column indices and values of the non-zeros."""
    rows, columns = np.nonzero(matrix)
    start = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    return start.astype(np.int32), columns.astype(np.int32), matrix[rows, columns].astype(np.float32)
