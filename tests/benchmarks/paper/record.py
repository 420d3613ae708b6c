"""Recorded values of the experiments, one row for each seed, and the tables that are printed from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import results
from results import METRICS, Figure, Record

from tests.benchmarks.paper.base import Claim, Done, Experiment
from tests.benchmarks.paper.intervals import VERDICTS, Interval, interval, verdict

_SEED = ", seed "


def figures(done: Iterable[Done], scale: str, *, threads: int) -> list[Figure]:
    """Return the values of kept outcomes as figures of a results file."""
    weights = results.shipped_weights()
    return [
        Figure(
            row=f"{scale}, {item.unit.row}{_SEED}{item.unit.seed}",
            method=item.unit.method,
            metric=metric,
            value=value,
            threads=threads,
            weights_sha=weights if item.unit.uses_weights else "",
        )
        for item in done
        for metric, value in item.values.items()
        if metric in METRICS
    ]


def by_seed(records: Sequence[Record], scale: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return (row, method, metric) -> seed -> value of one scale."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for record in records:
        at, _, rest = record.row.partition(", ")
        row, _, seed = rest.rpartition(_SEED)
        if at == scale:
            found.setdefault((row, record.method, record.metric), {})[seed] = record.value
    return found


def table(experiment: Experiment, scale: str) -> list[str]:
    """Return the recorded means and intervals in Markdown, one line for each method, row by row."""
    values = by_seed(results.read(experiment.source), scale)
    shown = [m for m in experiment.metrics if any(key[2] == m for key in values)]
    lines = [_line(["row", "method", *(METRICS[m].label for m in shown), "seeds"]), "|---" * (len(shown) + 3) + "|"]
    rows = list(dict.fromkeys(row for row, _, _ in values))
    for row, method in sorted(dict.fromkeys(key[:2] for key in values), key=lambda key: rows.index(key[0])):
        cells = [values.get((row, method, metric), {}) for metric in shown]
        seeds = max(len(cell) for cell in cells)
        lines.append(_line([row, method, *map(_cell, shown, cells), str(seeds)]))
    return lines


def claims(experiment: Experiment, scale: str) -> list[str]:
    """Return each claim of the paper with our paired difference over seeds and what it says, in Markdown."""
    lines = [_line(["claim", "row", "measure", "gain", "verdict"]), "|---" * 5 + "|"]
    for claim, row, gain in gains(experiment, scale):
        cells = (claim.text, row, METRICS[claim.metric].label, _text(gain, claim.metric, "+"))
        lines.append(_line([*cells, verdict(gain, margin=claim.margin)]))
    return lines


def summary(experiments: Iterable[Experiment], scale: str) -> list[str]:
    """Return how often each claim holds, fails or is open over the rows and measures that it is checked in, in Markdown."""
    lines = [_line(["experiment", "claim", *VERDICTS]), "|---" * (2 + len(VERDICTS)) + "|"]
    for experiment in experiments:
        found: dict[str, list[str]] = {}
        for claim, _, gain in gains(experiment, scale):
            found.setdefault(claim.text, []).append(verdict(gain, margin=claim.margin))
        for text, says in found.items():
            lines.append(_line([experiment.name, text, *(str(says.count(v) or "") for v in VERDICTS)]))
    return lines


def gains(experiment: Experiment, scale: str) -> Iterator[tuple[Claim, str, Interval]]:
    """Yield each claim, a row that it is about, and the gain there, where both of its methods are recorded."""
    values = by_seed(results.read(experiment.source), scale)
    for claim in experiment.claims:
        for row in claim.rows or tuple(dict.fromkeys(key[0] for key in values)):
            gain = paired(values, claim, row)
            if gain.n:
                yield claim, row, gain


def paired(values: dict[tuple[str, str, str], dict[str, float]], claim: Claim, row: str) -> Interval:
    """Return the gain of the better method over the worse, positive where it is better, over their common seeds."""
    first, second = (values.get((row, method, claim.metric), {}) for method in (claim.better, claim.worse))
    sign = 1 if METRICS[claim.metric].larger_is_better else -1
    return interval([sign * (first[seed] - second[seed]) for seed in first if seed in second])


def _cell(metric: str, values: dict[str, float]) -> str:
    return _text(interval(list(values.values())), metric) if values else ""


def _text(found: Interval, metric: str, sign: str = "") -> str:
    """Return a mean and half its interval in the form of a metric."""
    form = METRICS[metric].form
    mean = form.replace("{:", "{:" + sign).format(found.mean)
    return mean if not np.isfinite(found.half) else f"{mean} ± {form.format(found.half)}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
