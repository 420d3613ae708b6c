"""Predict directions that were left out, on real scans: this package against MRtrix3's multi-tissue deconvolution.

    python tests/benchmarks/heldout.py FOLDER [FOLDER ...] [--json FILE] [--weights FILE] [--slices N] [--folds 1]
                                       [--apart NAME ...] [--save] [--compare]

Each FOLDER is a BIDS data set with one series and a brain mask under ``derivatives/``. A fifth of the directions of each
shell is left out; both methods estimate their responses and fODFs from the rest, and the forward model that both share,
fODF times response, predicts what was left out. The error is the root mean square over voxels of the mask and left-out
volumes, in percent of the mean b=0 signal of the mask; beside it stands the median over voxels, which artefacts move less.
``--slices`` takes the middle axial slices only; ``--apart`` names folders whose slices are not neighbours, which are then
fitted one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import peers
import results
from measured import Series, scan_of
from results import Figure

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.gradients.files import read_fsl
from shd_bids.gradients.noise import estimate_noise
from shd_bids.gradients.table import GradientTable
from shd_bids.images import load_mask, load_volume
from shd_bids.options import Runtime
from shd_bids.response.estimate import estimate_responses
from shd_bids.response.forward import forward_model
from shd_bids.response.response import Responses
from shd_bids.sphere.harmonics import l_max_of

N_FOLDS = 5


def main() -> int:
    """Predict the left-out volumes of every scan and print the errors by shell."""
    parser = results.command(__doc__, threads=2)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--slices", type=int, default=None)
    parser.add_argument("--apart", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--folds", type=int, default=1, choices=range(1, N_FOLDS + 1))
    parser.add_argument("--fits", nargs="+", default=["amortised"], choices=["amortised", "subject"])
    parser.add_argument("--seed", type=int, default=0)
    options = results.parse(parser)
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    records = []
    for folder in options.folders:
        scan = read_scan(folder, n_slices=options.slices)
        parts = peers.split_slices(scan.mask) if scan.name in options.apart else [scan.mask]
        methods = [*options.fits, "msmt_csd"]
        for record in compare(scan, parts, weights, folds=options.folds, methods=methods, seed=options.seed):
            records.append(record)
            errors = {k: v for k, v in record.items() if k not in ("scan", "voxels", "seconds")}
            print(scan.name, f"{record['voxels']} voxels", json.dumps(errors), f"{record['seconds']} s", flush=True)
        if options.json:
            facts = {"weights_sha256": weights.sha256, "slices": options.slices, "folds": options.folds}
            facts |= {"seed": options.seed, "records": records}
            options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(*table(records), sep="\n")
    return results.finish("heldout", recorded(records, options, weights), options)


def recorded(records: list[dict], options: argparse.Namespace, weights: Weights) -> list[Figure]:
    """Return the error and its median for each scan, shell and method."""
    figures = []
    for record in records:
        sha = peers.sha_of(record["method"], weights)
        for shell in (key[1:] for key in record if key[:1] == "b" and key[1:].isdigit()):
            row = f"{record['scan']}, {shell}, {options.folds}"
            for metric, key in (("rmse", f"b{shell}"), ("rmse_median", f"b{shell}_median")):
                figures.append(Figure(row, record["method"], metric, record[key], options.threads, sha))
    return figures


def read_scan(folder: Path, *, n_slices: int | None = None) -> Series:
    """Read the one series of a data set and its mask, cut to the middle axial slices of the mask if asked."""
    (image,) = sorted(folder.glob("sub-*/**/dwi/*_dwi.nii.gz")) or sorted(folder.glob("sub-*/dwi/*_dwi.nii.gz"))
    (mask_file,) = sorted(folder.glob("derivatives/**/*_mask.nii.gz"))
    volume = load_volume(image)
    mask = load_mask(mask_file, volume)
    stem = image.with_name(image.name.removesuffix(".nii.gz"))
    gradients = read_fsl(stem.with_suffix(".bval"), stem.with_suffix(".bvec"), volume.affine, volume.shape[3])
    window = _middle(mask, volume.affine, n_slices) if n_slices else (slice(None),) * 3
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*(w.start or 0 for w in window), 1])[:3]
    signal = gradients.take(volume.data)[window]
    return Series(folder.name, np.ascontiguousarray(signal, dtype=np.float32), mask[window], gradients, affine)


def _middle(mask: np.ndarray, affine: np.ndarray, n_slices: int) -> tuple[slice, ...]:
    """Return the bounding box of the mask, cut to its middle slices along the axis nearest to the body's."""
    axis = int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])
    window = []
    for other, indices in enumerate(np.nonzero(mask)):
        first, last = int(indices.min()), int(indices.max()) + 1
        if other == axis and last - first > n_slices:
            first += (last - first - n_slices) // 2
            last = first + n_slices
        window.append(slice(first, last))
    return tuple(window)


