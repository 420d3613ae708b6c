"""Count fibres that are not there, against noise and number of directions; prints a table and draws a figure.

    python tests/benchmarks/hallucination.py [--json FILE] [--figure FILE] [--weights FILE] [--methods ...]
                                             [--snr 8 15 30 60] [--directions 6 12 20 30 60 90] [--bvalue 1000]
                                             [--save] [--compare]

The volume holds one curved bundle in grey matter with CSF on one side, so every voxel has one fibre or none. A peak counts
as a fibre when it has a tenth of the amplitude that the same method gives to a full fibre in the same volume; it is false
in a voxel without fibres, and in a voxel filled with the bundle when it is not the one nearest to it within 25 degrees.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import peers
import results
import scenes
from found import Found
from results import Figure
from scenes import Scene
from scores import full_fibre_amplitude, peaks_per_voxel

from shd_bids import simulation
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.simulation.scoring import score_peaks

SHARE = 0.1
"""Amplitude of a counted peak, as a share of a full fibre's."""

GROUPS = {"gm": "grey matter", "csf": "CSF", "single": "one fibre"}


def main() -> int:
    """Measure every noise level and number of directions with every method."""
    parser = results.command(__doc__, threads=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--methods", nargs="+", default=["amortised", "msmt_csd", "csd"])
    parser.add_argument("--snr", nargs="+", type=float, default=[8, 15, 30, 60])
    parser.add_argument("--directions", nargs="+", type=int, default=[6, 12, 20, 30, 60, 90])
    parser.add_argument("--bvalue", type=float, default=1000)
    parser.add_argument("--size", type=int, default=18)
    options = results.parse(parser)
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    records = []
    for n_directions in options.directions:
        for snr in options.snr:
            scene = make_scene(n_directions, snr, bvalue=options.bvalue, size=options.size)
            for name, method in peers.methods(options.methods, weights).items():
                began = time.monotonic()
                record = {"directions": n_directions, "snr": snr, "method": name}
                try:
                    record |= false_fibres(method(scene), scene)
                except RuntimeError as error:  # MRtrix3 refuses too few directions
                    record["failed"] = str(error).splitlines()[-1]
                records.append(record | {"seconds": round(time.monotonic() - began, 1)})
                print(json.dumps(records[-1]), flush=True)
    if options.json:
        facts = {"bvalue": options.bvalue, "size": options.size, "weights_sha256": weights.sha256, "records": records}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(records, options.figure)
    return results.finish("hallucination", recorded(records, options, weights), options)


def recorded(records: list[dict], options: argparse.Namespace, weights: Weights) -> list[Figure]:
    """Return the false and missed fibres for each number of directions, noise level and method."""
    figures = []
    for record in records:
        sha = peers.sha_of(record["method"], weights)
        names = [name for name in (*GROUPS, "missed", "angular_error") if name in record]
        row = f"{record['directions']}, {record['snr']:g}"
        figures += [Figure(row, record["method"], name, record[name], options.threads, sha) for name in names]
    return figures


def make_scene(n_directions: int, snr: float, *, bvalue: float, size: int) -> Scene:
    """Simulate one bent bundle with a radius of a quarter of the volume, of one shell and a b=0 for eight directions."""
    rng = np.random.default_rng(scenes.FIRST_SEED)
    s = np.arange(-size, size, 0.25)
    curve = np.stack([s, 0.015 * s**2, 0.2 * s], axis=1) @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + (size - 1) / 2
    bundle = simulation.Bundle(curve, np.full(len(s), size / 4))
    phantom = simulation.build_phantom((bundle,), (size,) * 3, csf=simulation.csf_side(rng, size))
    return scenes.observe(rng, phantom, {bvalue: n_directions}, n_b0=max(1, n_directions // 8), snr=snr)


def false_fibres(found: Found, scene: Scene) -> dict[str, float]:
    """Return false fibres for each voxel of the three groups, and how many of the true ones were missed."""
    unit = full_fibre_amplitude(found.amplitudes, scene.fractions)
    kept = np.where(found.amplitudes > SHARE * unit, found.amplitudes, 0)
    single = scene.fractions.max(axis=1) > 0.9
    score = score_peaks(found.directions[single], kept[single], scene.truth[single], thresholds=np.zeros(1))
    counts = {tissue: peaks_per_voxel(kept[scene.without_fibres(tissue)], 0) for tissue in ("gm", "csf")}
    counts["single"] = float(score.false_positives[0] / max(score.n_voxels, 1))
    return {k: round(v, 4) for k, v in counts.items()} | {
        "missed": round(float(1 - score.recall[0]), 4),
        "angular_error": round(score.angular_error, 2),
    }


def draw(records: list[dict], path: Path) -> None:
    """Draw false fibres over directions: a panel for each tissue, a colour for each method, a shade for each noise level."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(
        zip(dict.fromkeys(r["method"] for r in records), ("#0b6e8f", "#c8552b", "#8a8a8a", "#6b4fa0"), strict=False)
    )
    levels = sorted({r["snr"] for r in records})
    directions = sorted({r["directions"] for r in records})
    figure, axes = plt.subplots(1, len(GROUPS), figsize=(9.6, 3.1), sharex=True, layout="constrained")
    for ax, (key, title) in zip(axes, GROUPS.items(), strict=True):
        for method, colour in colours.items():
            for i, snr in enumerate(levels):
                points = [r for r in records if r["method"] == method and r["snr"] == snr and key in r]
                points.sort(key=lambda r: r["directions"])
                strength = 0.3 + 0.7 * i / max(len(levels) - 1, 1)
                ax.plot(
                    [r["directions"] for r in points],
                    [r[key] for r in points],
                    "o-",
                    color=colour,
                    alpha=strength,
                    markersize=3.5,
                    linewidth=1.4,
                    label=method if snr == levels[-1] else None,
                )
        ax.set_title(title, fontsize=10)
        ax.set_xscale("log")
        ax.set_xticks(directions, [str(n) for n in directions])
        ax.minorticks_off()
        ax.set_yscale("symlog", linthresh=0.01)
        ax.set_ylim(-0.001, 12)
        ax.set_yticks([0, 0.01, 0.1, 1, 10], ["0", "0.01", "0.1", "1", "10"])
        ax.grid(color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("directions", fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0].set_ylabel("false fibres per voxel", fontsize=9)
    shades = f"pale to full: SNR {', '.join(f'{snr:g}' for snr in levels)}"
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    figure.text(0.99, 0.985, shades, ha="right", va="top", fontsize=8, color="0.4")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
