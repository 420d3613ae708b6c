"""What the figures of the experiments share: colours of methods, bars with intervals, sticks in a slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tests.benchmarks.paper.base import Done
from tests.benchmarks.paper.intervals import Interval, interval

WIDTH = 10.0
"""Of a figure, inches."""


def grouped(done: Sequence[Done], metric: str) -> dict[str, dict[str, Interval]]:
    """Return row -> method -> mean over seeds of a metric with its interval."""
    found: dict[str, dict[str, list[float]]] = {}
    for item in done:
        if metric in item.values:
            found.setdefault(item.unit.row, {}).setdefault(item.unit.method, []).append(item.values[metric])
    return {row: {method: interval(values) for method, values in at.items()} for row, at in found.items()}


def colours(methods: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return one colour for each method, the same for the same list."""
    return {method: colormaps["tab20"](i % 20) for i, method in enumerate(methods)}


def bars(
    ax: Axes, values: Mapping[str, Mapping[str, Interval]], *, label: str, methods: Sequence[str] | None = None
) -> None:
    """Draw a bar for each method in groups of rows, with intervals where there are several seeds.

    ``methods``, by default those with values, decide places and colours, the same in all panels of a figure. Intervals of two
    seeds are cut off above.
    """
    methods = methods or list(dict.fromkeys(m for at in values.values() for m in at))
    paint, width = colours(methods), 0.85 / len(methods)
    for i, method in enumerate(methods):
        rows = [(x, at[method]) for x, at in enumerate(values.values()) if method in at]
        places = [x + (i - (len(methods) - 1) / 2) * width for x, _ in rows]
        halves = [v.half if np.isfinite(v.half) else 0.0 for _, v in rows]
        heights = [v.mean for _, v in rows]
        ax.bar(
            places, heights, width, color=paint[method], yerr=halves, ecolor="0.3", error_kw={"lw": 0.8}, label=method
        )
    ax.set_xticks(range(len(values)), list(values))
    ax.set_ylim(0, 1.3 * max(v.mean for at in values.values() for v in at.values()))
    ax.set_ylabel(label)
    ax.spines[["top", "right"]].set_visible(False)


def sticks(ax: Axes, directions: np.ndarray, lengths: np.ndarray, where: np.ndarray) -> None:
    """Draw axes (n, K, 3) of the voxels of a slice, their places (n, 2) given, coloured by direction.

    Lengths (n, K) are relative to half a voxel.
    """
    shown = lengths > 0
    half = 0.5 * (directions * lengths[..., None])[shown][:, :2]
    centre = np.broadcast_to(where[:, None], (*lengths.shape, 2))[shown]
    lines = np.stack([centre - half, centre + half], axis=1)
    ax.add_collection(LineCollection(list(lines), colors=np.abs(directions[shown]).clip(0, 1), linewidths=1.2))
    ax.set(xticks=[], yticks=[], aspect="equal")
    low, high = where.min(axis=0) - 0.6, where.max(axis=0) + 0.6
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def legend(figure: Figure, *, columns: int) -> None:
    """Put one legend of all that the axes of a figure label above them."""
    found = {}
    for ax in figure.axes:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, fontsize=7, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 0.92))


def save(figure: Figure, file: Path) -> None:
    """Write a figure as its suffix says."""
    figure.savefig(file, dpi=110, bbox_inches="tight")
