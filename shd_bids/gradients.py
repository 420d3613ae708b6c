"""Gradient tables: reading, checking, shells, frames, and the test of their orientation against the data.

Directions are held in world axes (RAS+). BIDS and FSL hold them along the image axes, with x negated when the
determinant of the affine is positive; MRtrix3 and QSIPrep's ``.b`` files hold them in world axes.
"""

import itertools
from collections.abc import Callable, Sequence
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
# Standard errors by which a candidate must lead. On pieces of four scans a wrong one led by 1 at most, on the whole
# scans the right one led by 5 or more.
CLEAR_LEAD = 3.5
BLOCK = 4  # voxels; edge of the blocks whose scatter gives the standard error


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


@dataclass(frozen=True, eq=False)
class OrientationCheck:
    """Outcome of the test of the gradient directions against the anatomy.

    Attributes
    ----------
    given, best : float
        Coherence of the directions as given and of the best candidate; 0 is chance, the more the better.
    best_transform : array, shape (3, 3)
        Signed permutation, along the image axes, that takes the given directions to the best candidate.
    is_given_best : bool
        Whether no candidate is clearly better; the only field a caller needs for go or stop.
    is_fixable : bool
        Whether the best transform is unique; with three slices or fewer a flip across them cannot be seen.
    is_conclusive : bool
        Whether the data could tell the candidates apart at all.
    confidence : float
        Standard errors, over blocks of the image, between the given (if wrong: the best) and its strongest rival.
    scores : list of (label, matrix, score)
        All judged candidates, best first; the identity is among them.
    message : str
        One sentence for the user.
    """

    given: float
    best: float
    best_transform: np.ndarray
    is_given_best: bool
    is_fixable: bool
    is_conclusive: bool
    confidence: float
    scores: list[tuple[str, np.ndarray, float]]
    message: str


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


def fit_tensor(signal: np.ndarray, table: GradientTable, *, n_iterations: int = 2) -> np.ndarray:
    r"""Fit diffusion tensors by iteratively reweighted linear least squares.

    .. math:: \min_{D, S_0} \sum_i w_i^2 (\ln S_i - \ln S_0 + b_i u_i^T D u_i)^2

    where w starts as the signal and is then the predicted signal.

    Parameters
    ----------
    signal : array, shape (n, N)
        One row per voxel; values below a millionth of the row's maximum are raised to it.
    table : GradientTable
    n_iterations : int
        Number of reweightings.

    Returns
    -------
    array, shape (n, 3, 3)
        Tensors in world axes, mm2/s; zero for rows without signal.

    Source: Veraart et al., NeuroImage 81 (2013) 335, equations 5-7.
    """
    design = _tensor_design(table)  # (N, 7)
    upper = np.triu_indices(7)
    products = design[:, upper[0]] * design[:, upper[1]]  # (N, 28)
    square = np.empty((7, 7), dtype=int)
    square[upper] = square[upper[::-1]] = np.arange(28)
    tensors = np.zeros((len(signal), 3, 3))
    for start in range(0, len(signal), 16384):  # bounds the memory of the normal matrices
        block = np.asarray(signal[start : start + 16384], dtype=np.float64)
        top = block.max(axis=1, initial=0)
        has_signal = np.flatnonzero(top > 0)
        block = np.maximum(block[has_signal], 1e-6 * top[has_signal, None])
        block /= top[has_signal, None]
        log_signal = np.log(block)
        weight = block**2
        for _ in range(n_iterations + 1):
            normal = (weight @ products)[:, square]  # (n, 7, 7)
            normal += 1e-10 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(7)
            solution = np.linalg.solve(normal, ((weight * log_signal) @ design)[..., None])[..., 0]
            weight = np.exp(np.clip(2 * solution @ design.T, -60, 10))
        tensors[start + has_signal] = solution[:, [[0, 3, 4], [3, 1, 5], [4, 5, 2]]] * 1e-3
    return tensors


def fractional_anisotropy(tensors: np.ndarray) -> np.ndarray:
    """Return the FA of tensors, shape (n, 3, 3), negative eigenvalues taken as they are; 0 for a zero tensor."""
    mean = np.trace(tensors, axis1=-2, axis2=-1) / 3
    norm = np.square(tensors).sum(axis=(-2, -1))
    deviation = norm - 3 * mean**2
    return np.sqrt(1.5 * np.clip(deviation, 0, None) / np.where(norm > 0, norm, 1))


