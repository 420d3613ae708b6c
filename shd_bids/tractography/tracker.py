"""The compiled tracker: its structures filled, and its streamlines as arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence

from shd_bids.boxes import box_of, row_numbers
from shd_bids.sphere.harmonics import degrees, l_max_of, sh_basis
from shd_bids.sphere.healpix import hemisphere
from shd_bids.tractography.anatomy import Anatomy
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.native import tracking_library

ENDS = ("grey matter", "deep grey matter", "edge of the mask", "low amplitude or sharp turn", "length", "fluid")
"""Why a streamline ends, by the kernel's number."""

_ARCS = 64  # candidates of a step
_CENTRED = 0.6  # exponent of their angle: 0.5 is even over the cone, larger is denser in its middle
_TRIANGLE = 0.5  # radius of the triangle around the end of a step, in steps
_WIDTH = 16  # columns of a table are a multiple
_START_NSIDE = 8  # of the HEALPix directions to start with

_P = ctypes.c_void_p


class _Grid(ctypes.Structure):
    """``ShdGrid``."""

    _fields_ = [("shape", ctypes.c_int32 * 3), ("to_voxel", ctypes.c_double * 12)]


class _Anatomy(ctypes.Structure):
    """``ShdAnatomy``."""

    _fields_ = [("grid", _Grid), ("shares", _P)]


