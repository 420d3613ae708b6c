"""What is known of the columns of the quality table: names for people, expected ranges, and which way is good."""

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from shd_bids.report.expected import EXPECTED

__all__ = ["Column", "column_of", "key_columns"]


@dataclass(frozen=True)
class Column:
    """One number of the quality table.

    Attributes
    ----------
    pattern : str
        Regular expression of its names.
    label : str
        Short name for a heading.
    range : (low, high)
        What is expected of a brain of an adult or a child; None for no bound.
    expected : str, optional
        The only right value of a column of text.
    better : {"higher", "lower", "neither", ""}
        Which way is good; ``neither`` where both ends are suspect, empty where series are not compared.
    spread, spread_share : float
        Least standard deviation that differences are measured by: in the unit of the column, and relative to the median. Series
        are compared where one of them is given.
    is_shown : bool
        Whether it is in the page from the start.
    """

    pattern: str
    label: str
    range: tuple[float | None, float | None] = (None, None)
    expected: str | None = None
    better: str = ""
    spread: float = 0.0
    spread_share: float = 0.0
    is_shown: bool = False

    @property
    def is_compared(self) -> bool:
        """Whether a series can be an outlier in it."""
        return bool(self.spread or self.spread_share)

    def side(self, value: Any) -> str:
        """Return on which side of what is expected a value lies: ``low``, ``high``, ``wrong``, or empty."""
        if self.expected is not None:
            return "" if value in (None, self.expected) else "wrong"
        if not isinstance(value, float):
            return ""
        low, high = self.range
        return "low" if low is not None and value < low else "high" if high is not None and value > high else ""

    def to_dict(self) -> dict[str, Any]:
        """Return what the column dictionary adds to the description and the unit."""
        content: dict[str, Any] = {"LongName": self.label}
        if self.expected is not None:
            content["ExpectedValue"] = self.expected
        if self.range != (None, None):
            content["ExpectedRange"] = list(self.range)
        if self.better:
            content["Better"] = self.better
        return content | {"Compared": self.is_compared}


@lru_cache
def _known() -> tuple[Column, ...]:
    content = json.loads(files("shd_bids.study").joinpath("columns.json").read_text("utf-8"))
    return tuple(Column(**{**row, "range": tuple(row.get("range", (None, None)))}) for row in content)


@lru_cache
def column_of(name: str) -> Column:
    """Return what is known of a column, nothing but its name where it is unknown."""
    found = next((column for column in _known() if re.fullmatch(column.pattern, name)), None)
    found = found or Column(name, name.replace("_", " "))
    known = EXPECTED.get(name)
    return replace(found, range=(known.low, known.high)) if known else found


def key_columns(names: list[str]) -> list[str]:
    """Return the names in the order of importance, unknown ones last in their own order."""
    rank = {column.pattern: number for number, column in enumerate(_known())}
    return sorted(names, key=lambda name: rank.get(column_of(name).pattern, len(rank)))