def check_orientation(
    signal: np.ndarray,
    mask: np.ndarray,
    table: GradientTable,
    affine: ArrayLike,
    *,
    min_fa: float = 0.2,
) -> OrientationCheck:
    r"""Find the signed permutation of the directions under which fibres run on from voxel to voxel.

    Along a fibre, tensors change less than across it. With :math:`s_{ao}` the similarity of the anisotropic part of
    the tensors of voxel a and its neighbour in direction o, freed of the means over a and over o, a candidate
    orientation P scores the correlation

    .. math:: \rho(P) \propto \sum_{ao} w_a \, s_{ao} \, (o^T P e_a)^2

    with e the principal direction and w the FA. The similarity does not depend on P, so one tensor fit serves all
    candidates, and the removal of the means makes neither voxel size nor a uniform region favour one of them.

    Parameters
    ----------
    signal : array, shape (x, y, z, N)
        Volumes of ``table``.
    mask : array, shape (x, y, z), bool
    table : GradientTable
    affine : array, shape (4, 4)
    min_fa : float
        Voxels below say nothing.

    Returns
    -------
    OrientationCheck
        Transforms act along image axes; apply them by :func:`corrected`. Axes of three slices or fewer are taken as
        having no neighbours (slices may not be adjacent), and only what the others can tell is judged.

    Source: the idea of a coherence index over flips and permutations is that of Schilling et al., Magn Reson Imaging
    58 (2019) 82; score and test are our own.
    """
    axes = np.flatnonzero(np.array(mask.shape) > 3)
    candidates = _candidates(axes)
    moments = _coherence_moments(signal, mask, table, affine, axes=axes, min_fa=min_fa)
    return _judge(candidates, moments)


def corrected(table: GradientTable, check: OrientationCheck, affine: ArrayLike) -> GradientTable:
    """Return the table with the best transform of the check applied to its directions; itself if nothing beats it.

    Raises
    ------
    GradientError
        When the data could not tell which of several transforms is right.
    """
    axes = image_rotation(affine)
    turn = axes @ check.best_transform @ axes.T
    if check.is_given_best:
        return table
    if not check.is_fixable:
        raise GradientError(
            f"{check.message}; the image has too few slices to fix it automatically, correct the .bvec file by hand"
        )
    note = f"directions corrected by the orientation check, along the image axes: ({_label(check.best_transform)})"
    return GradientTable(
        table.bvals,
        table.directions @ turn.T,
        table.shells,
        table.source_volumes,
        table.n_source_volumes,
        (*table.notes, note),
    )


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


def _tensor_design(table: GradientTable) -> np.ndarray:
    """Build the design matrix of ln S for D in um2/ms: xx yy zz xy xz yz and ln S0, shape (N, 7)."""
    x, y, z = table.directions.T
    terms = [x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z]
    return np.column_stack([-table.bvals * 1e-3 * term for term in terms] + [np.ones(table.n_volumes)])


