"""The compiled kernel that follows streamlines through voxels exactly, and the lengths of streamlines in fixels."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from nibabel.streamlines import ArraySequence
from scipy import sparse

from shd_bids.boxes import row_numbers
from shd_bids.compiled import Kernel, library
from shd_bids.errors import InputError
from shd_bids.tractography.fixels import WIDEST, Fixels

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
KERNEL = Kernel(
    folder=Path(__file__).parent / "traversal",
    signatures={
        "shd_visits": (_P, _P, _P, _P, _P, _I, _F, _P, _P, _L, _I),
        "shd_visits_count": (_P,),
        "shd_visits_copy": (_P, _P, _P, _P),
        "shd_visits_free": (_P,),
        "shd_density": (_P, _P, _P, _P, _L, _P, _P, _P),
        "shd_means": (_P, _P, _P, _P, _P, _L, _P),
    },
    results={"shd_visits": _P, "shd_visits_count": _L},
    without="what streamlines visit cannot be found",
)


def lengths_in(fixels: Fixels, streamlines: ArraySequence, *, n_threads: int = 1) -> sparse.csr_array:
    """Return the length of each streamline in each fixel.

    Each piece of a streamline within a voxel counts for the lobe there that is nearest in direction, or for none beyond
    `WIDEST`.

    Parameters
    ----------
    fixels : Fixels
    streamlines : ArraySequence
        Points in world mm.
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    (s, nK) sparse array, float32
        Length in mm.

    Raises
    ------
    InputError
        If the kernel can neither be loaded nor compiled.
    """
    kernel, lines = traversal_kernel(), Lines(streamlines)
    grid = Grid(fixels.affine, fixels.mask.shape)
    arrays = [row_numbers(fixels.mask).astype(np.int32), fixels.directions, fixels.density]
    arrays = [np.ascontiguousarray(array) for array in arrays]
    tables = [array.ctypes.data for array in arrays]
    visits = kernel.shd_visits(*grid.arguments, *tables, fixels.density.shape[1], WIDEST, *lines.arguments, n_threads)
    try:
        n = kernel.shd_visits_count(visits)
        counts, columns, lengths = np.empty(lines.n, np.int64), np.empty(n, np.int32), np.empty(n, np.float32)
        kernel.shd_visits_copy(visits, counts.ctypes.data, columns.ctypes.data, lengths.ctypes.data)
    finally:
        kernel.shd_visits_free(visits)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((lengths, columns, starts), shape=(lines.n, fixels.density.size))


def traversal_kernel() -> ctypes.CDLL:
    """Return the library.

    Raises
    ------
    InputError
        If it can neither be loaded nor compiled.
    """
    kernel = library(KERNEL)
    if kernel is None:
        raise InputError("streamlines need a C++ compiler or the kernels of the package; or stop at --level peaks")
    return kernel


class Lines:
    """Points and offsets of streamlines as the kernel takes them; the arrays live as long as this."""

    def __init__(self, streamlines: ArraySequence) -> None:
        self.n = len(streamlines)
        self._points = np.ascontiguousarray(streamlines.get_data(), dtype=np.float32)
        self._offsets = np.concatenate([[0], np.cumsum(streamlines._lengths)]).astype(np.int64)
        self.arguments = (self._points.ctypes.data, self._offsets.ctypes.data, self.n)


class Grid:
    """Shape and affine of an image as the kernel takes them; the arrays live as long as this."""

    def __init__(self, affine: np.ndarray, shape: tuple[int, ...]) -> None:
        self._shape = np.array(shape, dtype=np.int32)
        self._to_voxel = np.ascontiguousarray(np.linalg.inv(affine)[:3], dtype=np.float64)
        self.arguments = (self._shape.ctypes.data, self._to_voxel.ctypes.data)
