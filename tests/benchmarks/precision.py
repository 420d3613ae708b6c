"""Measure what products in bfloat16 change in fODFs and peaks, and whether those that are the default are as good as float32.

    python tests/benchmarks/precision.py [FOLDER ...] [--rows needles curved tissue] [--size 16] [--slices 8] [--turns 1]
                                         [--apart NAME] [--weights FILE] [--threads 1] [--save] [--compare]

All fits are of the same scan by the package's own defaults, from the input of the network to the peaks that count. The
volumes are those of ``accuracy.py`` (*needles*, *curved*) and ``tissue.py`` (*tissue*), and each FOLDER a real scan as in
``invivo.py``. As good as float32 is, in every row, a median change of the largest peak of 0.05 degrees at most, an area under
precision and recall equal to 0.001, and a number of peaks equal to 0.2 %. The exit code is 1 if ``mixed``, the default of
processors that multiply bfloat16, is not. Beside them stands the share of voxels in which the number of peaks changes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import dispersed
import heldout
import numpy as np
import results
import scenes
from found import find_maxima
from measured import Measured, scan_of
from peers import split_slices
from results import METRICS, Figure
from selection import select

from shd_bids.api import find_peaks
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.fod import FOD
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.options import Runtime
from shd_bids.scan import Scan
from shd_bids.simulation.scoring import score_peaks

PROTOCOL, SNR, SIDE = "ABCD", 30, 5
ROUNDED = {"mixed": "auto", "bf16": "bf16"}
"""Name of an arithmetic -> how it is asked for; it is compared with float32."""

MOST = {"peak_change": 0.05, "pr_area_change": 0.001, "count_change": 0.2}
"""Metric -> largest change that is allowed: degrees, area, percent of the peaks."""


def main() -> int:
    """Compare the fits of every scan, and print and record the changes."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    figures = []
    for row, scan, truth in _scans(options):
        for name, values in compare(scan, weights, truth, turns=options.turns).items():
            told = (f"{METRICS[metric].label} {METRICS[metric].form.format(v)}" for metric, v in values.items())
            print(f"{row:<20} {name:<5}", *told, sep="  ", flush=True)
            figures += [Figure(row, name, n, v, options.threads, weights.sha256[:12]) for n, v in values.items()]
    too_much = [figure for figure in figures if figure.value > MOST.get(figure.metric, np.inf)]
    for figure in too_much:
        print(f"{figure.method} changes too much: {figure.row}: {METRICS[figure.metric].label} {figure.value:.4g}")
    return max(results.finish("precision", figures, options), int(any(f.method == "mixed" for f in too_much)))


def compare(scan: Scan, weights: Weights, truth: np.ndarray | None, *, turns: int) -> dict[str, dict[str, float]]:
    """Return the changes from float32 by arithmetic and metric; ``truth``, (n, G, 3), holds the known axes, or NaN."""
    asked = {"float32": "float32"} | ROUNDED
    fods: dict[str, FOD] = {}
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for name in list(asked) * turns:
        began = time.process_time()
        fods[name] = fit_fod(scan, weights, runtime=Runtime(device="cpu", precision=asked[name]))
        seconds[name].append(time.process_time() - began)
        if fods[name].facts.precision != name:
            sys.exit(
                f"{asked[name]} is {fods[name].facts.precision} here, expected a processor that multiplies bfloat16"
            )
    exact = fods["float32"]
    areas = {} if truth is None else {name: area(fod, truth) for name, fod in fods.items()}
    return {
        name: changes(exact, fods[name])
        | ({"pr_area_change": abs(areas[name] - areas["float32"])} if areas else {})
        | {"time_share": min(seconds[name]) / min(seconds["float32"])}
        for name in ROUNDED
    }


def changes(exact: FOD, rounded: FOD) -> dict[str, float]:
    """Return how far two fits of one scan differ: in percent, and of the largest peak in degrees."""
    one, other = peaks_of(exact), peaks_of(rounded)
    both = one[:, 0].any(axis=1) & other[:, 0].any(axis=1)
    n_one, n_other = (found.any(axis=2).sum(axis=1) for found in (one, other))
    return {
        "peak_change": float(np.median(small_angles(one[both][:, 0], other[both][:, 0]))),
        "count_change": 100 * abs(int(n_other.sum()) - int(n_one.sum())) / int(n_one.sum()),
        "voxels_changed": 100 * float((n_one != n_other).mean()),
        "fod_difference": 100 * float(np.linalg.norm(rounded.wm - exact.wm) / np.linalg.norm(exact.wm)),
    }


def small_angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the angles between axes (n, 3), degrees, by their chord: the cosine of a small angle is one to rounding."""
    one, other = one.astype(float), other.astype(float)
    chord = np.minimum(np.linalg.norm(one - other, axis=1), np.linalg.norm(one + other, axis=1))
    return np.degrees(2 * np.arcsin(chord / 2))


def peaks_of(fod: FOD) -> np.ndarray:
    """Return the directions that count as fibres, (n, K, 3), by the defaults of the app."""
    return find_peaks(fod, device="cpu").directions


def area(fod: FOD, truth: np.ndarray) -> float:
    """Return the area under precision and recall, in voxels whose axes are known."""
    known = ~np.isnan(truth).any(axis=(1, 2))
    found = find_maxima(fod.wm[known])
    return score_peaks(found.directions, found.amplitudes, truth[known]).pr_area


def _scans(options: argparse.Namespace) -> Iterator[tuple[str, Scan, np.ndarray | None]]:
    """Yield the name of each row, its scan, and the true axes where they are known."""
    for row in options.rows:
        volume, truth = _tissue() if row == "tissue" else _needles(row, options.size)
        yield row, scan_of(volume, select(volume, to_border=True)[0]), truth
    for folder in options.folders:
        series = heldout.read_scan(folder, n_slices=options.slices)
        scan = scan_of(series, select(series, to_border=False)[0])
        if series.name in options.apart:
            scan = scan.within(split_slices(series.mask)[0])
        yield f"{series.name}, {options.slices} slices", scan, None


def _needles(row: str, size: int) -> tuple[Measured, np.ndarray]:
    kind = "crossing" if row == "needles" else row
    volume = next(scenes.scenes(kind, PROTOCOL, SNR, n_seeds=1, size=size, model="sticks", folder=None))
    return volume, volume.truth


def _tissue() -> tuple[Measured, np.ndarray]:
    """Return a volume of dispersed bundles, and the axes in the voxels that are scored; NaN elsewhere."""
    volume = dispersed.make_volume(PROTOCOL, SNR, seed=0, side=SIDE)
    truth = np.full((volume.mask.size, 2, 3), np.nan)
    for region in volume.regions:
        truth[region.voxels] = 0
        truth[region.voxels, : region.axes.shape[1]] = region.axes
    return volume, truth


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--rows", nargs="*", default=["needles", "curved", "tissue"], choices=["needles", "curved", "tissue"]
    )
    parser.add_argument("--size", type=int, default=16, help="of the simulated cubes, voxels")
    parser.add_argument("--turns", type=int, default=1, help="fits of which the least time counts")
    parser.add_argument("--slices", type=int, default=8, help="of a real scan")
    parser.add_argument(
        "--apart", nargs="+", default=[], metavar="NAME", help="folders whose slices are not neighbours"
    )
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
