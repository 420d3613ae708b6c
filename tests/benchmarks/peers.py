"""fODF methods behind one call: this package, MRtrix3 and dipy, each used as its authors advise.

Every method gets the same volume, mask and gradients and estimates its own responses. MRtrix3's come from ``dwi2response
dhollander``. dipy has no such selection: its response is the mean tensor of the single-fibre voxels that this package
selects, one tensor for each shell where the method takes several.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dipy_methods
import nibabel as nib
import numpy as np
import torch
from found import MAX_PEAKS, Found, best_shell, find_maxima
from measured import Measured, scan_of
from results import Figure, Values
from selection import select

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights
from shd_bids.gradients.table import GradientTable
from shd_bids.options import Runtime
from shd_bids.peaks.threshold import noise_threshold
from shd_bids.response.mrtrix import parse_response
from shd_bids.response.response import Responses
from shd_bids.scan import Scan
from shd_bids.training.adapt import AdaptationOptions, adapt

MRTRIX_CUTOFF = 0.1
"""Amplitude in MRtrix3's own scale (a full fibre's response is 1) below which its tracking commonly sees no fibre."""


@dataclass(frozen=True, eq=False)
class Tissues:
    """fODF and tissue amplitudes of MRtrix3 with the responses they belong to, in the order of the mask."""

    wm: np.ndarray
    isotropic: np.ndarray
    responses: Responses


Method = Callable[..., Found]


def methods(
    names: Sequence[str], weights: Weights | None, *, to_border: bool = False, apart: bool = False
) -> dict[str, Method]:
    """Return the asked methods that can run here: a measured volume, where= -> what was found.

    Responses come from the mask; ``where`` marks those of its voxels in which fibres are looked for, all if it is left out.
    ``to_border`` lets this package select the voxels of the responses up to the border of the volume; ``apart`` tells it
    that the slices of the last axis are not neighbours. Methods of dipy get directions in world axes, whatever the affine.
    """
    own = partial(ours, weights=weights, to_border=to_border, apart=apart)
    table: dict[str, Method] = {
        "amortised": own,
        "network": partial(own, refine=False),
        "subject": partial(own, fit="subject"),
        "msmt_csd": mrtrix_msmt,
        "csd": mrtrix_csd,
        "dipy_csd": partial(dipy_methods.csd, to_border=to_border),
        "rumba": partial(dipy_methods.rumba, tv=False, to_border=to_border),
        "rumba_tv": partial(dipy_methods.rumba, tv=True, to_border=to_border),
        "force": dipy_methods.force,
    }
    unknown = sorted(set(names) - set(table))
    if unknown:
        raise SystemExit(f"unknown methods {unknown}; there are {sorted(table)}")
    if shutil.which("dwi2fod") is None:
        print("MRtrix3 is not installed: its methods are left out")
        table = {k: v for k, v in table.items() if k not in ("msmt_csd", "csd")}
    return {name: table[name] for name in names if name in table}


def uses_weights(name: str) -> bool:
    """Whether the result of a method changes with the network's weights."""
    return name in ("amortised", "network", "subject")


def figures_of(row: str, values: Values, weights: Weights | None, *, threads: int) -> list[Figure]:
    """Return what is recorded of the values by method, region and metric, one figure each; without weights none is noted."""
    return [
        Figure(f"{row}, {region}" if region else row, name, metric, value, threads, sha_of(name, weights))
        for name, parts in values.items()
        for region, metrics in parts.items()
        for metric, value in metrics.items()
    ]


def sha_of(name: str, weights: Weights | None) -> str:
    """Return the first digits of the SHA-256 of the weights, empty for a method that has none."""
    return weights.sha256[:12] if weights and uses_weights(name) else ""


def ours(
    scan: Measured,
    *,
    where: np.ndarray | None = None,
    weights: Weights | None,
    fit: str = "amortised",
    refine: bool = True,
    to_border: bool = False,
    apart: bool = False,
) -> Found:
    """Run the package's own pipeline up to peaks, if asked without the refinement by the data."""
    responses, _ = select(scan, to_border=to_border)
    measured, mask = scan_of(scan, responses), scan.mask
    used = adapted(measured, weights) if fit == "subject" else weights
    parts = split_slices(mask) if apart else [mask]
    fits = [fit_fod(measured.within(part), used, runtime=Runtime(device="cpu"), refine=refine) for part in parts]
    order = np.argsort(np.concatenate([np.flatnonzero(part) for part in parts]))
    wm, fractions = (np.concatenate([getattr(f, name) for f in fits])[order] for name in ("wm", "fractions"))
    cutoff = noise_threshold(wm, fractions[:, 2], wm_fraction=fractions[:, 0])
    chosen = slice(None) if where is None else where[mask]
    return find_maxima(
        wm[chosen],
        cutoff,
        prominence=fits[0].facts.prominence,
        direction_errors=fits[0].direction_errors,
        wm_fraction=fractions[chosen, 0],
    )


def split_slices(mask: np.ndarray) -> list[np.ndarray]:
    """Return one mask for each slice of the last axis."""
    parts = []
    for number in np.flatnonzero(mask.any(axis=(0, 1))):
        part = np.zeros_like(mask)
        part[..., number] = mask[..., number]
        parts.append(part)
    return parts


