"""Check what is stored beside each peak against the truth of dispersed bundles: its interval and its dispersion.

    python tests/benchmarks/uncertainty.py [--rows ...] [--seeds 1] [--side 5] [--weights FILE] [--threads 1] [--save] [--compare]

``dispersed.py`` makes the volumes, whose simulation the numbers behind the intervals never saw. Each bundle goes with its
nearest peak, if that counts as found (`counts.TOLERANCE`). *coverage*: share of the peaks whose 90 % interval holds the axis
of the bundle; *interval*: its median. *dispersion*: median error of the dispersion along and across of lone bundles, to
which that of the bundles behind the response is added.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict

import counts
import dispersed
import numpy as np
import peers
import results
from dispersed import CONFIGURATIONS, RESPONSE_SPREAD, ROWS, Region, Volume
from measured import scan_of
from results import Figure
from selection import select

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.options import PeakOptions, Runtime
from shd_bids.peaks.fibres import find_fibres

_WIDTHS = {c.name: sorted(c.spreads[0], reverse=True) for c in CONFIGURATIONS if len(c.spreads) == 1}


def main() -> int:
    """Run every row, print and record it."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    figures: list[Figure] = []
    for protocol, snr in (ROWS[number] for number in options.rows):
        samples: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
        for seed in range(options.seeds):
            volume = dispersed.make_volume(protocol, snr, seed=seed, side=options.side)
            shown = _Shown(volume, weights)
            for region in volume.regions:
                if region.axes.shape[1]:
                    name = ("one bundle", "two bundles")[region.axes.shape[1] - 1]
                    for metric, values in shown.measure(region).items():
                        samples[name][metric].append(values)
        values = {"amortised": {name: _summary(parts) for name, parts in samples.items()}}
        row = f"{protocol}, {snr}"
        print(
            row, *(f"  {name}: {_line(metrics)}" for name, metrics in values["amortised"].items()), sep="\n", flush=True
        )
        figures += peers.figures_of(row, values, weights, threads=options.threads)
    return results.finish("uncertainty", figures, options)


class _Shown:
    """Peaks, intervals and dispersions of a volume, as the app stores them."""

    def __init__(self, volume: Volume, weights: Weights):
        self._volume = volume
        self._scored = np.flatnonzero(volume.scored[volume.mask])
        responses, _ = select(volume, to_border=True)
        scan = scan_of(volume, responses)
        fod = fit_fod(scan, weights, runtime=Runtime(device="cpu"))
        white, fluid = fod.fractions[:, 0], fod.fractions[:, 2]
        self._shown = find_fibres(
            fod.wm,
            PeakOptions(),
            wm_fraction=white,
            csf_fraction=fluid,
            prominence=fod.facts.prominence,
            direction_errors=fod.direction_errors,
        )

    def measure(self, region: Region) -> dict[str, np.ndarray]:
        """Return the values of each bundle that was found in a region."""
        rows = self._scored[self._volume.rows(region)]
        errors = counts.angles(self._shown.peaks.directions[rows], region.axes)  # (n, K, F)
        n_axes = region.axes.shape[1]
        between = 180.0 if n_axes == 1 else counts.angles(region.axes[:, :1], region.axes[:, 1:])[:, 0, 0]
        nearest, error = errors.argmin(axis=1), errors.min(axis=1)  # (n, F)
        found = error < np.minimum(counts.TOLERANCE, np.asarray(between) / 2).reshape(-1, 1)
        interval = np.take_along_axis(self._shown.intervals[rows], nearest, axis=1)
        values = {"coverage": (error < interval)[found], "interval": interval[found]}
        if region.name in _WIDTHS and n_axes == 1:
            within = self._shown.lobes.dispersion[rows, nearest[:, 0]][found[:, 0]]
            whole = np.hypot(within, np.asarray(RESPONSE_SPREAD))
            values["dispersion"] = np.abs(whole - np.asarray(_WIDTHS[region.name])).mean(axis=1)
        return values


def _summary(parts: dict[str, list[np.ndarray]]) -> dict[str, float]:
    pooled = {metric: np.concatenate(values) for metric, values in parts.items()}
    return {metric: float(np.mean(v) if metric == "coverage" else np.median(v)) for metric, v in pooled.items()}


def _line(metrics: dict[str, float]) -> str:
    return ", ".join(
        f"{results.METRICS[name].label} {results.METRICS[name].form.format(v)}" for name, v in metrics.items()
    )


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))), choices=range(len(ROWS)))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--side", type=int, default=5, help="of a cube, voxels")
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
