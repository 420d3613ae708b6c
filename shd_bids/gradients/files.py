"""Gradient tables in files: those of FSL and BIDS, and those of MRtrix3 and QSIPrep."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.errors import GradientError, InputError
from shd_bids.files import number_of, read_text
from shd_bids.gradients.frames import fsl_to_world
from shd_bids.gradients.table import B0_THRESHOLD, GradientTable, bvalue_problems, direction_problems, gradient_table

DECIMAL_COMMA = re.compile(r"(?<!\S)[+-]?\d+,\d+(e[+-]?\d+)?(?!\S)", re.IGNORECASE)
"""A word of one comma between digits; words of several, and commas before blanks, part numbers."""


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
        problems += [f"{bval_file}: {problem}" for problem in bvalue_problems(bvals.ravel(), threshold)]
        problems += [f"{bvec_file}: {problem}" for problem in direction_problems(bvals.ravel(), world, threshold)]
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


def _read_numbers(path: Path, problems: list[str]) -> np.ndarray | None:
    """Read a text table, shape (rows, columns); on failure append what is wrong and return None."""
    try:
        text = read_text(path)
    except InputError as error:
        problems += error.problems
        return None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        found = line.split("#")[0]
        if len(found.split()) > 1 and (comma := DECIMAL_COMMA.search(found)):
            problems.append(f"{path}: line {number} holds {comma[0]!r}, a decimal comma; write decimal points")
            return None
        words = found.replace(",", " ").split()
        try:
            values = [number_of(word) for word in words]
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
        number_of(word)
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
