"""Gradient tables in world axes (RAS+): their checks and their shells."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.errors import GradientError

B0_THRESHOLD = 50.0  # s/mm2, as FSL and QSIPrep; MRtrix3's 10 would call the 15-45 of some scanners a shell
SHELL_TOLERANCE = 80.0  # s/mm2, MRtrix3's BValueEpsilon
MIN_DIRECTIONS = 6  # unknowns of a tensor, and of even harmonics of degree 2
MAX_DROPPED = 0.05  # share of volumes that may lack a direction
MAX_B = 100_000.0  # s/mm2; beyond what gradients reach
MAX_SHELLS = 8  # more are a q-space grid
SHORTEST = 0.1  # a shorter vector is no rounding of a unit vector: the volume has no direction
WIDTH = 0.05  # of its b-value, which a shell may be wide where that is more than the tolerance
UNIT_TOLERANCE = 0.05  # deviation of a length from 1 that is rounding, not a b-value
MAX_ODD_LENGTHS = 0.1  # share of weighted volumes whose vectors may be of any length
LENGTH_GAP = 0.02  # between neighbouring lengths of two groups


@dataclass(frozen=True, eq=False)
class Shell:
    """Volumes of one b-value: their mean b in s/mm2 (0 for b=0) and their rows in the table."""

    bvalue: float
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class GradientTable:
    """Diffusion weighting of the volumes that can be used, in world axes.

    Attributes
    ----------
    bvals : array, shape (N,), float64
        True b-values in s/mm2, not rounded.
    directions : array, shape (N, 3), float64
        Unit vectors in RAS+ world axes, zero where b=0.
    shells : tuple of Shell
        Ascending; the first is b=0.
    source_volumes : array, shape (N,), int
        Volume of the image each row belongs to: 0..N-1 unless volumes without a direction were dropped.
    n_source_volumes : int
        Number of volumes of the image.
    notes : tuple of str
        What was repaired or looks unusual, for the user.
    """

    bvals: np.ndarray
    directions: np.ndarray
    shells: tuple[Shell, ...]
    source_volumes: np.ndarray
    n_source_volumes: int
    notes: tuple[str, ...] = ()

    @property
    def n_volumes(self) -> int:
        return len(self.bvals)

    @property
    def b0_indices(self) -> np.ndarray:
        return self.shells[0].indices

    @property
    def shell_index(self) -> np.ndarray:
        """Shell of each volume, shape (N,)."""
        index = np.empty(self.n_volumes, dtype=int)
        for number, shell in enumerate(self.shells):
            index[shell.indices] = number
        return index

    @property
    def shell_bvalues(self) -> np.ndarray:
        """Mean b-value of each shell, shape (S,), the first 0."""
        return np.array([shell.bvalue for shell in self.shells])

    def take(self, signal: np.ndarray) -> np.ndarray:
        """Return the volumes of an image, shape (..., n_source_volumes), that the rows belong to; a view if all do."""
        if signal.shape[-1] != self.n_source_volumes:
            raise GradientError(
                f"the image has {signal.shape[-1]} volumes, the gradient table was made for {self.n_source_volumes}"
            )
        if self.n_volumes == self.n_source_volumes:
            return signal
        return signal[..., self.source_volumes]

    def check_shapes(self, signal: np.ndarray, mask: np.ndarray) -> None:
        """Compare a signal, shape (x, y, z, N), and a mask, shape (x, y, z), with each other and with the table.

        Raises
        ------
        GradientError
            Signal or mask has another shape, or the mask does not hold booleans; all problems are named.
        """
        problems = []
        expected = (*mask.shape[:3], self.n_volumes)
        if mask.ndim != 3 or mask.dtype != bool:
            problems.append(
                f"mask of shape {mask.shape} and type {mask.dtype}, expected (x, y, z) and bool; use mask > 0"
            )
        if signal.shape != expected:
            problems.append(f"signal of shape {signal.shape}, expected {expected} by mask and gradients")
            if self.n_source_volumes != self.n_volumes and signal.shape[-1:] == (self.n_source_volumes,):
                problems[-1] += "; gradients.take(signal) leaves out the volumes without a direction"
        if problems:
            raise GradientError(problems)

    def select(self, indices: ArrayLike) -> "GradientTable":
        """Return the rows ``indices`` (integers or booleans) as a table of its own, which must keep a b=0.

        The result describes an image that holds these rows only.
        """
        rows = np.arange(self.n_volumes)[np.asarray(indices)]
        shells = []
        for shell in self.shells:
            kept = np.flatnonzero(np.isin(rows, shell.indices))
            if len(kept):
                shells.append(Shell(0.0 if shell is self.shells[0] else float(self.bvals[rows[kept]].mean()), kept))
        if not np.isin(rows, self.b0_indices).any():
            raise GradientError("no b=0 volume is left in the selection; keep at least one")
        return GradientTable(
            self.bvals[rows], self.directions[rows], tuple(shells), np.arange(len(rows)), len(rows), self.notes
        )

    def without(self, rows: Sequence[int]) -> "GradientTable":
        """Return the table for the same image without some of its rows; itself if there are none."""
        if not len(rows):
            return self
        kept = np.setdiff1d(np.arange(self.n_volumes), rows)
        return replace(
            self.select(kept), source_volumes=self.source_volumes[kept], n_source_volumes=self.n_source_volumes
        )

    def noted(self, *notes: str) -> "GradientTable":
        """Return the table with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def to_dict(self) -> dict:
        """Return the table as numbers, strings and lists that JSON can hold without loss."""
        return {
            "bvals": self.bvals.tolist(),
            "directions": self.directions.tolist(),
            "shells": [{"bvalue": s.bvalue, "indices": s.indices.tolist()} for s in self.shells],
            "source_volumes": self.source_volumes.tolist(),
            "n_source_volumes": self.n_source_volumes,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, content: dict) -> "GradientTable":
        """Rebuild a table from :meth:`to_dict`."""
        return cls(
            bvals=np.array(content["bvals"], dtype=np.float64),
            directions=np.array(content["directions"], dtype=np.float64).reshape(-1, 3),
            shells=tuple(Shell(float(s["bvalue"]), np.array(s["indices"], dtype=int)) for s in content["shells"]),
            source_volumes=np.array(content["source_volumes"], dtype=int),
            n_source_volumes=int(content["n_source_volumes"]),
            notes=tuple(content["notes"]),
        )


