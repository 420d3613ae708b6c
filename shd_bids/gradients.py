"""Gradient tables: reading, checking, shells and frames.

Directions are held in world axes (RAS+). BIDS and FSL hold them along the image axes, with x negated when the
determinant of the affine is positive; MRtrix3 and QSIPrep's ``.b`` files hold them in world axes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.exceptions import GradientError

B0_THRESHOLD = 50.0  # s/mm2, as FSL and QSIPrep; MRtrix3's 10 would call the 15-45 of some scanners a shell
SHELL_TOLERANCE = 80.0  # s/mm2, MRtrix3's BValueEpsilon
MIN_DIRECTIONS = 6  # unknowns of a tensor, and of even harmonics of degree 2
MAX_DROPPED = 0.05  # share of volumes that may lack a direction
MAX_SHELLS = 8  # more are a q-space grid
SHORTEST = 0.1  # a shorter vector is no rounding of a unit vector: the volume has no direction


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

    @property
    def is_single_shell(self) -> bool:
        return len(self.shells) == 2

    def take(self, signal: np.ndarray) -> np.ndarray:
        """Return the volumes of an image, shape (..., n_source_volumes), that the rows belong to; a view if all do."""
        if signal.shape[-1] != self.n_source_volumes:
            raise GradientError(
                f"the image has {signal.shape[-1]} volumes, the gradient table was made for {self.n_source_volumes}"
            )
        if self.n_volumes == self.n_source_volumes:
            return signal
        return signal[..., self.source_volumes]

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
    """Check, normalise and sort into shells.

    Parameters
    ----------
    bvals : array, shape (N,)
        s/mm2.
    directions_world : array, shape (N, 3)
        RAS+ world axes. Lengths are normalised and never scale b; at b=0 they are ignored.
    b0_threshold : float
        Largest b-value that counts as b=0.
    shell_tolerance : float
        Largest gap between neighbouring b-values of one shell.

    Raises
    ------
    GradientError
        With every problem found: not finite, negative b, no b=0, more than 5 % of the weighted volumes without a
        direction, fewer than six directions, no shells.
    """
    bvals = np.asarray(bvals, dtype=np.float64)
    directions = np.array(directions_world, dtype=np.float64)
    if bvals.ndim != 1 or directions.shape != (len(bvals), 3):
        raise GradientError(
            f"b-values have shape {bvals.shape} and directions {directions.shape}, expected (N,) and (N, 3)"
        )
    problems = _bvalue_problems(bvals, b0_threshold) + _direction_problems(bvals, directions, b0_threshold)
    if problems:
        raise GradientError(problems)

    is_weighted = bvals > b0_threshold
    directions[~is_weighted] = 0  # some converters write NaN there, others a real direction
    length = np.linalg.norm(directions, axis=1)
    is_lost = is_weighted & (length < SHORTEST)
    is_off = is_weighted & ~is_lost & (np.abs(length - 1) > 0.01)
    notes = []
    if is_lost.any():
        notes.append(f"{_volumes(is_lost)} dropped: b > {b0_threshold:g} s/mm² without a direction")
    if is_off.any():
        worst = length[is_off][np.argmax(np.abs(length[is_off] - 1))]
        notes.append(
            f"{is_off.sum()} directions were not of unit length (worst {worst:.3g}); normalised, b-values kept"
        )
    directions /= np.where(length > 0, length, 1)[:, None]

    kept = np.flatnonzero(~is_lost)
    bvals, directions = bvals[kept], directions[kept]
    shells = _cluster(bvals, b0_threshold=b0_threshold, tolerance=shell_tolerance)
    problems = _shell_problems(shells, directions)
    if problems:
        raise GradientError(problems)
    for shell in shells[1:]:
        if len(shell.indices) < MIN_DIRECTIONS:
            notes.append(f"the shell b = {shell.bvalue:.0f} s/mm² has only {len(shell.indices)} volumes")
    return GradientTable(bvals, directions, shells, kept, len(is_lost), tuple(notes))


def fsl_to_world(bvecs: ArrayLike, affine: ArrayLike) -> np.ndarray:
    r"""Turn FSL/BIDS directions into world axes.

    .. math:: u = R \, \mathrm{diag}(\mp 1, 1, 1) \, v

    with the upper sign for :math:`\det(\mathrm{affine}) > 0` and R the orthogonal polar factor of the affine.

    Parameters
    ----------
    bvecs : array, shape (3, N) or (N, 3)
        Rows x, y, z as in a ``.bvec`` file, or one row per volume; a 3 x 3 array is read as (3, N).
    affine : array, shape (4, 4)
        Voxel to RAS+ world, mm.

    Returns
    -------
    array, shape (N, 3)

    Source: BIDS specification, "Diffusion imaging data"; FSL FDT manual.
    """
    vectors = np.asarray(bvecs, dtype=np.float64)
    if vectors.ndim != 2 or 3 not in vectors.shape:
        raise GradientError(f"directions have shape {vectors.shape}, expected (3, N) or (N, 3)")
    if vectors.shape[0] == 3:
        vectors = vectors.T  # (N, 3)
    return vectors @ _fsl_axes(affine).T


def world_to_fsl(directions: ArrayLike, affine: ArrayLike) -> np.ndarray:
    """Turn world directions, shape (N, 3), into FSL/BIDS ones, shape (N, 3); the inverse of :func:`fsl_to_world`."""
    return np.asarray(directions, dtype=np.float64) @ _fsl_axes(affine)


def image_rotation(affine: ArrayLike) -> np.ndarray:
    """Return the orthogonal polar factor of the affine, shape (3, 3): its columns are the image axes in the world.

    A determinant of -1 (LAS, for one) is kept: the result is then a rotation with a reflection.
    """
    left, _, right = np.linalg.svd(np.asarray(affine, dtype=np.float64)[:3, :3])
    return left @ right


def read_fsl(bval_file: Path, bvec_file: Path, affine: ArrayLike, n_volumes: int, **options: float) -> GradientTable:
    """Read a BIDS pair of ``.bval`` and ``.bvec`` for an image of ``n_volumes`` volumes.

    Options are those of :func:`gradient_table`.

    Raises
    ------
    GradientError
        With every problem of both files.
    """
    problems: list[str] = []
    bvals = _read_numbers(Path(bval_file), problems)
    bvecs = _read_numbers(Path(bvec_file), problems)
    if bvals is not None and min(bvals.shape) != 1:
        problems.append(
            f"{bval_file}: found {_shape(bvals)} numbers, expected one row of {n_volumes} b-values; write them so"
        )
        bvals = None
    if bvecs is not None and 3 not in bvecs.shape:
        problems.append(f"{bvec_file}: found {_shape(bvecs)} numbers, expected 3 rows of {n_volumes}; write x, y, z so")
        bvecs = None
    if bvals is not None and bvals.size != n_volumes:
        problems.append(_count_problem(bval_file, bvals.size, "b-values", n_volumes))
    if bvecs is not None and bvecs.size != 3 * n_volumes:
        problems.append(_count_problem(bvec_file, bvecs.size // 3, "directions", n_volumes))
    threshold = options.get("b0_threshold", B0_THRESHOLD)
    if not problems:  # named by file here, because the table knows no files
        world = fsl_to_world(bvecs, affine)
        problems += [f"{bval_file}: {problem}" for problem in _bvalue_problems(bvals.ravel(), threshold)]
        problems += [f"{bvec_file}: {problem}" for problem in _direction_problems(bvals.ravel(), world, threshold)]
    if problems:
        raise GradientError(problems)
    return _named(bvec_file, lambda: gradient_table(bvals.ravel(), world, **options))


def read_mrtrix(b_file: Path, n_volumes: int | None = None, **options: float) -> GradientTable:
    """Read an MRtrix3 or QSIPrep gradient table: one row ``x y z b`` per volume, in world axes.

    Raises
    ------
    GradientError
        With every problem of the file.
    """
    problems: list[str] = []
    table = _read_numbers(Path(b_file), problems)
    if table is not None and table.shape[1] != 4:
        problems.append(f"{b_file}: found {_shape(table)} numbers, expected 4 columns x y z b, one row per volume")
    elif table is not None and n_volumes is not None and len(table) != n_volumes:
        problems.append(_count_problem(b_file, len(table), "rows", n_volumes))
    if problems:
        raise GradientError(problems)
    return _named(b_file, lambda: gradient_table(table[:, 3], table[:, :3], **options))


def format_mrtrix(table: GradientTable) -> str:
    """Write a table as MRtrix3 text, ``x y z b`` in world axes."""
    rows = np.column_stack([table.directions, table.bvals])
    return "".join(" ".join(f"{value:.10g}" for value in row) + "\n" for row in rows)


def _bvalue_problems(bvals: np.ndarray, b0_threshold: float) -> list[str]:
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
    if bvals.max() <= b0_threshold:
        problems.append(
            f"no diffusion weighting: the highest b is {bvals.max():g} s/mm², expected more than {b0_threshold:g}; "
            "check the unit"
        )
    return problems


def _direction_problems(bvals: np.ndarray, directions: np.ndarray, b0_threshold: float) -> list[str]:
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
    """Cut the sorted b-values where they jump by more than the tolerance, b=0 apart (the rule of MRtrix3's shells)."""
    shells = [Shell(0.0, np.flatnonzero(bvals <= b0_threshold))]
    order = np.argsort(bvals, kind="stable")
    order = order[bvals[order] > b0_threshold]
    for part in np.split(order, np.flatnonzero(np.diff(bvals[order]) > tolerance) + 1):
        shells.append(Shell(float(bvals[part].mean()), np.sort(part)))
    return tuple(shells)


def _shell_problems(shells: tuple[Shell, ...], directions: np.ndarray) -> list[str]:
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
    return []


def _count_axes(directions: np.ndarray) -> int:
    """Count directions that differ by more than a degree, opposite ones taken as one."""
    is_same = np.abs(directions @ directions.T) > np.cos(np.deg2rad(1.0))
    return int(len(directions) - np.tril(is_same, -1).any(axis=1).sum())


def _fsl_axes(affine: ArrayLike) -> np.ndarray:
    """Matrix from FSL to world directions, shape (3, 3)."""
    rotation = image_rotation(affine)
    flip = -1.0 if np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]) > 0 else 1.0
    return rotation * np.array([flip, 1.0, 1.0])