def left_out(gradients: GradientTable, fold: int, *, seed: int) -> np.ndarray:
    """Return the volumes of one of five folds: a fifth of the directions of each shell, none of b=0."""
    rng = np.random.default_rng(seed)
    chosen = []
    for shell in gradients.shells[1:]:
        order = rng.permutation(shell.indices)
        chosen.append(np.array_split(order, N_FOLDS)[fold])
    return np.sort(np.concatenate(chosen))


def compare(
    scan: Series, parts: list[np.ndarray], weights: Weights, *, folds: int, methods: list[str], seed: int
) -> list[dict]:
    """Return, for each method, the error on the left-out volumes of each shell."""
    squares: dict[str, np.ndarray] = {}
    counts = np.zeros(len(scan.gradients.shells))
    seconds: dict[str, float] = {}
    measured = scan.signal[scan.mask]
    for fold in range(folds):
        out = left_out(scan.gradients, fold, seed=seed)
        kept = np.setdiff1d(np.arange(scan.gradients.n_volumes), out)
        shell = scan.gradients.shell_index[out]
        counts += np.bincount(shell, minlength=len(counts))
        for name in methods:
            began = time.monotonic()
            if name == "msmt_csd":
                predicted = _predict_mrtrix(scan, kept)
            else:
                predicted = _predict_ours(scan, parts, kept, weights, fit=name)
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            error = (predicted[:, out] - measured[:, out]) ** 2  # (n, n_out)
            one_hot = np.eye(len(counts))[shell]  # (n_out, S)
            squares[name] = squares.get(name, 0) + error @ one_hot  # (n, S)
    unit = float(measured[:, scan.gradients.b0_indices].mean())
    noise = round(100 * estimate_noise(measured, scan.gradients) / unit, 3)
    records = []
    for name, total in squares.items():
        record = {"scan": scan.name, "method": name, "voxels": len(measured), "noise": noise}
        for s in np.flatnonzero(counts):
            of_voxels = 100 * np.sqrt(total[:, s] / counts[s]) / unit
            key = f"b{scan.gradients.shell_bvalues[s]:.0f}"
            record[key] = round(float(np.sqrt((of_voxels**2).mean())), 3)
            record[f"{key}_median"] = round(float(np.median(of_voxels)), 3)
        records.append(record | {"seconds": round(seconds[name], 1)})
    return records


def _predict_ours(scan: Series, parts: list[np.ndarray], kept: np.ndarray, weights: Weights, *, fit: str) -> np.ndarray:
    """Fit the kept volumes with the network and predict all, (n, N)."""
    shown = _with_volumes(scan, kept)
    responses = estimate_responses(shown.signal, shown.mask, shown.gradients).responses
    predicted = np.zeros((*scan.mask.shape, scan.gradients.n_volumes), dtype=np.float32)
    for part in parts:
        series = scan_of(replace(shown, mask=part), responses)
        used = peers.adapted(series, weights) if fit == "subject" else weights
        result = fit_fod(series, used, runtime=Runtime(device="cpu"))
        predicted[part] = result.predict(forward_model(scan.gradients, responses, l_max=result.l_max))
    return predicted[scan.mask]


def _with_volumes(scan: Series, kept: np.ndarray) -> Series:
    return replace(scan, signal=scan.signal[..., kept], gradients=scan.gradients.select(kept))


def _predict_mrtrix(scan: Series, kept: np.ndarray) -> np.ndarray:
    """Fit the kept volumes with ``msmt_csd`` and predict all, (n, N)."""
    tissues = peers.msmt_tissues(_with_volumes(scan, kept))
    return predict(scan.gradients, tissues.responses, np.concatenate([tissues.wm, tissues.isotropic], axis=1))


def predict(gradients: GradientTable, responses: Responses, coefficients: np.ndarray) -> np.ndarray:
    """Return the signal of all volumes (n, N) for coefficients of white matter and the isotropic tissues (n, C)."""
    l_max = l_max_of(coefficients.shape[1] - len(responses.tissues) + 1)
    return coefficients @ forward_model(gradients, responses, l_max=l_max).matrix.numpy().T


def table(records: list[dict]) -> list[str]:
    """Return the errors as Markdown: one line for each scan and shell, one column for each method."""
    names = list(dict.fromkeys(r["method"] for r in records))
    lines = ["", f"| scan | shell | {' | '.join(names)} | noise |", "|---" * (len(names) + 3) + "|"]
    for scan in dict.fromkeys(r["scan"] for r in records):
        group = {r["method"]: r for r in records if r["scan"] == scan}
        first = next(iter(group.values()))
        for key in (k for k in first if k[:1] == "b" and k[1:].isdigit()):
            cells = " | ".join(
                f"{group[name][key]:.2f} ({group[name][f'{key}_median']:.2f})" if name in group else ""
                for name in names
            )
            lines.append(f"| {scan} | {key[1:]} | {cells} | {first['noise']:.2f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
