"""Compare fODF methods on simulated volumes with known truth; prints a table and saves it as JSON.

    python tests/benchmarks/accuracy.py [--json FILE] [--weights FILE] [--seeds 2] [--methods ...] [--geometry DIR]

The phantoms are straight crossings (never a training geometry) and curved bundles of the training generator with seeds
above one million, which training never reaches. Every method gets the same files; responses are estimated by each
package from the data. MRtrix3 methods are left out when its commands are not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from shd_bids import simulation
from shd_bids.gradients import GradientTable, format_mrtrix
from shd_bids.inference import fit_fod
from shd_bids.metrics import crossing_angle, score_peaks
from shd_bids.peaks import find_peaks
from shd_bids.response import estimate_responses
from shd_bids.weights import Weights, load_weights

FIRST_SEED = 1_000_000

PROTOCOLS = {
    "4 shells x 90": ({1000.0: 90, 2000.0: 90, 3000.0: 90, 4000.0: 90}, 4),
    "HCP 3 x 90": ({1000.0: 90, 2000.0: 90, 3000.0: 90}, 18),
    "ABCD": ({500.0: 6, 1000.0: 15, 2000.0: 15, 3000.0: 60}, 7),
    "b1000 x 30": ({1000.0: 30}, 3),
}

ROWS = (
    ("4 shells x 90", 30),
    ("HCP 3 x 90", 30),
    ("ABCD", 30),
    ("b1000 x 30", 30),
    ("4 shells x 90", 12),
    ("ABCD", 12),
    ("b1000 x 30", 12),
)


@dataclass(frozen=True, eq=False)
class Scene:
    """One simulated volume: signal, gradients, mask and truth (n, K, 3) in the order of the mask."""

    signal: np.ndarray
    gradients: GradientTable
    mask: np.ndarray
    truth: np.ndarray


def make_scene(kind: str, protocol: str, snr: float, seed: int, *, size: int, model: str) -> Scene:
    """Simulate a volume; ``kind`` is ``crossing`` or ``curved``, ``model`` is ``sticks`` or ``tensors``."""
    rng = np.random.default_rng(FIRST_SEED + seed)
    if kind == "crossing":
        phantom = simulation.crossing_phantom(
            rng, size=size, angles=tuple(rng.permutation([20, 30, 40, 55, 75, 90])[:3])
        )
    else:
        phantom = simulation.random_phantom(rng, size)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    if model == "tensors":
        n = len(phantom.bundles)
        micro = replace(
            micro, axonal=np.zeros(n), axial=np.full(n, 1.7e-3), radial=np.full(n, 0.3e-3), kappa=np.full(n, 500.0)
        )
    shells, n_b0 = PROTOCOLS[protocol]
    gradients = simulation.make_gradients(rng, shells, n_b0=n_b0)
    signal = 1000 * simulation.add_noise(simulation.noiseless_signal(phantom, micro, gradients), 1 / snr, rng)
    mask = np.ones(phantom.gm.shape, dtype=bool)
    return Scene(signal, gradients, mask, phantom.true_directions()[mask])


Peaks = tuple[np.ndarray, np.ndarray]


def ours(scene: Scene, *, weights: Weights | None, fit: str) -> Peaks:
    """Run the package's own pipeline up to peaks."""
    responses = estimate_responses(scene.signal, scene.mask, scene.gradients).responses
    result = fit_fod(scene.signal, scene.mask, scene.gradients, responses, fit=fit, weights=weights, device="cpu")
    return _peaks(result.wm)


def _peaks(coefficients: np.ndarray) -> Peaks:
    found = find_peaks(coefficients, max_peaks=10, relative_threshold=0.04, absolute_threshold=0.0, min_separation=5.0)
    return found.directions, found.amplitudes


