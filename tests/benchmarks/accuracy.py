"""Compare fODF methods on simulated volumes with known truth; prints tables and saves all figures as JSON.

    python tests/benchmarks/accuracy.py [--json FILE] [--weights FILE] [--methods ...] [--rows ...] [--kinds ...]
                                        [--geometry DIR] [--seeds 2] [--size 20] [--cache DIR] [--save] [--compare]
    python tests/benchmarks/accuracy.py --show FILE ...

The volumes are straight crossings, curved bundles of the training generator with seeds that training never reaches, and
with ``--geometry`` the bundles of published phantoms. All methods get the same files and are scored alike; README.md
beside this file defines every figure. ``--cache`` keeps what the methods without weights found, so that new weights are
compared in the time that they take alone. ``--show`` prints the tables of saved files and runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import dipy_methods
import numpy as np
import peers
import results
import scenes
from found import Found, find_maxima
from peers import Method
from results import METRICS, Figure
from scenes import ROWS, Scene
from scores import fnr_at, full_fibre_amplitude, peaks_per_voxel

from shd_bids.fod.weights import load_weights
from shd_bids.simulation.scoring import PeakScore, pooled, score_by_crossing, score_peaks
from shd_bids.sphere.harmonics import n_coefficients, sh_basis

EDGES = (0.0, 19.5, 45.5, 70.5, 90.0)
"""Bins of the crossing angle; half a degree off the round angles of the phantoms, which else fall on either side."""

NARROW = "19.5-45.5"
SHARES = (0.05, 0.1, 0.2)
"""Thresholds in voxels without fibres, as shares of the amplitude that the same method gives to a full fibre."""

NAMES = (
    "pr_area",
    "f1",
    "angular_error",
    "fnr",
    "fdr",
    "narrow_f1",
    "narrow_missed",
    "gm_0.1",
    "csf_0.1",
    "gm_own",
    "csf_own",
)
COLUMNS = {name: (METRICS[name].label, METRICS[name].form) for name in NAMES}


def main() -> int:
    """Run every row, print it as it comes, then the tables."""
    options = _options()
    if options.show:
        records = [r for file in options.show for r in json.loads(file.read_text(encoding="utf-8"))["records"]]
        print(*tables(records), *overview(records), sep="\n")
        return 0
    warnings.simplefilter("ignore")
    if "published" in options.kinds and options.geometry is None:
        raise SystemExit("the kind 'published' needs --geometry DIR")
    weights = load_weights(options.weights)
    methods = peers.methods(options.methods, weights)
    records = []
    for kind in options.kinds:
        for row in options.rows:
            protocol, snr = ROWS[row]
            volumes = list(
                scenes.scenes(
                    kind,
                    protocol,
                    snr,
                    n_seeds=options.seeds,
                    size=options.size,
                    model=options.model,
                    folder=options.geometry,
                )
            )
            group = []
            for name, method in {"truth": None, **methods}.items():
                began = time.monotonic()
                found = [_find(name, method, scene, options.cache) if method else truth(scene) for scene in volumes]
                record = {"kind": kind, "protocol": protocol, "snr": snr, "method": name, "volumes": len(volumes)}
                group.append(record | figures(found, volumes) | {"seconds": round(time.monotonic() - began, 1)})
                print(f"{kind:9s} {protocol:14s} SNR {snr:2d}  {name:10s} {_line(group[-1])}", flush=True)
            compare_narrow(group)
            records += group
            if options.json:
                facts = {"seeds": options.seeds, "size": options.size, "model": options.model}
                facts |= {"weights_sha256": weights.sha256, "records": records}
                options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(*tables(records), *overview(records), sep="\n")
    return results.finish("accuracy", recorded(records, options, weights.sha256), options)


def recorded(records: Sequence[dict], options: argparse.Namespace, sha256: str) -> list[Figure]:
    """Return the figures that are recorded: time only of what the weights decide, as other results may be cached."""
    figures = []
    for record in records:
        row = f"{record['kind']}, {record['protocol']}, {record['snr']}, {record['volumes']} x {options.size}^3"
        uses_weights = peers.uses_weights(record["method"])
        names = [name for name in (*NAMES, *["seconds"] * uses_weights) if name in record]
        sha = sha256[:12] if uses_weights else ""
        figures += [Figure(row, record["method"], name, record[name], options.threads, sha) for name in names]
    return figures


def truth(scene: Scene, *, l_max: int = 18) -> Found:
    """Find the peaks of the true fODF cut at the degree that this package fits: no method can be expected to better them."""
    directions, fractions = scene.phantom.directions[scene.mask], scene.fractions
    there = fractions > 0
    lobes = np.zeros((*fractions.shape, n_coefficients(l_max)), dtype=np.float32)
    lobes[there] = fractions[there][:, None] * sh_basis(directions[there].astype(float), l_max)
    return find_maxima(lobes.sum(axis=1))


def figures(found: Sequence[Found], volumes: Sequence[Scene]) -> dict:
    """Return all figures of one method over the volumes of a row, counts added up before any ratio is taken."""
    pairs = list(zip(found, volumes, strict=True))
    whole = [score_peaks(f.directions, f.amplitudes, s.truth) for f, s in pairs]
    parts = [score_by_crossing(f.directions, f.amplitudes, s.truth, edges=EDGES) for f, s in pairs]
    names = sorted({name for part in parts for name in part})
    by_angle = {name: pooled([part[name] for part in parts if name in part]) for name in names}
    result = pooled(whole).summary()
    for key in ("n_empty_voxels", "empty_false_fibres_per_voxel", "empty_hit_rate"):
        del result[key]  # by a relative threshold, which says nothing of an empty voxel
    result["pr_area_of_volumes"] = [round(score.pr_area, 4) for score in whole]
    for tissue in ("gm", "csf"):
        result |= _false_fibres(pairs, tissue)
    result["by_angle"] = {name: _curve(score) for name, score in by_angle.items()}
    if NARROW in by_angle:
        result["narrow_f1"] = by_angle[NARROW].f1_max
        result["narrow"] = by_angle[NARROW]  # taken out by `compare_narrow`
    return result


def _false_fibres(pairs: Sequence[tuple[Found, Scene]], tissue: str) -> dict[str, float]:
    """Return the false fibres for each voxel without fibres, at shares of a full fibre and at the package's cutoff."""
    counts: dict[str, list[float]] = {f"{tissue}_{share}": [] for share in SHARES} | {f"{tissue}_own": []}
    n_voxels = []
    for found, scene in pairs:
        empty = scene.without_fibres(tissue)
        unit = full_fibre_amplitude(found.amplitudes, scene.fractions)
        n_voxels.append(int(empty.sum()))
        for share in SHARES:
            counts[f"{tissue}_{share}"].append(peaks_per_voxel(found.amplitudes[empty], share * unit))
        if np.isfinite(found.cutoff):
            counts[f"{tissue}_own"].append(peaks_per_voxel(found.amplitudes[empty], found.cutoff))
    if not sum(n_voxels):
        return {}
    mean = {name: float(np.average(values, weights=n_voxels)) for name, values in counts.items() if values}
    return mean | {f"{tissue}_voxels": sum(n_voxels)}