def gradient_table(
    bvals: ArrayLike,
    directions_world: ArrayLike,
    *,
    b0_threshold: float = B0_THRESHOLD,
    shell_tolerance: float = SHELL_TOLERANCE,
) -> GradientTable:
    """Return a table of checked, normalised directions sorted into shells.

    Parameters
    ----------
    bvals : array, shape (N,)
        s/mm2.
    directions_world : array, shape (N, 3)
        RAS+ world axes. Where their lengths form clear groups within one b-value they carry the b-value, which becomes
        b times the square of the length; other lengths are normalised. At b=0 they are ignored.
    b0_threshold : float
        Largest b-value that counts as b=0.
    shell_tolerance : float
        Largest gap between neighbouring b-values of one shell, and its largest width (5 % of b where that is more).

    Raises
    ------
    GradientError
        With every problem found: not finite, negative b, no b=0, more than 5 % of the weighted volumes without a
        direction, lengths that are neither 1 nor in groups, fewer than six directions, no shells.

    Source: b times the square of the length is the convention of MRtrix3 (``-bvalue_scaling``).
    """
    bvals = np.asarray(bvals, dtype=np.float64)
    directions = np.asarray(directions_world, dtype=np.float64)
    if bvals.ndim != 1 or directions.shape != (len(bvals), 3):
        raise GradientError(
            f"b-values have shape {bvals.shape} and directions {directions.shape}, expected (N,) and (N, 3)"
        )
    problems = bvalue_problems(bvals, b0_threshold) + direction_problems(bvals, directions, b0_threshold)
    if problems:
        raise GradientError(problems)

    bvals, scaling = _scaled_by_length(bvals, directions, b0_threshold=b0_threshold, tolerance=shell_tolerance)
    directions, is_lost, notes = _unit_directions(bvals, directions, b0_threshold, are_scaled=bool(scaling))
    notes += scaling
    kept = np.flatnonzero(~is_lost)
    bvals, directions = bvals[kept], directions[kept]
    shells = _cluster(bvals, b0_threshold=b0_threshold, tolerance=shell_tolerance)
    problems = _shell_problems(shells, bvals, directions, tolerance=shell_tolerance)
    if problems:
        raise GradientError(problems)
    for shell in shells[1:]:
        if len(shell.indices) < MIN_DIRECTIONS:
            notes.append(f"the shell b = {shell.bvalue:.0f} s/mm² has only {len(shell.indices)} volumes")
    return GradientTable(bvals, directions, shells, kept, len(is_lost), tuple(notes))