def _read_numbers(path: Path, problems: list[str]) -> np.ndarray | None:
    """Read a text table, shape (rows, columns); on failure append what is wrong and return None."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problems.append(f"{path}: no such file")
        return None
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as text ({error.__class__.__name__}); expected rows of numbers")
        return None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].replace(",", " ").split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            bad = next(word for word in words if not _is_number(word))
            problems.append(f"{path}: line {number} holds {bad[:30]!r}, expected numbers only")
            return None
        if values:
            rows.append(values)
    if not rows:
        problems.append(f"{path}: empty, expected rows of numbers")
        return None
    if len({len(row) for row in rows}) > 1:
        found = ", ".join(str(len(row)) for row in rows[:4])
        problems.append(f"{path}: rows of unequal length ({found}), expected the same count in each")
        return None
    return np.array(rows, dtype=np.float64)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _named(path: Path, build: Callable[[], GradientTable]) -> GradientTable:
    try:
        return build()
    except GradientError as error:
        raise GradientError(f"{path}: {problem}" for problem in error.problems) from None


def _count_problem(path: Path, found: int, what: str, expected: int) -> str:
    return (
        f"{path}: {found} {what}, expected {expected}, one per volume of the image; take the file that was made with "
        "this image, or convert the series again"
    )


def _shape(table: np.ndarray) -> str:
    return " x ".join(str(n) for n in table.shape)


def _volumes(rows: np.ndarray) -> str:
    """Name volumes, counted from 0, for a message; takes indices or a boolean array."""
    rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
    names = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    return f"volume {names}" if len(rows) == 1 else f"{len(rows)} volumes ({names})"
