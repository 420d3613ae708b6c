"""Time the whole pipeline on a simulated whole brain against MRtrix3 on the same files, in turn.

    python tests/benchmarks/whole_brain.py [--threads 2] [--shape 91 109 91] [--directions 64] [--series 1] [--skip-mrtrix]
                                           [--save] [--compare]

The volume is an ellipsoid of about 200 000 voxels of 2 mm, filled with simulated bundles, with 64 directions at
b = 1000 s/mm2 and six b=0; several series are all the same. Ours is the command ``shd_bids ... participant --level peaks``,
from BIDS to derivatives and report; theirs ``dwi2response dhollander``, ``dwi2fod msmt_csd`` and ``sh2peaks`` with the same
mask. Memory is that of all processes of ours together, what they share divided among them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import results
from results import METRICS, Figure

from shd_bids import simulation
from shd_bids.gradients.frames import world_to_fsl

SEED = 2_000_000
BLOCK = 28
_LOOK_EVERY = 2.0  # seconds between two looks at the memory, each of which reads all page tables


def simulate(folder: Path, shape: tuple[int, int, int], n_directions: int, n_series: int) -> tuple[Path, int]:
    """Write a BIDS data set, its mask and the gradients in MRtrix3's format; return the first image and its voxels."""
    rng = np.random.default_rng(SEED)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), axis=-1)
    mask = (grid**2).sum(axis=-1) < 0.55 ** (2 / 3)
    gradients = simulation.make_gradients(rng, {1000.0: n_directions}, n_b0=6)
    micro = simulation.draw_microstructure(rng, 16)
    signal = np.zeros((*shape, gradients.n_volumes), dtype=np.int16)
    for corner in np.ndindex(*(-(-n // BLOCK) for n in shape)):
        place = tuple(slice(c * BLOCK, min((c + 1) * BLOCK, n)) for c, n in zip(corner, shape, strict=True))
        if mask[place].any():
            clean = simulation.noiseless_signal(simulation.random_phantom(rng, BLOCK), micro, gradients)
            noisy = simulation.add_noise(clean, 1 / 30, rng)[tuple(slice(p.stop - p.start) for p in place)]
            signal[place] = np.where(mask[place][..., None], 400 * noisy, 0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])  # the axes of the volume are those of the world, as the simulator takes them
    dwi = folder / "bids" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    dwi.parent.mkdir(parents=True)
    (folder / "bids" / "dataset_description.json").write_text('{"Name": "whole brain", "BIDSVersion": "1.9.0"}\n')
    nib.save(nib.Nifti1Image(signal, affine), dwi)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / "mask.nii.gz")
    stem = dwi.with_name("sub-01_dwi")
    stem.with_suffix(".json").write_text('{"PhaseEncodingDirection": "j", "EchoTime": 0.08}\n')
    stem.with_suffix(".bval").write_text(" ".join(f"{b:.0f}" for b in gradients.bvals) + "\n")
    bvecs = world_to_fsl(gradients.directions, affine)
    stem.with_suffix(".bvec").write_text("\n".join(" ".join(f"{v:.6f}" for v in row) for row in bvecs.T) + "\n")
    np.savetxt(folder / "grad.b", np.column_stack([gradients.directions, gradients.bvals]))
    for number in range(2, n_series + 1):
        for file in list(dwi.parent.iterdir()):
            copy = folder / "bids" / f"sub-{number:02}" / "dwi" / file.name.replace("sub-01", f"sub-{number:02}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)
    return dwi, int(mask.sum())


def ours(folder: Path, threads: int, n_series: int) -> dict[str, float]:
    """Run the app to the peaks and return seconds and GB."""
    for_each = max(1, threads // n_series)
    command = [Path(sys.executable).with_name("shd_bids"), folder / "bids", folder / "out", "participant"]
    options = ["--level", "peaks", "--mask", folder / "mask.nii.gz", "-w", folder / "work", "--nprocs", str(threads)]
    command += [*options, "--omp-nthreads", str(for_each), "--gradient-check", "warn"]
    with peak_memory() as peak:
        seconds = _timed(folder, [command])
    return {"seconds": seconds, "peak_gb": peak[0] / 2**30}


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Hold the most bytes that all processes below this one have taken together until the end."""
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY):
            peak[0] = max(peak[0], sum(map(_proportional_bytes, psutil.Process().children(recursive=True))))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _proportional_bytes(process: psutil.Process) -> int:
    """Return the memory of a process, with its part of what it shares; 0 once it has ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def mrtrix(folder: Path, dwi: Path, threads: int) -> float:
    """Run the commands of MRtrix3 and return seconds."""
    common = ["-mask", "mask.nii.gz", "-nthreads", str(threads), "-quiet"]
    grad = ["-grad", "grad.b"]
    return _timed(
        folder,
        [
            ["dwi2response", "dhollander", dwi, "wm.txt", "gm.txt", "csf.txt", *grad, *common],
            ["dwi2fod", "msmt_csd", dwi, "wm.txt", "wm.nii.gz", "csf.txt", "csf.nii.gz", *grad, *common],
            ["sh2peaks", "-num", "5", "wm.nii.gz", "peaks.nii.gz", *common],
        ],
    )


def _timed(folder: Path, commands: list[list]) -> float:
    began = time.monotonic()
    for command in commands:
        done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        print(f"  {Path(str(command[0])).name}: {time.monotonic() - began:.0f} s so far", flush=True)
    return time.monotonic() - began


def main() -> int:
    """Simulate, run both, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shape", type=int, nargs=3, default=[91, 109, 91])
    parser.add_argument("--directions", type=int, default=64)
    parser.add_argument("--series", type=int, default=1, help="as many subjects, in one call of the app")
    parser.add_argument("--skip-mrtrix", action="store_true")
    results.add_options(parser)
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dwi, n_voxels = simulate(folder, tuple(options.shape), options.directions, options.series)
        series = f", {options.series} series" if options.series > 1 else ""
        row = f"{n_voxels} voxels, {options.directions} directions{series}"
        print(f"{row}, {options.threads} threads", flush=True)
        for metric, value in ours(folder, options.threads, options.series).items():
            figures.append(Figure(row, "amortised", metric, value, options.threads, results.shipped_weights()))
        if not options.skip_mrtrix and shutil.which("dwi2fod"):
            figures.append(Figure(row, "msmt_csd", "seconds", mrtrix(folder, dwi, options.threads), options.threads))
    for figure in figures:
        print(f"{figure.method}  {METRICS[figure.metric].label}  {figure.value:.4g}")
    return results.finish("whole_brain", figures, options)


if __name__ == "__main__":
    sys.exit(main())
