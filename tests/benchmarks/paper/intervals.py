"""Means over seeds with 95 % intervals, and what they say of a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
VERDICTS = ("holds", "fails", "open")
"""What can be said of a claim."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval, infinite with one seed."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with the interval of Student's t distribution, NaN without values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else np.nan, np.inf, len(values))
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Interval(
        float(values.mean()), float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error), len(values)
    )


def verdict(gain: Interval, *, margin: float = 0.0) -> str:
    """Return whether a gain above ``-margin`` is shown, refuted or open at the confidence of the interval."""
    if gain.low > -margin:
        return "holds"
    return "fails" if gain.high < -margin else "open"