def _curve(score: PeakScore) -> dict:
    """Return the figures of one bin and the curve they come from."""
    lists = {"missed": (1 - score.recall).round(4).tolist(), "false": (1 - score.precision).round(4).tolist()}
    keys = ("pr_area", "f1", "angular_error", "fnr", "fdr", "n_voxels")
    summary = score.summary()
    return {key: summary[key] for key in keys} | lists


def compare_narrow(group: list[dict]) -> None:
    """Add to each record the share of fibres missed in narrow crossings at the false discoveries of the best classical method.

    The best classical method is the one with the largest F1 there, taken at its own best threshold.
    """
    scores = [record.pop("narrow", None) for record in group]
    classical = [
        score for record, score in zip(group, scores, strict=True) if score and _is_classical(record["method"])
    ]
    if not classical:
        return
    level = max(classical, key=lambda score: score.f1_max).fdr
    for record, score in zip(group, scores, strict=True):
        record |= {"narrow_missed": fnr_at(score, level), "narrow_level": level}


def _is_classical(name: str) -> bool:
    return name != "truth" and not peers.uses_weights(name)


def tables(records: Sequence[dict]) -> list[str]:
    """Return the records as Markdown, one table for each kind of volume and row."""
    lines = []
    for kind, protocol, snr in dict.fromkeys((r["kind"], r["protocol"], r["snr"]) for r in records):
        group = [r for r in records if (r["kind"], r["protocol"], r["snr"]) == (kind, protocol, snr)]
        shown = [key for key in COLUMNS if any(key in record for record in group)]
        lines += ["", f"{kind}, {protocol}, SNR {snr}", ""]
        lines.append("| method | " + " | ".join(COLUMNS[key][0] for key in shown) + " |")
        lines.append("|---" * (len(shown) + 1) + "|")
        for record in group:
            cells = [COLUMNS[key][1].format(record[key]) if key in record else "" for key in shown]
            lines.append(f"| {record['method']} | " + " | ".join(cells) + " |")
    return lines


