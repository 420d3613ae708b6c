"""Compare fODF methods on real scans, where no truth is known but some things are: prints one table for each scan.

    python tests/benchmarks/invivo.py FOLDER [FOLDER ...] [--methods ...] [--measures peaks halves left_out] [--slices N]
                                      [--apart NAME ...] [--picture FILE] [--weights FILE] [--threads 1] [--save] [--compare]

Each FOLDER is a BIDS data set with one series and a brain mask under ``derivatives/``. Tissues and single fibres are those
of a tensor of the lowest shell, which no method is built on (`counts.tissues`). *peaks*: where FA is high there is one
fibre, along the main axis of the tensor; three in a voxel are rare in white matter, and grey matter and CSF hold none.
*halves*: odd and even directions of each shell, b=0 in both, are fitted apart and compared in white matter, and with the
tensor of the other half, whose noise they do not share. *left_out*: ``heldout.py`` with this package and ``msmt_csd``.
``--apart`` names folders whose slices are not neighbours.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import counts
import heldout
import numpy as np
import peers
import results
from counts import Samples
from found import Found, own_peaks
from matplotlib.figure import Figure as Picture
from measured import Series
from peers import Method
from results import METRICS, Values

from shd_bids.fod.weights import Weights, load_weights
from shd_bids.gradients.dti import fit_tensor, fractional_anisotropy
from shd_bids.gradients.table import GradientTable
from shd_bids.report.glyphs import draw_sticks
from shd_bids.report.view import slice_of, world_view

_TENSOR_DIRECTIONS = 12  # that the shell of the tensor has at least
_HALF_DIRECTIONS = 6  # that of the tensor of half a scan
_PREDICT = ("amortised", "subject", "msmt_csd")  # give what predicts the signal


def main() -> int:
    """Measure every scan, print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    figures = []
    for folder in options.folders:
        scan = heldout.read_scan(folder, n_slices=options.slices)
        is_apart = scan.name in options.apart
        methods = peers.methods(options.methods, weights, apart=is_apart)
        values, shown = measure(scan, methods, options.measures)
        if "left_out" in options.measures:
            predicted = left_out(scan, [name for name in methods if name in _PREDICT], weights, is_apart=is_apart)
            values = {name: parts | predicted.get(name, {}) for name, parts in values.items()}
        if options.picture and shown:
            draw(options.picture.with_stem(f"{options.picture.stem}_{scan.name}"), scan, shown)
        title = f"{scan.name} ({options.slices} slices)" if options.slices else scan.name
        print(*table(title, values), sep="\n", flush=True)
        figures += peers.figures_of(title, values, weights, threads=options.threads)
    return results.finish("invivo", figures, options)


def measure(scan: Series, methods: Mapping[str, Method], measures: list[str]) -> tuple[Values, dict[str, Found]]:
    """Return the figures of the peaks of a scan and of its halves, and the peaks."""
    tensors = fit_tensor(*_tensor_input(scan))
    values = {}
    shown: dict[str, Found] = {}
    for name, method in methods.items():
        samples: dict[str, Samples] = {}
        if "peaks" in measures:
            shown[name] = _fit(name, method, scan, scan.mask)
            samples |= counts.measure_scan(shown[name].directions, tensors)
        if "halves" in measures:
            samples |= halves(scan, partial(_fit, name, method), tensors)
        values[name] = {region: counts.pool([s]) for region, s in samples.items() if any(map(len, s.values()))}
    return values, shown


def halves(scan: Series, fit: Callable[[Series, np.ndarray], Found], tensors: np.ndarray) -> dict[str, Samples]:
    """Fit odd and even directions of each shell and compare them in white matter, and with the tensor of the other half."""
    white = np.zeros_like(scan.mask)
    white[scan.mask] = is_white = counts.tissues(tensors)["white matter"]
    parts = [_select(scan, rows) for rows in counts.odd_and_even(scan.gradients)]
    one, other = (fit(part, white) for part in parts)
    samples = counts.measure_halves(one.directions, other.directions)
    if one.coefficients is not None:
        samples["fod_correlation"] = counts.correlation(one.coefficients, other.coefficients)
    of_one, of_other = (fit_tensor(*_tensor_input(part, least=_HALF_DIRECTIONS))[is_white] for part in parts)
    crossed = counts.measure_across((one.directions, other.directions), (of_other, of_one), tensors[is_white])
    return {"white matter, halves": samples, "FA above 0.6, tensor of the other half": crossed}


