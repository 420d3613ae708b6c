"""Compare fODF methods on bundles that disperse, fan, bend and cross; prints one table for each protocol and noise level.

    python tests/benchmarks/tissue.py [--methods ...] [--rows ...] [--seeds 1] [--side 5] [--weights FILE] [--threads 1]
                                      [--save] [--compare]

A bundle is one fibre, however wide its directions spread. ``dispersed.py`` makes the volumes; all methods get the same
files, estimate their own responses, and show the peaks that their own tools show (`found.RULES`). In voxels of one
bundle the table gives the share with exactly one peak and the median error of the largest; in voxels of two, the share
where both were found and the share with exactly two peaks, and the median error of the largest; in grey matter and CSF, the
share with a peak. Between two bundles at 40 degrees that each disperse by 20 the density is flat: two peaks are a guess there.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping

import dispersed
import peers
import results
from counts import Samples, measure, pool
from dispersed import ROWS, Volume
from found import Found, own_peaks
from results import METRICS, Values

from shd_bids.fod.weights import load_weights


def main() -> int:
    """Run every row with every method, and print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    methods = peers.methods(options.methods, weights, to_border=True)
    figures = []
    for protocol, snr in (ROWS[number] for number in options.rows):
        volumes = (dispersed.make_volume(protocol, snr, seed=s, side=options.side) for s in range(options.seeds))
        pooled, seconds = measure_volumes(volumes, methods)
        print(*table(f"{protocol}, SNR {snr}", pooled, seconds), sep="\n", flush=True)
        figures += peers.figures_of(f"{protocol}, {snr}", pooled, weights, threads=options.threads)
    return results.finish("tissue", figures, options)


def measure_volumes(
    volumes: Iterable[Volume], methods: Mapping[str, Callable[..., Found]], *, rule: str = ""
) -> tuple[Values, Mapping[str, float]]:
    """Return what methods find in each region, the voxels of all volumes together, and the seconds that each took.

    ``rule`` names the entry of `found.RULES` for all; by default each method has its own.
    """
    samples: dict[str, dict[str, list[Samples]]] = {name: {} for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for volume in volumes:
        for name, method in methods.items():
            began = time.monotonic()
            found = own_peaks(rule or name, method(volume, where=volume.scored))
            seconds[name] += time.monotonic() - began
            for region in volume.regions:
                values = measure(found.directions[volume.rows(region)], region.axes)
                samples[name].setdefault(region.name, []).append(values)
    return {name: {region: pool(s) for region, s in parts.items()} for name, parts in samples.items()}, seconds


def table(title: str, values: Values, seconds: Mapping[str, float]) -> list[str]:
    """Return Markdown: a line for each region, a column for each method, the metrics of a cell apart by ``/``."""
    names = list(values)
    lines = ["", title, "", _line(["", *names]), "|---" * (len(names) + 1) + "|"]
    regions = values[names[0]]
    for metrics in dict.fromkeys(tuple(v) for v in regions.values()):
        lines.append(_line([f"**{' / '.join(METRICS[m].label for m in metrics)}**", *[""] * len(names)]))
        for region in (r for r, v in regions.items() if tuple(v) == metrics):
            lines.append(_line([region, *(_cell(values[name][region]) for name in names)]))
    return [*lines, _line(["seconds", *(f"{seconds[name]:.0f}" for name in names)])]


def _cell(values: Mapping[str, float]) -> str:
    return " / ".join(METRICS[metric].form.format(value) for metric, value in values.items())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("--methods", nargs="+", default=["amortised", "msmt_csd", "csd", "dipy_csd", "rumba"])
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))), choices=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--side", type=int, default=5, help="of a cube, voxels")
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