def overview(records: Sequence[dict]) -> list[str]:
    """Return one line for each kind of volume and row: the network / the best figure that any classical method reaches.

    False fibres stand beside those of ``msmt_csd``.
    """
    lines = ["", "| volumes | protocol | SNR | PR area | angle (°) | missed, 20-45° | false in GM | false in CSF |"]
    lines.append("|---" * 8 + "|")
    for kind, protocol, snr in dict.fromkeys((r["kind"], r["protocol"], r["snr"]) for r in records):
        group = {r["method"]: r for r in records if (r["kind"], r["protocol"], r["snr"]) == (kind, protocol, snr)}
        classical = {name: record for name, record in group.items() if _is_classical(name)}
        if "amortised" not in group or not classical:
            continue
        cells = []
        for key, best in (
            ("pr_area", max),
            ("angular_error", min),
            ("narrow_missed", min),
            ("gm_0.1", min),
            ("csf_0.1", min),
        ):
            names = ["msmt_csd"] if key.endswith("_0.1") and "msmt_csd" in classical else list(classical)
            theirs = [classical[name][key] for name in names if key in classical[name]]
            has_both = theirs and key in group["amortised"]
            pair = (group["amortised"][key], best(theirs)) if has_both else ()
            cells.append(" / ".join(COLUMNS[key][1].format(value) for value in pair))
        lines.append(f"| {kind} | {protocol} | {snr} | {' | '.join(cells)} |")
    return lines


def _line(record: dict) -> str:
    keys = [key for key in COLUMNS if key in record]
    return "  ".join(f"{key} {COLUMNS[key][1].format(record[key])}" for key in keys) + f"  {record['seconds']} s"


def _find(name: str, method: Method, scene: Scene, cache: Path | None) -> Found:
    """Run a method, or read what it found on the same signal by the same code before."""
    if cache is None or peers.uses_weights(name):
        return method(scene)
    digest = hashlib.sha256(scene.signal.tobytes() + scene.gradients.directions.tobytes())
    for module in (peers, dipy_methods):
        digest.update(Path(module.__file__).read_bytes())
    path = cache / f"{name}_{digest.hexdigest()[:24]}.npz"
    if not path.exists():
        found = method(scene)
        cache.mkdir(parents=True, exist_ok=True)
        arrays = {"directions": found.directions.astype(np.float32), "amplitudes": found.amplitudes.astype(np.float32)}
        partial = path.with_suffix(".part.npz")
        np.savez(partial, **arrays, cutoff=found.cutoff)
        partial.replace(path)
    with np.load(path) as kept:
        return Found(kept["directions"], kept["amplitudes"], float(kept["cutoff"]))


def _options() -> argparse.Namespace:
    parser = results.command(__doc__, threads=2)
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument(
        "--methods", nargs="+", default=["amortised", "msmt_csd", "csd", "dipy_csd", "rumba", "rumba_tv"]
    )
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))))
    parser.add_argument(
        "--kinds", nargs="+", default=["crossing", "curved"], choices=["crossing", "curved", "published"]
    )
    parser.add_argument("--geometry", type=Path, help="folder of published geometries (control points and radii)")
    parser.add_argument("--model", default="sticks", choices=["sticks", "tensors"])
    parser.add_argument("--cache", type=Path)
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