class _Field(ctypes.Structure):
    """``ShdField``."""

    _fields_ = [
        ("grid", _Grid),
        ("l_max", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("rows", _P),
        ("coefficients", _P),
        ("swap", _P),
    ]


class _Cone(ctypes.Structure):
    """``ShdCone``."""

    _fields_ = [
        ("n", ctypes.c_int32),
        ("padded", ctypes.c_int32),
        ("halfway", _P),
        ("end", _P),
        ("corners", _P),
        ("area", _P),
        ("direction", _P),
        ("radius", ctypes.c_float),
    ]


class Rules(ctypes.Structure):
    """``ShdRules``: how to step and what to keep; lengths in mm, angles in radians."""

    _fields_ = [
        ("is_probabilistic", ctypes.c_int32),
        ("step", ctypes.c_float),
        ("max_angle", ctypes.c_float),
        ("min_length", ctypes.c_float),
        ("max_length", ctypes.c_float),
        ("cutoff", ctypes.c_float),
        ("rewinds", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    ]


@dataclass(frozen=True, eq=False)
class Batch:
    """Streamlines of some seeds and what became of the others.

    Attributes
    ----------
    points : ndarray, shape (p, 3), float32
        World mm, one streamline after another.
    lengths, seeds : ndarray, shape (s,), int64
        Number of points and of the seed of each streamline.
    ends : ndarray, shape (s, 2), uint8
        Why each end is one, see `ENDS`.
    n_started : int
        Seeds that gave a streamline, kept or not.
    n_other_length : int
        Streamlines shorter or longer than allowed.
    refused : ndarray, shape (6,), int64
        Streamlines refused because of where they ended, by `ENDS`.
    """

    points: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    ends: np.ndarray
    n_started: int
    n_other_length: int
    refused: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def streamlines(self) -> ArraySequence:
        """Points of each streamline."""
        found = ArraySequence()
        found._data, found._lengths = self.points, self.lengths
        found._offsets = np.concatenate([[0], np.cumsum(self.lengths)])[:-1].astype(np.int64)
        return found

    @property
    def arc_lengths(self) -> np.ndarray:
        """Length of each streamline along its chords, (s,), float32, mm."""
        steps = np.linalg.norm(np.diff(self.points, axis=0, append=np.zeros((1, 3), np.float32)), axis=1)
        last = np.cumsum(self.lengths) - 1
        steps[last] = 0  # from one streamline to the next
        return np.add.reduceat(steps, last - self.lengths + 1).astype(np.float32) if len(self) else steps

    def head(self, n: int) -> Batch:
        """Return the first n streamlines."""
        points = self.points[: self.lengths[:n].sum()]
        return replace(self, points=points, lengths=self.lengths[:n], seeds=self.seeds[:n], ends=self.ends[:n])

    def without_points(self) -> Batch:
        """Return what is known besides the points, whose memory it does not hold."""
        return replace(self, points=np.empty((0, 3), dtype=np.float32))


class Tracker:
    """fODFs on a grid, ready to be tracked by rules.

    Parameters
    ----------
    field : FibreField
    rules : Rules
    anatomy : Anatomy, optional
        Ends streamlines; without it they end where the mask or the amplitude does.

    Raises
    ------
    DeviceError
        If the kernel can neither be loaded nor compiled.
    """

    def __init__(self, field: FibreField, rules: Rules, anatomy: Anatomy | None = None) -> None:
        self._kernel = tracking_library()
        size = field.coefficients.shape[1]
        l_max = l_max_of(size)
        box = box_of(field.mask)
        rows = np.pad(row_numbers(field.mask)[box].astype(np.int32), 1, constant_values=-1)
        low = [side.start - 1 for side in box]
        self._arrays = [
            np.ascontiguousarray(rows),
            np.ascontiguousarray(field.coefficients, dtype=np.float32),
            _swap(l_max),
        ]
        grid = _grid(rows.shape, field.affine @ nib.affines.from_matvec(np.eye(3), low))
        self._field = _Field(grid, l_max, size, size, *_addresses(self._arrays))
        self._anatomy = None
        if anatomy is not None:
            self._shares = np.ascontiguousarray(anatomy.shares, dtype=np.float32)
            self._anatomy = _Anatomy(_grid(self._shares.shape, anatomy.affine), self._shares.ctypes.data)
        self._rules = rules
        self._cone, self._cone_arrays = _cone(l_max, rules.max_angle, rules.step)
        self._sphere, self._sphere_arrays = _sphere(l_max)

    def track(self, places: np.ndarray, *, first: int, threads: int) -> Batch:
        """Track from places (n, 3) in world mm, which are seeds number ``first`` and following."""
        places = np.ascontiguousarray(places, dtype=np.float64)
        structures = (self._field, self._anatomy, self._rules, self._cone, self._sphere)
        parts = (None if part is None else ctypes.byref(part) for part in structures)
        tracks = self._kernel.shd_track(*parts, places.ctypes.data, first, len(places), threads)
        try:
            counts = np.zeros(4 + len(ENDS), dtype=np.int64)
            self._kernel.shd_tracks_counts(tracks, counts.ctypes.data)
            n, n_points = counts[:2]
            arrays = (
                np.empty((n_points, 3), np.float32),
                np.empty(n, np.int64),
                np.empty(n, np.int64),
                np.empty((n, 2), np.uint8),
            )
            self._kernel.shd_tracks_copy(tracks, *_addresses(arrays))
        finally:
            self._kernel.shd_tracks_free(tracks)
        return Batch(*arrays, int(counts[2]), int(counts[3]), counts[4:])


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> _Grid:
    return _Grid(shape[:3], tuple(np.linalg.inv(affine)[:3].ravel()))


def _addresses(arrays: Iterable[np.ndarray]) -> list[int]:
    return [array.ctypes.data for array in arrays]


@lru_cache(maxsize=2)
def _swap(l_max: int) -> np.ndarray:
    """Return the matrices that turn coefficients by (x, y, z) -> (-x, z, y), one degree after another."""
    points = hemisphere(16)
    before, after = sh_basis(points, l_max), sh_basis(points[:, [0, 2, 1]] * [-1, 1, 1], l_max)
    degree = degrees(l_max)
    blocks = []
    for l in range(0, l_max + 1, 2):  # noqa: E741
        own = degree == l
        matrix = np.linalg.lstsq(before[:, own], after[:, own], rcond=None)[0]
        blocks.append(matrix.ravel())  # symmetric: the turn is its own inverse
    return np.concatenate(blocks).astype(np.float32)


def _cone(l_max: int, max_angle: float, step: float) -> tuple[_Cone, list[np.ndarray]]:
    """Return arcs of a length that end within an angle of the pole, on a spiral."""
    share = (np.arange(_ARCS) + 0.5) / _ARCS
    angle = max_angle * share**_CENTRED
    azimuth = np.pi * (3 - np.sqrt(5)) * np.arange(_ARCS)
    radius = _TRIANGLE * step
    aside = step * np.sin(angle / 2) * np.sinc(angle / (2 * np.pi))
    corners = np.arange(3)[:, None] * 2 * np.pi / 3
    return _table(
        l_max,
        _around_pole(angle, azimuth),
        halfway=_around_pole(angle / 2, azimuth),
        area=np.sin(angle) * share ** (_CENTRED - 1),
        corners=1 / 3 + 2 / 3 * aside / radius * np.cos(azimuth - corners),
        radius=radius,
    )


def _sphere(l_max: int) -> tuple[_Cone, list[np.ndarray]]:
    """Return even directions over half the sphere."""
    directions = hemisphere(_START_NSIDE)
    n = len(directions)
    return _table(l_max, directions, halfway=directions, area=np.ones(n), corners=np.zeros((3, n)), radius=0.0)


def _around_pole(angle: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(angle) * np.cos(azimuth), np.sin(angle) * np.sin(azimuth), np.cos(angle)], axis=1)


def _table(
    l_max: int,
    directions: np.ndarray,
    *,
    halfway: np.ndarray,
    area: np.ndarray,
    corners: np.ndarray,
    radius: float,
) -> tuple[_Cone, list[np.ndarray]]:
    """Return the structure and the arrays that it points to."""
    n = len(directions)
    wide = [(0, 0), (0, -n % _WIDTH)]
    tables = [np.pad(table, wide) for table in (sh_basis(halfway, l_max).T, sh_basis(directions, l_max).T, corners)]
    arrays = [np.ascontiguousarray(array, dtype=np.float32) for array in (*tables, area, directions)]
    return _Cone(n, tables[0].shape[1], *_addresses(arrays), radius), arrays