def _candidates(axes: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """List the signed permutations of the given image axes, one of each pair P, -P, the identity first."""
    if len(axes) < 2:
        return [("x,y,z", np.eye(3))]
    others = [axis for axis in range(3) if axis not in axes]
    flips: Sequence[tuple[int, ...]] = [(), *((int(axis),) for axis in (axes if len(axes) == 3 else axes[:1]))]
    found = []
    for order in itertools.permutations(axes.tolist()):
        matrix = np.zeros((3, 3))
        matrix[axes, order] = 1
        matrix[others, others] = 1
        for flip in flips:
            signed = matrix.copy()
            signed[list(flip)] *= -1
            found.append((_label(signed), signed))
    return found


def _label(matrix: np.ndarray) -> str:
    """Name a signed permutation by what its three results are: ``-y,x,z`` for (x, y, z) -> (-y, x, z)."""
    source = np.abs(matrix).argmax(axis=1)
    return ",".join(("-" if matrix[row, axis] < 0 else "") + "xyz"[axis] for row, axis in enumerate(source))


def _coherence_moments(
    signal: np.ndarray, mask: np.ndarray, table: GradientTable, affine: ArrayLike, *, axes: np.ndarray, min_fa: float
) -> np.ndarray:
    """Sum w M_ij E_kl over the voxels of each block of the image, shape (blocks, 3, 3, 3, 3), in image axes.

    M = sum_o s_ao o o^T with the doubly centred similarity s, and E = e e^T; see :func:`check_orientation`.
    """
    inside = np.flatnonzero(mask)
    tensors = fit_tensor(signal.reshape(-1, signal.shape[-1])[inside], table)  # (n, 3, 3)
    rotation = image_rotation(affine)
    tensors = rotation.T @ tensors @ rotation
    fa = fractional_anisotropy(tensors)
    norm = np.linalg.norm(tensors, axis=(1, 2))
    is_usable = (norm > 0) & (fa < 1)  # FA >= 1 has negative eigenvalues: noise
    inside, tensors, fa, norm = inside[is_usable], tensors[is_usable], fa[is_usable], norm[is_usable]
    shape = (tensors - np.trace(tensors, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3) / norm[:, None, None]
    e = np.linalg.eigh(tensors)[1][..., 2]  # (n, 3)

    position = np.stack(np.unravel_index(inside, mask.shape), axis=1)
    number = np.full(np.array(mask.shape) + 2, -1)
    number[tuple(position.T + 1)] = np.arange(len(inside))
    steps = np.array([o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)])
    steps = steps[(np.delete(steps, axes, axis=1) == 0).all(axis=1)]
    offsets = steps * np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    offsets /= np.linalg.norm(offsets, axis=1, keepdims=True)  # (o, 3)

    centre = np.flatnonzero(fa > min_fa)
    neighbour = np.stack([number[tuple((position[centre] + 1 + step).T)] for step in steps], axis=1)  # (c, o)
    is_pair = neighbour >= 0
    flat = shape.reshape(-1, 9)
    similarity = np.einsum("ai,aoi->ao", flat[centre], flat[neighbour]) * is_pair
    for _ in range(3):  # converges at once where no neighbour is missing
        similarity -= is_pair * (similarity.sum(1) / np.maximum(is_pair.sum(1), 1))[:, None]
        similarity -= is_pair * (similarity.sum(0) / np.maximum(is_pair.sum(0), 1))
    moment = np.einsum("ao,oi,oj->aij", similarity, offsets, offsets)
    direction = np.einsum("a,ak,al->akl", fa[centre], e[centre], e[centre])
    scale = np.sqrt((fa[centre, None] * similarity**2).sum() * (fa[centre, None] * is_pair).sum() * 4 / 45)

    block = np.ravel_multi_index(tuple((position[centre] // BLOCK).T), tuple(np.array(mask.shape) // BLOCK + 1))
    _, block = np.unique(block, return_inverse=True)
    outer = np.einsum("aij,akl->aijkl", moment, direction).reshape(len(centre), 81)
    sums = np.zeros((block.max(initial=-1) + 1, 81))
    np.add.at(sums, block, outer)
    return sums.reshape(-1, 3, 3, 3, 3) / (scale if scale > 0 else 1)


def _judge(candidates: list[tuple[str, np.ndarray]], moments: np.ndarray) -> OrientationCheck:
    """Score the candidates and say whether one beats the identity, which is the first of them."""
    by_block = np.stack([np.einsum("bijkl,ik,jl->b", moments, p, p) for _, p in candidates], axis=1)  # (b, P)
    total = by_block.sum(axis=0)
    ranking = np.argsort(-total, kind="stable")
    best = int(ranking[0])

    def lead(winner: int, loser: int) -> float:
        difference = by_block[:, winner] - by_block[:, loser]
        error = np.sqrt(np.square(difference).sum())  # of a sum of independent blocks with mean zero
        return float(difference.sum() / error) if error > 0 else 0.0

    is_given_best = best == 0 or lead(best, 0) < CLEAR_LEAD
    reference = 0 if is_given_best else best
    rivals = [lead(reference, other) for other in range(len(candidates)) if other != reference]
    confidence = min(rivals, default=0.0)
    is_conclusive = not is_given_best or confidence >= CLEAR_LEAD
    label, transform = candidates[best] if not is_given_best else candidates[0]
    numbers = f"coherence {total[0]:.3f}"
    if not is_given_best:
        message = (
            f"the gradient directions do not fit the anatomy: taken along the image axes as ({label}) fibres run on "
            f"from voxel to voxel better (coherence {total[best]:.3f} against {total[0]:.3f}, lead {lead(best, 0):.1f} "
            "standard errors); check the .bvec file and the image header"
        )
    elif is_conclusive:
        message = f"the gradient directions fit the anatomy ({numbers}, lead {confidence:.1f} standard errors)"
    else:
        message = (
            f"the orientation of the gradient directions cannot be judged from this image ({numbers}, lead "
            f"{confidence:.1f} standard errors, {CLEAR_LEAD:g} needed); they are used as given"
        )
    return OrientationCheck(
        given=float(total[0]),
        best=float(total[best]),
        best_transform=transform,
        is_given_best=is_given_best,
        is_fixable=len(candidates) == 24,
        is_conclusive=is_conclusive,
        confidence=confidence,
        scores=[(candidates[k][0], candidates[k][1], float(total[k])) for k in ranking],
        message=message,
    )
