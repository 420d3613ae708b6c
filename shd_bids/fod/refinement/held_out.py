"""Choices by the data: the candidate that predicts directions which were left out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shd_bids.gradients.table import GradientTable
from shd_bids.threads import run_on_threads

Candidate = TypeVar("Candidate")

_N_FOLDS = 10
_SHELL_STEP = 3  # by which the parts of a shell are shifted against those of the shell before


@dataclass(frozen=True, eq=False)
class Fold:
    """One part of a cross-validation: which voxels of a sample it serves, the volumes it hides, and all others."""

    voxels: slice
    hidden: np.ndarray
    shown: np.ndarray


def folds(gradients: GradientTable) -> list[Fold]:
    """Divide the directions of each shell and the voxels of a sample into ten parts.

    The voxels of each part do without its directions, so that all directions are asked for, and few are missed at a time: a
    hole in a sparse shell punishes whoever follows the data beside it. Parts without directions are left out.
    """
    parts = []
    for k in range(_N_FOLDS):
        picked = [
            shell.indices[(k + _SHELL_STEP * n) % _N_FOLDS :: _N_FOLDS] for n, shell in enumerate(gradients.shells)
        ]
        hidden = np.concatenate([np.zeros(0, dtype=int), *picked[1:]])
        shown = np.setdiff1d(np.arange(gradients.n_volumes), hidden)
        if len(hidden):
            parts.append(Fold(slice(k, None, _N_FOLDS), hidden, shown))
    return parts


def cross_validated(
    errors_of: Callable[[Fold], Mapping[Candidate, np.ndarray]], gradients: GradientTable, *, tolerance: float
) -> Candidate | None:
    """Return the first candidate whose mean error over all parts is close to the least; None without directions.

    Parameters
    ----------
    errors_of : callable
        Gives the squared errors of each candidate in a part, of any shape.
    gradients : GradientTable
    tolerance : float
        See :func:`first_close`.
    """
    parts = run_on_threads(errors_of, folds(gradients))
    if not any(errors.size for part in parts for errors in part.values()):
        return None
    means = {name: float(np.concatenate([part[name].ravel() for part in parts]).mean()) for name in parts[0]}
    return first_close(means, tolerance=tolerance)


def first_close(errors: Mapping[Candidate, float], *, tolerance: float) -> Candidate:
    """Return the first candidate whose error is at most ``tolerance`` times the least."""
    return next(candidate for candidate, error in errors.items() if error <= tolerance * min(errors.values()))