def left_out(scan: Series, names: list[str], weights: Weights, *, is_apart: bool) -> Values:
    """Return the error on a fifth of the directions by shell, for the methods that predict the signal."""
    parts = peers.split_slices(scan.mask) if is_apart else [scan.mask]
    records = heldout.compare(scan, parts, weights, folds=1, methods=names, seed=0) if names else []
    return {
        r["method"]: {
            f"left out, b {key[1:]}": {"rmse": r[key], "rmse_median": r[f"{key}_median"]}
            for key in r
            if key[:1] == "b" and key[1:].isdigit()
        }
        for r in records
    }


def draw(path: Path, scan: Series, found: Mapping[str, Found]) -> None:
    """Draw the peaks of each method, coloured by direction, over the FA of a coronal and an axial slice."""
    view = world_view(scan.mask.shape, scan.affine, scan.mask)
    cuts = [cut for cut in view.cuts() if cut.plane.name != "sagittal"]
    row_of = np.full(scan.mask.shape, -1)
    row_of[scan.mask] = np.arange(scan.mask.sum())
    fa = np.zeros(scan.mask.shape)
    fa[scan.mask] = fractional_anisotropy(fit_tensor(*_tensor_input(scan)))
    width = 9.0  # inches of a panel
    figure = Picture(figsize=(width * len(found), sum(width / view.aspect(cut.plane) for cut in cuts)))
    heights = [1 / view.aspect(cut.plane) for cut in cuts]
    panels = figure.subplots(len(cuts), len(found), squeeze=False, height_ratios=heights)
    figure.subplots_adjust(0, 0, 1, 0.97, 0.01, 0.01)
    for column, (name, peaks) in zip(panels.T, found.items(), strict=True):
        scale = float(np.percentile(peaks.amplitudes[:, 0][fa[scan.mask] > 0.3], 75))
        column[0].set_title(name, fontsize=14)
        for ax, cut in zip(column, cuts, strict=True):
            extent = view.extent(cut.plane)
            background = slice_of(view.volume(fa), cut)
            ax.imshow(background, origin="lower", extent=extent, cmap="gray", vmin=0, vmax=2)
            rows = slice_of(view.volume(row_of), cut)
            draw_sticks(ax, view, cut, (peaks.directions, peaks.amplitudes), rows, scale=scale, width=1.0)
            ax.set(xticks=[], yticks=[], aspect="equal")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def table(title: str, values: Values) -> list[str]:
    """Return Markdown: a line for each region and metric, a column for each method."""
    lines = ["", title, "", f"|  |  | {' | '.join(values)} |", "|---" * (len(values) + 2) + "|"]
    keys = dict.fromkeys((region, metric) for parts in values.values() for region, m in parts.items() for metric in m)
    for region, metric in keys:
        found = [parts.get(region, {}).get(metric) for parts in values.values()]
        cells = ("" if value is None else METRICS[metric].form.format(value) for value in found)
        lines.append(f"| {region} | {METRICS[metric].label} | {' | '.join(cells)} |")
    return lines


def _fit(name: str, method: Method, scan: Series, where: np.ndarray) -> Found:
    return own_peaks(name, method(scan, where=where))


def _select(scan: Series, rows: np.ndarray) -> Series:
    return replace(scan, signal=scan.signal[..., rows], gradients=scan.gradients.select(rows))


def _tensor_input(scan: Series, *, least: int = _TENSOR_DIRECTIONS) -> tuple[np.ndarray, GradientTable]:
    """Return signal (n, N) and gradients of b=0 and the lowest shell with at least so many directions."""
    shells = scan.gradients.shells
    number = next(i for i, s in enumerate(shells) if i and len(s.indices) >= least)
    rows = np.sort(np.concatenate([shells[0].indices, shells[number].indices]))
    return scan.signal[scan.mask][:, rows], scan.gradients.select(rows)


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=["amortised", "msmt_csd"])
    measures = ["peaks", "halves", "left_out"]
    parser.add_argument("--measures", nargs="+", default=measures, choices=measures)
    parser.add_argument("--slices", type=int, help="middle axial slices only")
    parser.add_argument("--apart", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