def _unit_directions(
    bvals: np.ndarray, directions: np.ndarray, b0_threshold: float, *, are_scaled: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return directions of unit length, zero at b=0, the weighted volumes that have none, and what was repaired."""
    is_weighted = bvals > b0_threshold
    directions = np.where(is_weighted[:, None], directions, 0)  # at b=0 some converters write NaN, others a direction
    length = np.linalg.norm(directions, axis=1)
    is_lost = is_weighted & (length < SHORTEST)
    is_off = is_weighted & ~is_lost & (np.abs(length - 1) > 0.01)
    notes = []
    if is_lost.any():
        notes.append(f"{_volumes(is_lost)} dropped: b > {b0_threshold:g} s/mm² without a direction")
    if is_off.any() and not are_scaled:
        worst = length[is_off][np.argmax(np.abs(length[is_off] - 1))]
        notes.append(
            f"{is_off.sum()} directions were not of unit length (worst {worst:.3g}); normalised, b-values kept"
        )
    return directions / np.where(length > 0, length, 1)[:, None], is_lost, notes


def _scaled_by_length(
    bvals: np.ndarray, directions: np.ndarray, *, b0_threshold: float, tolerance: float
) -> tuple[np.ndarray, list[str]]:
    """Return the b-values, times the squared length of the vectors where that carries them, and a note if so."""
    lengths = np.linalg.norm(directions, axis=1)
    weighted = np.flatnonzero((bvals > b0_threshold) & (lengths >= SHORTEST))
    if not len(weighted) or (np.abs(lengths[weighted] - 1) <= UNIT_TOLERANCE).all():
        return bvals, []
    found = [
        group
        for shell in _cluster(bvals, b0_threshold=b0_threshold, tolerance=tolerance)[1:]
        for group in _length_groups(np.intersect1d(shell.indices, weighted), lengths)
    ]
    clear = [group for group in found if len(group) >= MIN_DIRECTIONS and np.ptp(lengths[group]) <= UNIT_TOLERANCE]
    n_odd = len(weighted) - sum(map(len, clear))
    if n_odd > MAX_ODD_LENGTHS * len(weighted):
        raise GradientError(
            f"the lengths of the vectors ({lengths[weighted].min():.3g} to {lengths[weighted].max():.3g}) are neither 1 "
            f"nor in groups ({n_odd} of {len(weighted)} weighted volumes in none), so that their b-values cannot be "
            "told; write unit vectors beside the b-value of each volume"
        )
    means = np.array([lengths[group].mean() for group in clear])
    levels = np.array([bvals[group].mean() for group in clear])
    if np.ptp(means) <= UNIT_TOLERANCE or np.allclose(means**2 / levels, means[0] ** 2 / levels[0], rtol=0.1):
        return bvals, []  # lengths that repeat the b-values, or are all the same, do not tell another b-value
    scaled = np.where(np.isin(np.arange(len(bvals)), weighted), bvals * lengths**2, bvals)
    told = ", ".join(
        f"{length:.3g} at b = {b:.0f}: {b * length**2:.0f}" for length, b in zip(means, levels, strict=True)
    )
    return scaled, [
        "the vectors have lengths in clear groups; each b-value was multiplied by the square of the length, as MRtrix3 "
        f"does ({told} s/mm²); write unit vectors and true b-values if that is wrong"
    ]


def _length_groups(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Return the rows in groups of similar length of their vectors."""
    order = rows[np.argsort(lengths[rows], kind="stable")]
    return [part for part in np.split(order, np.flatnonzero(np.diff(lengths[order]) > LENGTH_GAP) + 1) if len(part)]


def bvalue_problems(bvals: np.ndarray, b0_threshold: float) -> list[str]:
    """Return what is wrong with b-values in s/mm2, one sentence each."""
    if len(bvals) == 0:
        return ["no b-values; expected one per volume"]
    if not np.isfinite(bvals).all():
        return [f"b-values of {_volumes(~np.isfinite(bvals))} are not finite numbers; give them in s/mm²"]
    problems = []
    if bvals.min() < 0:
        problems.append(f"b-values of {_volumes(bvals < 0)} are negative; expected s/mm² of at least 0")
    if bvals.min() > b0_threshold:
        problems.append(
            f"no b=0 volume: the lowest b is {bvals.min():g} s/mm², expected one of at most {b0_threshold:g}; "
            "raise the threshold if that volume is meant to be one"
        )
    if bvals.max() > MAX_B:
        problems.append(
            f"b-values up to {bvals.max():g}, expected s/mm² of at most {MAX_B:g}; check the unit and divide them"
        )
    if bvals.max() <= b0_threshold:
        problems.append(
            f"no diffusion weighting: the highest b is {bvals.max():g} s/mm², expected more than {b0_threshold:g}; "
            "check the unit"
        )
    return problems


def direction_problems(bvals: np.ndarray, directions: np.ndarray, b0_threshold: float) -> list[str]:
    """Return what is wrong with the directions of the weighted volumes, one sentence each."""
    is_weighted = bvals > b0_threshold
    is_broken = is_weighted & ~np.isfinite(directions).all(axis=1)
    if is_broken.any():
        return [f"the directions of {_volumes(is_broken)} are not finite numbers; give a direction or b=0"]
    is_lost = is_weighted & (np.linalg.norm(directions, axis=1) < SHORTEST)
    if is_lost.any() and is_lost.sum() >= MAX_DROPPED * is_weighted.sum():
        return [
            f"{is_lost.sum()} of {is_weighted.sum()} weighted volumes have no direction ({_volumes(is_lost)}), "
            f"expected fewer than {MAX_DROPPED:.0%}; correct the directions"
        ]
    return []


def _cluster(bvals: np.ndarray, *, b0_threshold: float, tolerance: float) -> tuple[Shell, ...]:
    """Return the shells: sorted b-values cut where they jump by more than the tolerance, b=0 apart (as MRtrix3)."""
    shells = [Shell(0.0, np.flatnonzero(bvals <= b0_threshold))]
    order = np.argsort(bvals, kind="stable")
    order = order[bvals[order] > b0_threshold]
    for part in np.split(order, np.flatnonzero(np.diff(bvals[order]) > tolerance) + 1):
        shells.append(Shell(float(bvals[part].mean()), np.sort(part)))
    return tuple(shells)


def _shell_problems(
    shells: tuple[Shell, ...], bvals: np.ndarray, directions: np.ndarray, *, tolerance: float
) -> list[str]:
    weighted = np.delete(directions, shells[0].indices, axis=0)
    n_distinct = _count_axes(weighted)
    if n_distinct < MIN_DIRECTIONS:
        return [f"{n_distinct} different gradient directions, expected at least {MIN_DIRECTIONS}"]
    if np.linalg.matrix_rank(np.einsum("ni,nj->nij", weighted, weighted).reshape(-1, 9), tol=1e-2) < 6:
        return [f"the {n_distinct} gradient directions lie on a cone or plane, expected them spread over the sphere"]
    n_small = sum(len(s.indices) for s in shells[1:] if len(s.indices) < MIN_DIRECTIONS)
    if len(shells) - 1 > MAX_SHELLS or 2 * n_small > len(weighted):
        values = ", ".join(f"{s.bvalue:.0f}" for s in shells[1:9]) + (", ..." if len(shells) > 9 else "")
        return [
            f"the b-values do not form shells: {len(shells) - 1} groups of similar b ({values}), {n_small} of "
            f"{len(weighted)} weighted volumes in groups of fewer than {MIN_DIRECTIONS}; "
            "q-space grids (DSI) are not supported"
        ]
    wide = [shell for shell in shells[1:] if np.ptp(bvals[shell.indices]) > max(tolerance, WIDTH * shell.bvalue)]
    if wide:
        spans = ", ".join(f"{bvals[s.indices].min():.0f} to {bvals[s.indices].max():.0f}" for s in wide[:8])
        return [
            f"the b-values do not form shells: they run on from {spans} s/mm², "
            f"expected a shell at most {tolerance:g} s/mm² or {WIDTH:.0%} wide; q-space grids (DSI) are not supported"
        ]
    return []


def _count_axes(directions: np.ndarray) -> int:
    """Return the number of directions that differ by more than a degree, opposite ones taken as one."""
    is_same = np.abs(directions @ directions.T) > np.cos(np.deg2rad(1.0))
    return int(len(directions) - np.tril(is_same, -1).any(axis=1).sum())


def _volumes(rows: np.ndarray) -> str:
    """Return the names of volumes, given by indices or booleans and counted from 0, for a message."""
    rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
    names = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    return f"volume {names}" if len(rows) == 1 else f"{len(rows)} volumes ({names})"
