"""Show the app at work: write a small BIDS data set, run ``shd_bids`` on it, and say what was found.

``python -m shd_bids.cli.demo DIR`` writes ``DIR/bids`` with two subjects and ``DIR/masks`` with their brain masks,
runs the command on them as a user would, and leaves the results in ``DIR/derivatives``:

* ``sub-real``: 10 x 10 x 10 voxels of a human brain, 64 directions at b = 1000 s/mm2, from the data that dipy ships;
* ``sub-sim``: a simulated volume with crossings of two and three fibres, whose truth is kept in ``DIR/truth``.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dipy.data import get_fnames

from shd_bids import simulation
from shd_bids.files import write_json, write_text
from shd_bids.gradients.frames import fsl_to_world, world_to_fsl
from shd_bids.gradients.table import GradientTable, gradient_table
from shd_bids.images import load_mask, load_volume, save_volume
from shd_bids.simulation.scoring import PeakScore, score_by_crossing, score_peaks

SEED = 7
SIZE = 22  # voxels a side: large enough for a neighbourhood, small enough for minutes on two cores
SHELLS = {700.0: 24, 1500.0: 32, 3000.0: 60}
SNR = 30.0
AFFINE = np.array([[2.0, 0, 0, -SIZE], [0, 2.0, 0, -SIZE], [0, 0, 2.0, -SIZE], [0, 0, 0, 1]])
TRUTH = "sub-sim_truth.nii.gz"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set, run the app on it and print what was found; return the app's exit code."""
    parser = argparse.ArgumentParser(prog="python -m shd_bids.cli.demo", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="where everything is written")
    parser.add_argument("--data-only", action="store_true", help="write the data set and stop")
    options, further = parser.parse_known_args(argv)
    if further and options.data_only:
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    folder = options.folder.absolute()
    print(f"writing the data set to {folder / 'bids'}", flush=True)
    write_data(folder)
    if options.data_only:
        return 0
    command = [*(str(folder / name) for name in ("bids", "derivatives")), "participant"]
    command += ["--derivatives", f"masks={folder / 'masks'}", "--work-dir", str(folder / "work"), *further]
    print(f"shd_bids {' '.join(command)}\n", flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "shd_bids", *command], check=False).returncode
    print(f"\nfinished in {time.monotonic() - start:.0f} s with exit code {code}")
    if code == 0:
        print(findings(folder))
    return code


def write_data(folder: Path) -> None:
    """Write ``bids/`` with both subjects, ``masks/``, and ``truth/`` with the simulated fibres under ``folder``."""
    about = {"Name": "shd_bids demonstration", "BIDSVersion": "1.10.0", "License": "CC0"}
    write_json(folder / "bids" / "dataset_description.json", about | {"DatasetType": "raw"})
    generated = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "shd_bids.cli.demo"}]}
    write_json(folder / "masks" / "dataset_description.json", about | generated)
    write_text(folder / "bids" / "README", "A crop of a real scan (sub-real) and a simulated volume (sub-sim).\n")
    _write_real(folder)
    _write_simulated(folder)


def _write_real(folder: Path) -> None:
    """Write the crop of a scan that dipy ships.

    Its directions are in image axes, which for this affine (determinant below zero) is FSL's convention: the callosal
    fibres in the roof of the lateral ventricle then run from left to right, and under no other axis order do they.
    """
    image_file, bval_file, bvec_file = get_fnames(name="small_64D")
    volume = load_volume(Path(image_file))
    bvals, bvecs = np.loadtxt(bval_file), np.nan_to_num(np.loadtxt(bvec_file))
    table = gradient_table(bvals, fsl_to_world(bvecs, volume.affine))
    _write_series(folder, "real", volume.data, volume.affine, table)


def _write_simulated(folder: Path) -> None:
    """Simulate crossings of known angle with noise, and keep their directions as a peaks image."""
    rng = np.random.default_rng(SEED)
    phantom = simulation.crossing_phantom(rng, size=SIZE)
    table = simulation.make_gradients(rng, SHELLS, n_b0=6)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    signal = simulation.noiseless_signal(phantom, micro, table)
    signal = simulation.add_noise(signal, 1 / SNR, rng)
    _write_series(folder, "sim", 1000 * signal, AFFINE, table)
    directions = phantom.true_directions()
    save_volume(folder / "truth" / TRUTH, directions.reshape(*directions.shape[:3], -1), AFFINE)


def _write_series(folder: Path, subject: str, data: np.ndarray, affine: np.ndarray, table: GradientTable) -> None:
    """Write one series, with a mask of all voxels: neither volume holds anything but brain."""
    stem = folder / "bids" / f"sub-{subject}" / "dwi" / f"sub-{subject}_dwi"
    save_volume(stem.with_suffix(".nii.gz"), data, affine)
    bvecs = world_to_fsl(table.directions, affine).T
    write_text(stem.with_suffix(".bval"), " ".join(f"{b:g}" for b in table.bvals) + "\n")
    write_text(stem.with_suffix(".bvec"), "".join(" ".join(f"{x:.8f}" for x in row) + "\n" for row in bvecs))
    write_json(stem.with_suffix(".json"), {"EchoTime": 0.09, "PhaseEncodingDirection": "j"})
    mask = folder / "masks" / f"sub-{subject}" / "dwi" / f"sub-{subject}_desc-brain_mask.nii.gz"
    save_volume(mask, np.ones(data.shape[:3]), affine, dtype=np.uint8)


def findings(folder: Path) -> str:
    """Say how well the simulated fibres were found and where to look."""
    lines = ["", "sub-sim, simulated, truth known:"]
    directions, amplitudes, mask = _peaks(folder, "sim")
    truth = load_volume(folder / "truth" / TRUTH, keep_negative=True).data[mask]
    truth = truth.reshape(len(truth), -1, 3)
    lines.append(_row("all", score_peaks(directions, amplitudes, truth)))
    for name, score in score_by_crossing(directions, amplitudes, truth).items():
        lines.append(_row("one fibre" if name == "single" else f"crossing at {name} deg", score))
    _, amplitudes, _ = _peaks(folder, "real")
    number = (amplitudes > 0).sum(axis=1)
    lines += [
        "",
        "sub-real, a crop of a human brain, fibres per voxel: "
        + ", ".join(f"{k}{'' if k < 3 else ' or more'} in {(number.clip(max=3) == k).mean():.0%}" for k in range(4)),
        "",
        "Look at:",
        *(f"  {report}" for report in sorted((folder / "derivatives").glob("sub-*.html"))),
        f"  {folder / 'derivatives'}",
    ]
    return "\n".join(lines)


def _peaks(folder: Path, subject: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return directions (n, K, 3), amplitudes (n, K) and the mask of one subject's peaks."""
    outputs = folder / "derivatives" / f"sub-{subject}" / "dwi"
    (peaks_file,) = outputs.glob("*_param-peaks_dwimap.nii.gz")
    (mask_file,) = outputs.glob("*_desc-brain_mask.nii.gz")
    volume = load_volume(peaks_file, keep_negative=True)
    mask = load_mask(mask_file, volume)
    vectors = volume.data[mask].reshape(mask.sum(), -1, 3)
    return vectors, np.linalg.norm(vectors, axis=-1), mask


def _row(name: str, score: PeakScore) -> str:
    return (
        f"  {name:22s} {score.n_voxels:6d} voxels   fibres found {1 - score.fnr:4.0%}   false {score.fdr:4.0%}   "
        f"PR area {score.pr_area:.3f}   angular error {score.angular_error:4.1f} degrees"
    )


if __name__ == "__main__":
    sys.exit(main())
