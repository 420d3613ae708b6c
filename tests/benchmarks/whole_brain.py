"""Time the whole pipeline on a simulated whole brain against MRtrix3 on the same files, in turn.

    python tests/benchmarks/whole_brain.py [--json FILE] [--threads 2] [--shape 91 109 91] [--skip-mrtrix] [--save] [--compare]

The volume is an ellipsoid of about 200 000 voxels of 2 mm, filled with simulated bundles, with 64 directions at
b = 1000 s/mm2 and six b=0. Ours is the command ``shd_bids ... participant --level peaks``, from BIDS to derivatives and report;
theirs ``dwi2response dhollander``, ``dwi2fod msmt_csd`` and ``sh2peaks`` with the same mask.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import results
from results import Figure

from shd_bids import simulation
from shd_bids.gradients.frames import world_to_fsl

SEED = 2_000_000
BLOCK = 28
COSTS = (("seconds", "ours"), ("peak_gb", "peak_gb"))


def simulate(folder: Path, shape: tuple[int, int, int]) -> tuple[Path, int]:
    """Write a BIDS data set of one subject, its mask and the gradients in MRtrix3's format; return image and voxels."""
    rng = np.random.default_rng(SEED)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), axis=-1)
    mask = (grid**2).sum(axis=-1) < 0.55 ** (2 / 3)
    gradients = simulation.make_gradients(rng, {1000.0: 64}, n_b0=6)
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
    return dwi, int(mask.sum())


def ours(folder: Path, threads: int) -> float:
    """Run the app to the peaks and return seconds."""
    command = [Path(sys.executable).with_name("shd_bids"), folder / "bids", folder / "out", "participant"]
    options = ["--level", "peaks", "--mask", folder / "mask.nii.gz", "-w", folder / "work", "--nprocs", str(threads)]
    return _timed(folder, [[*command, *options, "--omp-nthreads", str(threads), "--gradient-check", "warn"]])


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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shape", type=int, nargs=3, default=[91, 109, 91])
    parser.add_argument("--skip-mrtrix", action="store_true")
    results.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dwi, n_voxels = simulate(folder, tuple(options.shape))
        print(f"{n_voxels} voxels, {options.threads} threads", flush=True)
        row = {"voxels": n_voxels, "threads": options.threads, "ours": ours(folder, options.threads)}
        row["peak_gb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        if not options.skip_mrtrix and shutil.which("dwi2fod"):
            row["mrtrix"] = mrtrix(folder, dwi, options.threads)
            row["ratio"] = row["mrtrix"] / row["ours"]
    print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.json:
        options.json.write_text(json.dumps(row, indent=1) + "\n")
    name, sha, threads = f"{n_voxels} voxels, 64 directions", results.shipped_weights(), options.threads
    figures = [Figure(name, "amortised", metric, row[key], threads, sha) for metric, key in COSTS]
    if "mrtrix" in row:
        figures.append(Figure(name, "msmt_csd", "seconds", row["mrtrix"], threads))
    return results.finish("whole_brain", figures, options)


if __name__ == "__main__":
    sys.exit(main())
