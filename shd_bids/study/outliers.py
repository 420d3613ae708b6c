"""Series that stand out among those of their protocol and site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shd_bids.study.columns import Column, column_of

__all__ = ["FEWEST", "Flag", "deviations", "find_outliers", "limit", "out_of_range"]

FEWEST = 6
"""Series of a group; of fewer, none can be told from the others."""

SIGMA_OF_MAD = 1.4826  # standard deviation of a normal distribution in units of its median absolute deviation


@dataclass(frozen=True, order=True)
class Flag:
    """One doubt about a number of a series.

    Attributes
    ----------
    column : str
    kind : {"outlier", "range"}
        Far from the others, or outside of what is expected of any.
    side : {"low", "high", "wrong"}
    deviation : float
        Robust standard deviations from the median of the group; 0 for ``range``.
    """

    column: str
    kind: str
    side: str
    deviation: float = 0.0

    def __str__(self) -> str:
        return f"{self.column}:{self.side}"


def limit(n: int) -> float:
    r"""Return the deviation from which on one of n series is an outlier.

    .. math:: z_n = 4.2\,(1 + 8 / n)

    The median absolute deviation of few values is itself uncertain: by simulation, the largest of n normal values passes
    3.5, the usual limit (Iglewicz and Hoaglin 1993), in 10 to 20 % of all groups of 6 to 100, and this limit in about 1 %.
    """
    return 4.2 * (1 + 8 / n)


def deviations(values: np.ndarray, column: Column) -> np.ndarray:
    """Return how far values (n,) lie from their median in robust standard deviations; NaN stays NaN."""
    centre = np.nanmedian(values)
    spread = SIGMA_OF_MAD * np.nanmedian(np.abs(values - centre))
    return (values - centre) / max(spread, column.spread, column.spread_share * abs(centre))


def find_outliers(
    values: Mapping[str, Mapping[str, float | str | None]], groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Flag]], list[str]]:
    """Return the outliers of every series, and the groups that are too small to have any.

    Only the bad side counts where one side is good, and of a group only those series that have the number.

    Parameters
    ----------
    values : mapping
        Name of a series -> column -> value.
    groups : mapping
        Name of a group -> names of its series.
    """
    flags: dict[str, list[Flag]] = {name: [] for name in values}
    small = []
    for group, members in groups.items():
        columns = dict.fromkeys(column for name in members for column in values[name])
        if sum(bool(values[name]) for name in members) < FEWEST:
            small.append(group)
            continue
        for column in columns:
            for name, flag in _outliers_in(column, {name: values[name].get(column) for name in members}):
                flags[name].append(flag)
    return flags, small


def _outliers_in(name: str, values: Mapping[str, float | str | None]) -> list[tuple[str, Flag]]:
    """Return the series that stand out in one column."""
    column = column_of(name)
    known = {series: value for series, value in values.items() if isinstance(value, float)}
    if not column.is_compared or len(known) < FEWEST:
        return []
    found = deviations(np.array(list(known.values())), column)
    flags = []
    for series, deviation in zip(known, found.tolist(), strict=True):
        side = "high" if deviation > 0 else "low"
        is_good = {"higher": "high", "lower": "low"}.get(column.better) == side
        if abs(deviation) > limit(len(known)) and not is_good:
            flags.append((series, Flag(name, "outlier", side, round(deviation, 1))))
    return flags


def out_of_range(values: Mapping[str, float | str | None]) -> list[Flag]:
    """Return the numbers of a series that are not those of a brain that was measured well."""
    sides = {name: column_of(name).side(value) for name, value in values.items()}
    return [Flag(name, "range", side) for name, side in sides.items() if side]
