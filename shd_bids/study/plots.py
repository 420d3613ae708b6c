"""Distributions of a number over the groups of a study, as SVG: a box and one mark for each series."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from shd_bids.study.columns import Column

__all__ = ["Distribution", "draw_distribution", "short"]

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 340, 34, 8, 8, 4, 20
JITTER = 9  # pixels up and down
TICKS = 4


@dataclass(frozen=True)
class Distribution:
    """Values of one column.

    Attributes
    ----------
    column : Column
    groups : mapping
        Name of a group -> numbers of its series in the table -> value.
    outliers : set of int
        Numbers of the series that stand out.
    unit : str
    """

    column: Column
    groups: Mapping[str, Mapping[int, float]]
    outliers: frozenset[int]
    unit: str = ""

    @property
    def summary(self) -> str:
        """What the picture shows, in words."""
        parts = []
        for name, values in self.groups.items():
            numbers = np.array(list(values.values()))
            low, middle, high = np.percentile(numbers, (25, 50, 75))
            parts.append(
                f"{name}: {len(numbers)} series, median {short(middle)}, quartiles {short(low)} to {short(high)}"
            )
        return "; ".join(parts) + f"; {len(self.outliers)} outliers"


def short(value: float) -> str:
    """Return a number with three digits, whole where it is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw_distribution(item: Distribution) -> Markup:
    """Return the picture; each mark carries the number of its series, so that a page can point at it."""
    scale = _Scale.over([value for values in item.groups.values() for value in values.values()], item.column)
    height = TOP + ROW * len(item.groups) + BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(item.column.label)}: {escape(item.summary)}">'
    ]
    parts += _expected(item.column, scale, height)
    for row, (name, values) in enumerate(item.groups.items()):
        parts += _group(name, values, item.outliers, scale, TOP + ROW * row)
    parts += _axis(scale, height)
    return Markup("".join(parts) + "</svg>")


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], column: Column) -> "_Scale":
        """Return the scale that shows all values, and the bound of what is expected where one lies near."""
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        near = [bound for bound in column.range if bound is not None and low - 6 * margin <= bound <= high + 6 * margin]
        return cls(min(low, *near, low) - margin, max(high, *near, high) + margin)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return LEFT + min(max(share, 0), 1) * (WIDTH - LEFT - RIGHT)


def _expected(column: Column, scale: _Scale, height: int) -> list[str]:
    """Return a band over what is expected."""
    if column.range == (None, None):
        return []
    low, high = (
        bound if bound is not None else end for bound, end in zip(column.range, (-math.inf, math.inf), strict=True)
    )
    left, right = scale(low), scale(high)
    return [
        f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{height - TOP - BOTTOM}"/>'
    ]


def _group(name: str, values: Mapping[int, float], outliers: frozenset[int], scale: _Scale, top: float) -> list[str]:
    """Return the name, the box and the marks of a group."""
    low, middle, high = (scale(value) for value in np.percentile(list(values.values()), (25, 50, 75)))
    y = top + ROW / 2 + 5
    parts = [
        f'<text class="group" x="{LEFT}" y="{top + 9}">{escape(name)}</text>',
        f'<rect class="box" x="{low:.1f}" y="{y - 8:.1f}" width="{max(high - low, 1):.1f}" height="16"/>',
        f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}"/>',
    ]
    for number, value in values.items():
        x, place = scale(value), y + JITTER * (2 * _spread(number) - 1)
        if number in outliers:  # another shape, not another colour alone
            points = f"{x:.1f},{place - 4:.1f} {x + 4:.1f},{place:.1f} {x:.1f},{place + 4:.1f} {x - 4:.1f},{place:.1f}"
            parts.append(f'<polygon class="out" data-i="{number}" points="{points}"/>')
        else:
            parts.append(f'<circle data-i="{number}" cx="{x:.1f}" cy="{place:.1f}" r="2"/>')
    return parts


def _spread(number: int) -> float:
    """Return a place in 0..1 for a mark, evenly spread and always the same (multiples of the golden ratio)."""
    return (number * 0.6180339887) % 1.0


def _axis(scale: _Scale, height: int) -> list[str]:
    """Return the ticks with their numbers."""
    step = 10 ** math.floor(math.log10((scale.high - scale.low) / TICKS))
    step = next(factor * step for factor in (1, 2, 5, 10) if (scale.high - scale.low) / (factor * step) <= TICKS + 1)
    first = math.ceil(scale.low / step)
    y = height - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    for number in range(first, math.floor(scale.high / step) + 1):
        x = scale(number * step)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 15}">{_tick(number * step)}</text>')
    return parts


def _tick(value: float) -> str:
    """Return the number at a tick, which few digits tell exactly."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
