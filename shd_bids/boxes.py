"""Boxes, which are slices of a volume, masks on it, and chunks, which are slices of its rows."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

Box = tuple[slice, slice, slice]

ROWS_AT_ONCE = 16384
"""Rows of a chunk that only bounds the memory beside a result: 130 MB for a thousand float64 values a row."""


def box_of(mask: np.ndarray) -> Box:
    """Return the smallest box with all marked voxels."""
    ends = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    x, y, z = (slice(int(first), int(last) + 1) for first, last in ends)
    return x, y, z


def box_around(place: Sequence[int] | np.ndarray, side: int, shape: tuple[int, ...]) -> Box:
    """Return a box of ``side`` voxels around a voxel, moved inside the volume; where the volume is smaller, all of it."""
    starts = [int(np.clip(p - side // 2, 0, max(n - side, 0))) for p, n in zip(place, shape, strict=True)]
    x, y, z = (slice(first, min(first + side, n)) for first, n in zip(starts, shape, strict=True))
    return x, y, z


def n_voxels(box: tuple[slice, ...]) -> int:
    """Return the number of voxels of a box."""
    return int(np.prod([s.stop - s.start for s in box]))


def grown(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """Return the voxels within ``by`` of a box along each axis, in a volume of some shape."""
    x, y, z = (slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, shape, strict=True))
    return x, y, z


def overlap(a: Box, b: Box) -> Box | None:
    """Return what two boxes share, ``None`` where that is nothing."""
    x, y, z = (slice(max(s.start, o.start), min(s.stop, o.stop)) for s, o in zip(a, b, strict=True))
    return (x, y, z) if x.start < x.stop and y.start < y.stop and z.start < z.stop else None


def within(box: Box, outer: Box) -> Box:
    """Return where a box lies inside another, counted from the start of that."""
    x, y, z = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))
    return x, y, z


def shifted(box: Box, by: Iterable[int]) -> Box:
    """Return a box moved by so many voxels along each axis; by where another starts, it undoes :func:`within`."""
    x, y, z = (slice(s.start + n, s.stop + n) for s, n in zip(box, by, strict=True))
    return x, y, z


def index_in(box: Box, outer: Box) -> tuple[slice, ...]:
    """Return the index of a box in a feature map (V, 1, X, Y, Z, F) that covers ``outer``."""
    return slice(None), slice(None), *within(box, outer)


def halved(box: Box) -> Box:
    """Return the cells of 2 x 2 x 2 voxels that a box touches."""
    x, y, z = (slice(s.start // 2, -(-s.stop // 2)) for s in box)
    return x, y, z


def twice(box: Box) -> Box:
    """Return the voxels of a box of cells."""
    x, y, z = (slice(2 * s.start, 2 * s.stop) for s in box)
    return x, y, z


def dilated(mask: np.ndarray, by: int) -> np.ndarray:
    """Return a mask of every voxel within ``by`` of a mask along each axis."""
    return ndimage.maximum_filter(mask, size=2 * by + 1, mode="constant") if by else mask


def padded(mask: np.ndarray, stride: int) -> np.ndarray:
    """Return the mask with unmarked voxels up to multiples of the stride, as the network over a volume appends zeros."""
    return np.pad(np.asarray(mask, dtype=bool), [(0, -n % stride) for n in mask.shape])


def doubled(cells: np.ndarray) -> np.ndarray:
    """Return a mask of the voxels of the marked cells."""
    return cells.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def rectangle(marks: np.ndarray, unit: int) -> tuple[slice, slice]:
    """Return the smallest rectangle in y and z around the marked voxels whose ends are multiples of ``unit``."""
    ends = [np.flatnonzero(marks.any(axis=(0, 3 - axis)))[[0, -1]] for axis in (1, 2)]
    low, left = (
        slice(int(first) // unit * unit, min((int(last) // unit + 1) * unit, size))
        for (first, last), size in zip(ends, marks.shape[1:], strict=True)
    )
    return low, left


def cells_of(marks: np.ndarray) -> np.ndarray:
    """Return a mask of the cells of 2 x 2 x 2 voxels that hold a marked voxel."""
    x, y, z = (n // 2 for n in marks.shape)
    return marks.reshape(x, 2, y, 2, z, 2).max(axis=(1, 3, 5))


def row_numbers(mask: np.ndarray, *, margin: int = 0) -> np.ndarray:
    """Return the row of each voxel among those of a mask in C order, -1 outside.

    Parameters
    ----------
    mask : array, shape (x, y, z), bool
    margin : int
        Voxels outside that are added on each side, so that every voxel of the mask has neighbours.

    Returns
    -------
    array, shape (x + 2 margin, y + 2 margin, z + 2 margin), int64
    """
    numbers = np.full(np.add(mask.shape, 2 * margin), -1, dtype=np.int64)
    numbers[tuple(np.argwhere(mask).T + margin)] = np.arange(np.count_nonzero(mask))
    return numbers


def chunks(n: int, size: int = ROWS_AT_ONCE) -> list[slice]:
    """Return slices of ``size`` rows that cut n rows; the last may hold fewer."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
