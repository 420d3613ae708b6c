"""What the view of a report shows of one series: maps, signals, fODFs, peaks and streamlines, small enough for a page.

Everything lies on the grid of a `WorldView`: axes right, front, up, in mm from its corner. Maps of a large image are
averaged over blocks; fODFs are kept to degree 8 in evenly spaced slices, as many as fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shd_bids.report.packing import levels, packed, steps
from shd_bids.report.view import WorldView
from shd_bids.sphere.harmonics import degrees, l_max_of, n_coefficients

MAX_VOXELS = 600_000
MAX_GLYPHS = 30_000
MAX_PEAKS = 120_000
MAX_STREAMLINES = 3000
MAX_POINTS = 45_000
DEGREE = 8
UNIT_MM = 0.1  # of the points of streamlines

Piece = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ViewMap:
    """A map of the view.

    Attributes
    ----------
    name, unit : str
        For readers.
    values : array, shape (x, y, z) or (x, y, z, 3)
        On the grid of the view; not finite outside of what was measured. Three values are a colour in 0..1.
    low, high : float
        Ends of the scale; 0 and 1 for colours.
    palette : str
        ``gray``, ``viridis`` or ``magma``.
    """

    name: str
    values: np.ndarray
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    palette: str = "gray"


def grid(view: WorldView) -> Piece:
    """Return the axes of the view and their place in the world."""
    return {
        "shape": list(view.shape),
        "zooms": _rounded(view.zooms),
        "focus": list(view.focus),
        "rotation": _rounded(view.rotation),
        "world": _rounded(np.linalg.inv(view.to_view)),
        "block": _block(view.shape),
    }


def pack_map(shown: ViewMap) -> Piece:
    """Return a map as the script reads it."""
    is_colour = shown.values.ndim == 4
    coarse = averaged(shown.values, _block(shown.values.shape[:3]))
    coded = np.moveaxis(levels(coarse, 0, 1), -1, 0) if is_colour else levels(coarse, shown.low, shown.high)
    return {
        "name": shown.name,
        "unit": shown.unit,
        "palette": "colour" if is_colour else shown.palette,
        "low": float(shown.low),
        "high": float(shown.high),
        "data": packed(coded),
    }


def pack_signal(name: str, measured: np.ndarray, predicted: np.ndarray) -> Piece:
    """Return the measured and predicted signal of one volume, (x, y, z), on one scale."""
    finite = measured[np.isfinite(measured)]
    high = float(np.percentile(finite, 99.5)) if finite.size else 1.0
    maps = {"measured": measured, "predicted": predicted}
    coded = {key: pack_map(ViewMap(name, values, 0.0, high or 1.0)) for key, values in maps.items()}
    return {"name": name, **coded}


def pack_glyphs(view: WorldView, coefficients: np.ndarray, numbers: np.ndarray) -> Piece:
    r"""Return fODFs of the strongest voxels of evenly spaced slices, with :math:`c_{lm} / c_{00}` in eight bits.

    Parameters
    ----------
    view : WorldView
    coefficients : array, shape (n, C)
        In mask order, world axes.
    numbers : int array, shape (x, y, z)
        Row of each voxel of the view, -1 outside.
    """
    amount = np.zeros(numbers.shape)
    amount[numbers >= 0] = np.nan_to_num(coefficients[numbers[numbers >= 0], 0])
    top = float(np.percentile(amount[amount > 0], 97)) if (amount > 0).any() else 1.0
    inside = amount > 0.06 * top
    slices, chosen = _spaced(view, inside)
    places = np.flatnonzero(chosen.ravel(order="F"))
    rows = numbers.ravel(order="F")[places]
    degree = min(DEGREE, l_max_of(coefficients.shape[1]))
    picked = np.nan_to_num(np.asarray(coefficients[rows, : n_coefficients(degree)], dtype=np.float64))
    shape = picked[:, 1:] / np.maximum(picked[:, :1], np.finfo(float).tiny)
    of_degree = degrees(degree)[1:]
    limits = (
        {
            value: float(np.percentile(np.abs(shape[:, of_degree == value]), 99.9, method="higher")) or 1.0
            for value in range(2, degree + 1, 2)
        }
        if len(rows)
        else dict.fromkeys(range(2, degree + 1, 2), 1.0)
    )
    scale = np.array([limits[value] for value in of_degree]) / 127
    return {
        "degree": degree,
        "slices": [[int(index) for index in axis] for axis in slices],
        "places": steps(places),
        "amount": packed(levels(picked[:, 0], 0, 1.5 * top)),
        "amount_high": 1.5 * top,
        "shape": packed(np.clip(np.rint(shape / scale), -127, 127).astype(np.int8)),
        "scale": _rounded(scale, 8),
    }


def pack_peaks(view: WorldView, vectors: np.ndarray, numbers: np.ndarray) -> Piece:
    """Return the strongest peaks, (n, K, 3) in mask order and world axes, as directions in eight bits and amplitudes."""
    flat = numbers.ravel(order="F")
    inside = np.flatnonzero(flat >= 0)
    found = np.nan_to_num(view.directions(vectors[flat[inside]]))
    amplitude = np.linalg.norm(found, axis=-1)
    voxel, number = np.nonzero(amplitude > 0)
    high = float(np.percentile(amplitude[voxel, number], 99)) if len(voxel) else 1.0
    if len(voxel) > MAX_PEAKS:
        strong = np.sort(np.argsort(-amplitude[voxel, number], kind="stable")[:MAX_PEAKS])
        voxel, number = voxel[strong], number[strong]
    strength = amplitude[voxel, number]
    unit = found[voxel, number] / np.maximum(strength, np.finfo(float).tiny)[:, None]
    return {
        "places": steps(inside[voxel]),
        "directions": packed(np.rint(127 * unit).astype(np.int8)),
        "amplitude": packed(levels(strength, 0, high)),
        "amplitude_high": high,
    }


def pack_streamlines(view: WorldView, streamlines: Sequence[np.ndarray]) -> Piece:
    """Return evenly chosen streamlines, world mm, thinned to what a page holds, as steps of a tenth of a millimetre."""
    picks = np.unique(np.linspace(0, len(streamlines) - 1, min(len(streamlines), MAX_STREAMLINES)).astype(int))
    lines = [np.asarray(streamlines[int(pick)], float) for pick in picks if len(streamlines[int(pick)]) > 1]
    every = max(1, -(-sum(map(len, lines)) // MAX_POINTS))
    thin = [line[np.unique(np.r_[0 : len(line) : every, len(line) - 1])] for line in lines]
    whole = [np.rint(view.points(line) / UNIT_MM).astype(np.int16) for line in thin]
    moves = [np.diff(line, axis=0, prepend=np.zeros((1, 3), np.int16)) for line in whole]
    return {
        "counts": packed(np.array([len(line) for line in whole], dtype=np.uint16)),
        "moves": packed(np.concatenate(moves) if moves else np.zeros((0, 3), np.int16)),
        "unit": UNIT_MM,
    }


def averaged(values: np.ndarray, block: int) -> np.ndarray:
    """Return means over blocks of voxels, of what is finite in each; the last blocks may be cut short."""
    if block == 1:
        return values
    padding = [(0, -size % block) for size in values.shape[:3]] + [(0, 0)] * (values.ndim - 3)
    filled = np.pad(np.asarray(values, float), padding, constant_values=np.nan)
    x, y, z = (size // block for size in filled.shape[:3])
    blocks = filled.reshape(x, block, y, block, z, block, *values.shape[3:])
    is_finite = np.isfinite(blocks)
    count = is_finite.sum(axis=(1, 3, 5))
    total = np.where(is_finite, blocks, 0).sum(axis=(1, 3, 5))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _block(shape: Sequence[int]) -> int:
    """Return the side of the blocks over which maps of a grid are averaged."""
    block = 1
    while np.prod([-(-size // block) for size in shape]) > MAX_VOXELS:
        block += 1
    return block


def _spaced(view: WorldView, inside: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return slices of each axis through the focus, as close as the limit allows, and the voxels that they hold."""
    every = 0
    while True:
        every += 1
        slices = [np.arange(focus % every, size, every) for focus, size in zip(view.focus, view.shape, strict=True)]
        chosen = np.zeros_like(inside)
        for axis, indices in enumerate(slices):
            part: list[slice | np.ndarray] = [slice(None)] * 3
            part[axis] = indices
            chosen[tuple(part)] = inside[tuple(part)]
        if np.count_nonzero(chosen) <= MAX_GLYPHS or every >= max(view.shape):
            return slices, chosen


def _rounded(values: np.ndarray, digits: int = 6) -> Any:
    return np.round(np.asarray(values, dtype=float), digits).tolist()