def mrtrix(scene: Scene, *, algorithm: str) -> Peaks:
    """Run ``dwi2response dhollander``, ``dwi2fod`` and ``sh2peaks`` on files."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        nib.save(nib.Nifti1Image(scene.signal, np.eye(4)), here / "dwi.nii")
        nib.save(nib.Nifti1Image(scene.mask.astype(np.uint8), np.eye(4)), here / "mask.nii")
        (here / "grad.b").write_text(format_mrtrix(scene.gradients))
        common = ["-grad", "grad.b", "-mask", "mask.nii", "-quiet", "-force"]
        tissues = ["wm", "gm", "csf"] if len(scene.gradients.shells) > 2 else ["wm", "csf"]
        outputs = [f"{t}.txt" for t in ("wm", "gm", "csf")]
        _run(here, "dwi2response", "dhollander", "dwi.nii", *outputs, *common)
        if algorithm == "msmt_csd":
            pairs = [item for t in tissues for item in (f"{t}.txt", f"{t}.nii")]
            _run(here, "dwi2fod", "msmt_csd", "dwi.nii", *pairs, *common)
        else:
            _run(here, "dwi2fod", "csd", "dwi.nii", "wm.txt", "wm.nii", *common)
        _run(here, "sh2peaks", "-num", "10", "-mask", "mask.nii", "wm.nii", "peaks.nii", "-quiet")
        vectors = nib.load(here / "peaks.nii").get_fdata(dtype=np.float32)[scene.mask].reshape(-1, 10, 3)
    vectors = np.nan_to_num(vectors)
    amplitudes = np.linalg.norm(vectors, axis=-1)
    return vectors / np.maximum(amplitudes, 1e-12)[..., None], amplitudes


def _run(folder: Path, *command: str) -> None:
    environment = os.environ | {"MRTRIX_NTHREADS": "2"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)


def dipy_rumba(scene: Scene, *, tv: bool) -> Peaks:
    """Run dipy's RUMBA-SD with a response of the brightest anisotropic voxels, with or without total variation."""
    from dipy.core.gradients import gradient_table
    from dipy.data import get_sphere
    from dipy.reconst.csdeconv import auto_response_ssst
    from dipy.reconst.rumba import RumbaSDModel

    b = scene.gradients.bvals
    table = gradient_table(b, bvecs=scene.gradients.directions, b0_threshold=50)
    low = b <= min(s.bvalue for s in scene.gradients.shells[1:] if len(s.indices) >= 15) + 100
    first = gradient_table(b[low], bvecs=scene.gradients.directions[low], b0_threshold=50)
    response, _ = auto_response_ssst(first, scene.signal[..., low], roi_radii=100, fa_thr=0.7)
    sphere = get_sphere(name="repulsion724")
    model = RumbaSDModel(table, wm_response=response[0], gm_response=0.8e-3, csf_response=3e-3, n_iter=200,
                         voxelwise=not tv, use_tv=tv, sphere=sphere, verbose=False)  # fmt: skip
    fit = model.fit(scene.signal.astype(np.float64), mask=scene.mask)
    from dipy.reconst.shm import sf_to_sh

    coefficients = sf_to_sh(fit.odf(sphere)[scene.mask], sphere, sh_order_max=16, basis_type="tournier07", legacy=False)
    return _peaks(coefficients.astype(np.float32))


def methods(names: list[str], weights: Weights | None) -> dict[str, Callable[[Scene], Peaks]]:
    """Return the asked methods that can run here."""
    table: dict[str, Callable[[Scene], Peaks]] = {
        "amortised": lambda s: ours(s, weights=weights, fit="amortised"),
        "subject": lambda s: ours(s, weights=weights, fit="subject"),
        "msmt_csd": lambda s: mrtrix(s, algorithm="msmt_csd"),
        "csd": lambda s: mrtrix(s, algorithm="csd"),
        "rumba": lambda s: dipy_rumba(s, tv=False),
        "rumba_tv": lambda s: dipy_rumba(s, tv=True),
    }
    if shutil.which("dwi2fod") is None:
        print("MRtrix3 is not installed: its methods are left out")
        table = {k: v for k, v in table.items() if k not in ("msmt_csd", "csd")}
    return {name: table[name] for name in names if name in table}


def score(peaks: Peaks, scene: Scene) -> dict[str, float]:
    """Return the figures of one method on one scene."""
    whole = score_peaks(*peaks, scene.truth)
    angle = crossing_angle(scene.truth)
    narrow = (angle >= 20) & (angle < 45)
    figures = {"pr_area": whole.pr_area, "f1": whole.f1_max, "angular_error": whole.angular_error,
               "fnr": whole.fnr, "fdr": whole.fdr, "empty_fibres": whole.empty_false_fibres_per_voxel}  # fmt: skip
    if narrow.sum() >= 20:
        figures["f1_narrow"] = score_peaks(peaks[0][narrow], peaks[1][narrow], scene.truth[narrow]).f1_max
    return {k: float(v) for k, v in figures.items()}


def main() -> None:
    """Run every row and print the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", type=int, default=24)
    parser.add_argument("--methods", nargs="+", default=["amortised", "msmt_csd", "csd", "rumba", "rumba_tv"])
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))))
    parser.add_argument("--kinds", nargs="+", default=["crossing", "curved"])
    parser.add_argument("--model", default="sticks", choices=["sticks", "tensors"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    weights = load_weights(options.weights)
    table = []
    for kind in options.kinds:
        for index in options.rows:
            protocol, snr = ROWS[index]
            scenes = [
                make_scene(kind, protocol, snr, seed, size=options.size, model=options.model)
                for seed in range(options.seeds)
            ]
            for name, method in methods(options.methods, weights).items():
                began = time.monotonic()
                figures = [score(method(scene), scene) for scene in scenes]
                keys = sorted({k for f in figures for k in f})
                mean = {k: float(np.mean([f[k] for f in figures if k in f])) for k in keys}
                record = {"kind": kind, "protocol": protocol, "snr": snr, "method": name, **mean}
                record["seconds"] = round(time.monotonic() - began, 1)
                table.append(record)
                shown = "  ".join(f"{k} {v:.3f}" for k, v in mean.items())
                print(f"{kind:9s} {protocol:14s} SNR {snr:2d}  {name:10s} {shown}  {record['seconds']} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
