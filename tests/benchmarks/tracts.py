"""Compare trackers on the same fODFs of simulated bundles with known ends; prints one table for each protocol and noise level.

    python tests/benchmarks/tracts.py [--methods ...] [--rows ...] [--select 1000] [--volumes 0 1 | --geometry DIR [--files ...]]
                                      [--weights FILE] [--cache DIR] [--save] [--compare]

`tract_scenes.py` makes balls of bundles that cross and bend and end in a rim of grey matter, and discs with published
geometries, `tract_scores.py` the measures. fODFs and fractions are this package's; all trackers seed the same white matter at
random and give the same number of streamlines, by their own defaults but for the lengths, on one thread. Times are those of the
processor. ``--cache`` keeps the fits of the same weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import results
import torch
from measured import scan_of
from nibabel.streamlines import ArraySequence
from results import METRICS, Figure
from selection import select
from tract_scenes import GEOMETRIES, TractScene, make_scene, published_scene
from tract_scores import score

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.options import Runtime, TrackingOptions
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.track import track
from shd_bids.tractography.tracker import Batch

ROWS = (("ABCD", 30), ("b1000 x 30", 20))
"""Protocol and signal-to-noise ratio of each row."""

SHOWN = ("valid", "invalid", "bundles", "overlap", "overreach", "lines_per_second")
_LENGTHS = (20.0, 250.0)  # mm
_SEEDS = 20  # of each voxel at most: the number of streamlines ends tracking

Tracker = Callable[[FibreField, int], tuple[ArraySequence, float]]


def main() -> int:
    """Run every row with every tracker, and print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    figures: list[Figure] = []
    for protocol, snr in (ROWS[number] for number in options.rows):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
        for volume, make in scenes(options, protocol, snr).items():
            scene = make()
            field = fitted(scene, weights, cache=options.cache, name=f"{protocol}_{snr}_{volume}")
            for name in options.methods:
                streamlines, seconds = TRACKERS[name](field, options.select)
                found[name].append(score(streamlines, scene) | {"lines_per_second": len(streamlines) / seconds})
        means = {name: {key: float(np.mean([v[key] for v in all_])) for key in SHOWN} for name, all_ in found.items()}
        print(*table(f"{protocol}, SNR {snr}, {options.select} streamlines", means), sep="\n", flush=True)
        row = f"{protocol}, {snr}, {volumes_of(options)} x {options.select}"
        figures += [
            Figure(row, name, key, value, 1, weights.sha256[:12])
            for name, values in means.items()
            for key, value in values.items()
        ]
    return results.finish("tracts", figures, options)


def scenes(options: argparse.Namespace, protocol: str, snr: float) -> dict[str, Callable[[], TractScene]]:
    """Return what makes each volume of a row, by name."""
    if options.geometry is None:
        return {str(seed): partial(make_scene, protocol, snr, seed=seed) for seed in options.volumes}
    return {
        Path(file).stem: partial(published_scene, options.geometry / file, protocol, snr, seed=GEOMETRIES.index(file))
        for file in options.files
    }


def volumes_of(options: argparse.Namespace) -> str:
    """Return the part of a row's name that tells its volumes."""
    if options.geometry is None:
        return f"{len(options.volumes)} ball (volume {' and '.join(map(str, options.volumes))})"
    return " and ".join(Path(file).stem for file in options.files)


def fitted(scene: TractScene, weights: Weights, *, cache: Path | None, name: str) -> FibreField:
    """Fit fODFs as the app does, or read those of the same weights."""
    path = None if cache is None else cache / f"{name.replace(' ', '')}_{weights.sha256[:12]}.npz"
    volume = scene.scene
    if path is None or not path.exists():
        responses, _ = select(volume, to_border=True)
        fod = fit_fod(scan_of(volume, responses), weights, runtime=_ON_CPU)
        if path is None:
            return FibreField(fod.wm, fod.fractions, volume.mask, volume.affine)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, wm=fod.wm, fractions=fod.fractions)
    with np.load(path) as kept:
        return FibreField(kept["wm"], kept["fractions"], volume.mask, volume.affine)


def ours(field: FibreField, n: int, *, algorithm: str) -> tuple[ArraySequence, float]:
    """Track with this package; return streamlines and seconds."""
    batches: list[Batch] = []
    low, high = _LENGTHS
    cutoff = field.usual_cutoff  # found once a scan, so not part of the time
    options = TrackingOptions(
        tracking_algorithm=algorithm, tracking_cutoff=cutoff, select=n, seeds=_SEEDS, min_length=low, max_length=high
    )
    began = time.process_time()
    track(field, options, batches.append)
    seconds = time.process_time() - began
    streamlines = ArraySequence()
    for batch in batches:
        streamlines.extend(batch.streamlines)
    return streamlines, seconds


def tckgen(field: FibreField, n: int, *, algorithm: str) -> tuple[ArraySequence, float]:
    """Track with MRtrix3; return streamlines and seconds."""
    image = np.zeros((*field.mask.shape, field.coefficients.shape[1]), dtype=np.float32)
    image[field.mask] = field.coefficients
    seeds = np.zeros(field.mask.shape, dtype=np.uint8)
    seeds[tuple(field.seeded_voxels().T)] = 1
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("fod", image), ("seeds", seeds), ("mask", field.mask.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, field.affine), Path(folder) / f"{name}.nii")
        command = (
            f"tckgen -quiet -nthreads 1 -algorithm {algorithm} fod.nii tracks.tck -mask mask.nii -seed_image seeds.nii"
        )
        command += f" -select {n} -minlength {_LENGTHS[0]} -maxlength {_LENGTHS[1]}"
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(command.split(), cwd=folder, check=True)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return nib.streamlines.load(Path(folder) / "tracks.tck").streamlines, seconds


TRACKERS: dict[str, Tracker] = {
    "prob": partial(ours, algorithm="prob"),
    "iFOD2": partial(tckgen, algorithm="iFOD2"),
    "det": partial(ours, algorithm="det"),
    "SD_STREAM": partial(tckgen, algorithm="SD_STREAM"),
}
_ON_CPU = Runtime(device="cpu")


def table(
    title: str, values: dict[str, dict[str, float]], *, first: str = "tracker", shown: tuple[str, ...] = SHOWN
) -> list[str]:
    """Return Markdown, a line for each tracker, or what else the first column names."""
    lines = ["", title, "", _line([first, *(METRICS[key].label for key in shown)]), "|---" * (len(shown) + 1) + "|"]
    return lines + [
        _line([name, *(METRICS[key].form.format(found[key]) for key in shown)]) for name, found in values.items()
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    names = list(TRACKERS) if shutil.which("tckgen") else ["prob", "det"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))), choices=range(len(ROWS)))
    parser.add_argument("--select", type=int, default=1000, help="streamlines of each tracker")
    parser.add_argument("--volumes", nargs="+", type=int, default=[0], help="seeds of the balls of each row")
    parser.add_argument(
        "--geometry", type=Path, help="folder of published geometries, which take the place of the balls"
    )
    parser.add_argument("--files", nargs="+", default=list(GEOMETRIES), choices=GEOMETRIES, help="of that folder")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of the fit")
    results.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["MRTRIX_QUIET"] = "1"
    return options


if __name__ == "__main__":
    sys.exit(main())
