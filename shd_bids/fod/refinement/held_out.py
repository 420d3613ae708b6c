"""Choices by the data: the candidate that predicts directions which were left out of the fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from shd_bids.gradients.table import GradientTable

Candidate = TypeVar("Candidate")


def held_out_directions(gradients: GradientTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the volumes of a fifth of the directions of each shell, and all others."""
    hidden = np.concatenate([shell.indices[2::5] for shell in gradients.shells[1:]])
    return hidden, np.setdiff1d(np.arange(gradients.n_volumes), hidden)


def first_close(errors: Mapping[Candidate, float], *, tolerance: float) -> Candidate:
    """Return the first candidate whose error is at most ``tolerance`` times the least."""
    return next(candidate for candidate, error in errors.items() if error <= tolerance * min(errors.values()))