def adapted(scan: Scan, weights: Weights | None) -> Weights:
    """Adapt weights to a scan as the app does."""
    result = adapt(
        [scan],
        weights=weights,
        device=torch.device("cpu"),
        options=AdaptationOptions(),
        checkpoint=None,
        progress=lambda stage, share: None,
    )
    return result.weights


def mrtrix_msmt(scan: Measured, *, where: np.ndarray | None = None) -> Found:
    """Run ``dwi2response dhollander``, ``dwi2fod msmt_csd`` and ``sh2peaks``; with one shell, white matter and CSF only."""
    with _mrtrix_folder(scan, where=where) as name:
        here = Path(name)
        _msmt(here, scan.gradients)
        return _sh2peaks(here, scan.mask if where is None else where)


def mrtrix_csd(scan: Measured, *, where: np.ndarray | None = None) -> Found:
    """Run ``dwi2fod csd`` on the highest shell with its row of the dhollander response, and ``sh2peaks``."""
    with _mrtrix_folder(scan, where=where) as name:
        here = Path(name)
        rows = np.loadtxt(here / "wm.txt", ndmin=2)
        number = best_shell(scan.gradients)
        np.savetxt(here / "shell.txt", rows[number : number + 1])
        shell = f"{scan.gradients.shells[number].bvalue:.0f}"
        _run(here, "dwi2fod", "csd", "dwi.nii", "shell.txt", "wm.nii", "-shells", shell, *_COMMON)
        return _sh2peaks(here, scan.mask if where is None else where)


def msmt_tissues(scan: Measured) -> Tissues:
    """Run MRtrix3's multi-tissue deconvolution and return what predicts the signal."""
    with _mrtrix_folder(scan) as name:
        here = Path(name)
        tissues = _msmt(here, scan.gradients)
        maps = {t: nib.load(here / f"{t}.nii").get_fdata(dtype=np.float32)[scan.mask] for t in tissues}
        maps = {t: values.reshape(len(values), -1) for t, values in maps.items()}
        bvalues = scan.gradients.shell_bvalues
        texts = {t: (here / f"{t}.txt").read_text(encoding="utf-8") for t in tissues}
        responses = {t: parse_response(text, t, bvalues) for t, text in texts.items()}
    isotropic = np.concatenate([maps[t][:, :1] for t in tissues[1:]], axis=1)
    return Tissues(np.nan_to_num(maps["wm"]), np.nan_to_num(isotropic), Responses(**responses))


_COMMON = ("-grad", "grad.b", "-mask", "mask.nii", "-quiet", "-force")


def _mrtrix_folder(scan: Measured, *, where: np.ndarray | None = None) -> tempfile.TemporaryDirectory:
    """Write the inputs of MRtrix3 into a new folder and estimate the responses of the three tissues there.

    The mask that is left there marks the voxels to fit.
    """
    folder = tempfile.TemporaryDirectory()
    here = Path(folder.name)
    nib.save(nib.Nifti1Image(scan.signal, scan.affine), here / "dwi.nii")
    nib.save(nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine), here / "mask.nii")
    np.savetxt(here / "grad.b", np.column_stack([scan.gradients.directions, scan.gradients.bvals]))
    outputs = ("wm.txt", "gm.txt", "csf.txt")
    try:
        _run(here, "dwi2response", "dhollander", "dwi.nii", *outputs, "-erode", str(_erosions(scan.mask)), *_COMMON)
    except BaseException:
        folder.cleanup()
        raise
    fitted = scan.mask if where is None else where
    nib.save(nib.Nifti1Image(fitted.astype(np.uint8), scan.affine), here / "mask.nii")
    return folder


def _erosions(mask: np.ndarray) -> int:
    """Return how often dhollander may erode a mask: three times by default, less where a slab would vanish.

    A mask of the whole volume has no rim of skull to avoid.
    """
    thinnest = min(np.ptp(indices) + 1 for indices in np.nonzero(mask))
    return 0 if mask.all() else min(3, int(thinnest - 1) // 4)


def _msmt(here: Path, gradients: GradientTable) -> tuple[str, ...]:
    """Run ``dwi2fod msmt_csd`` and return the tissues it was given."""
    tissues = ("wm", "gm", "csf") if len(gradients.shells) > 2 else ("wm", "csf")
    pairs = [item for t in tissues for item in (f"{t}.txt", f"{t}.nii")]
    _run(here, "dwi2fod", "msmt_csd", "dwi.nii", *pairs, *_COMMON)
    return tissues


def _sh2peaks(here: Path, mask: np.ndarray) -> Found:
    _run(here, "sh2peaks", "-num", str(MAX_PEAKS), "-mask", "mask.nii", "wm.nii", "peaks.nii", "-quiet")
    vectors = nib.load(here / "peaks.nii").get_fdata(dtype=np.float32)[mask].reshape(-1, MAX_PEAKS, 3)
    vectors = np.nan_to_num(vectors)
    amplitudes = np.linalg.norm(vectors, axis=-1)
    coefficients = np.nan_to_num(nib.load(here / "wm.nii").get_fdata(dtype=np.float32)[mask])
    return Found(vectors / np.maximum(amplitudes, 1e-12)[..., None], amplitudes, MRTRIX_CUTOFF, coefficients)


def _run(folder: Path, *command: str) -> None:
    environment = {"MRTRIX_NTHREADS": str(len(os.sched_getaffinity(0)))} | os.environ
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
