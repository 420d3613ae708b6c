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
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from counts import keep_peaks

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights
from shd_bids.gradients.table import GradientTable
from shd_bids.options import Runtime
from shd_bids.peaks.search import find_peaks
from shd_bids.peaks.threshold import noise_threshold
from shd_bids.response.estimate import estimate_responses
from shd_bids.response.mrtrix import parse_response
from shd_bids.response.response import Responses
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.training.adapt import AdaptationOptions, adapt

MAX_PEAKS = 10
MRTRIX_CUTOFF = 0.1
"""Amplitude in MRtrix3's own scale (a full fibre's response is 1) below which its tracking commonly sees no fibre."""

MOST_FIBRES = 5
"""Peaks kept in a voxel by `own_peaks`, the default of this package and of dipy."""

_OURS, _MRTRIX, _DIPY = (0.1, 15.0), (0.0, 0.0), (0.5, 25.0)
RULES = {
    "amortised": _OURS,
    "subject": _OURS,
    "msmt_csd": _MRTRIX,
    "csd": _MRTRIX,
    "dipy_csd": _DIPY,
    "rumba": _DIPY,
    "rumba_tv": _DIPY,
    "force": (0.0, 0.0),
}
"""Smallest amplitude as a share of the largest of the voxel, and smallest angle between two peaks in degrees, with which
each method is used: the defaults of this package, of ``sh2peaks``, and of dipy's ``peaks_from_model``."""

FORCE_LIBRARY = 100_000
"""Simulated voxels that FORCE matches, the default of dipy's generator; ``FORCEModel`` itself asks for five times as many. They
are made once for each gradient table and kept in ``$DIPY_HOME``."""

_AT_ORIGIN = np.eye(4)
_LEAST_SHELL = 15  # directions a shell needs for a deconvolution of its own


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found in the n voxels of a mask.

    Attributes
    ----------
    directions : ndarray, shape (n, K, 3)
    amplitudes : ndarray, shape (n, K)
    cutoff : float
        Amplitude below which the package's own tools see no fibre; NaN where it has no such rule.
    coefficients : ndarray, shape (n, C), or None
        The fODF, where the method gives it as spherical harmonics of MRtrix3's basis.
    """

    directions: np.ndarray
    amplitudes: np.ndarray
    cutoff: float = np.nan
    coefficients: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Tissues:
    """fODF and tissue amplitudes of MRtrix3 with the responses they belong to, in the order of the mask."""

    wm: np.ndarray
    isotropic: np.ndarray
    responses: Responses


Method = Callable[..., Found]


def methods(names: Sequence[str], weights: Weights | None, *, n_erosions: int = 3) -> dict[str, Method]:
    """Return the asked methods that can run here: signal (X, Y, Z, N), mask, gradients[, affine] -> what was found.

    ``n_erosions`` is how often the mask is eroded before this package selects the voxels of the responses. Methods of dipy
    get directions in world axes, whatever the affine.
    """
    table: dict[str, Method] = {
        "amortised": lambda *data: ours(*data, weights=weights, fit="amortised", n_erosions=n_erosions),
        "subject": lambda *data: ours(*data, weights=weights, fit="subject", n_erosions=n_erosions),
        "msmt_csd": mrtrix_msmt,
        "csd": mrtrix_csd,
        "dipy_csd": lambda *data: dipy_csd(*data[:3], n_erosions=n_erosions),
        "rumba": lambda *data: dipy_rumba(*data[:3], tv=False, n_erosions=n_erosions),
        "rumba_tv": lambda *data: dipy_rumba(*data[:3], tv=True, n_erosions=n_erosions),
        "force": lambda *data: dipy_force(*data[:3]),
    }
    unknown = sorted(set(names) - set(table))
    if unknown:
        raise SystemExit(f"unknown methods {unknown}; there are {sorted(table)}")
    if shutil.which("dwi2fod") is None:
        print("MRtrix3 is not installed: its methods are left out")
        table = {k: v for k, v in table.items() if k not in ("msmt_csd", "csd")}
    return {name: table[name] for name in names if name in table}


def uses_weights(name: str) -> bool:
    """Say whether the result of a method changes with the network's weights."""
    return name in ("amortised", "subject")


def own_peaks(name: str, found: Found) -> Found:
    """Keep the peaks that a method's own tools show, by `RULES` and its cutoff; the others become zero."""
    relative, separation = RULES[name]
    kept = keep_peaks(
        found.directions,
        found.amplitudes,
        relative=relative,
        absolute=np.nan_to_num(found.cutoff),
        separation=separation,
        most=MOST_FIBRES,
    )
    return replace(found, directions=found.directions * kept[..., None], amplitudes=found.amplitudes * kept)


def ours(
    signal: np.ndarray,
    mask: np.ndarray,
    gradients: GradientTable,
    affine: np.ndarray = _AT_ORIGIN,
    *,
    weights: Weights | None,
    fit: str,
    n_erosions: int,
) -> Found:
    """Run the package's own pipeline up to peaks."""
    responses = estimate_responses(signal, mask, gradients, n_erosions=n_erosions).responses
    scan = Scan.of_volume(signal, mask, gradients, responses, affine)
    result = fit_fod(scan, adapted(scan, weights) if fit == "subject" else weights, runtime=Runtime(device="cpu"))
    cutoff = noise_threshold(result.wm, result.fractions[:, 2], wm_fraction=result.fractions[:, 0])
    return _maxima(result.wm, cutoff)


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


def mrtrix_msmt(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, affine: np.ndarray = _AT_ORIGIN
) -> Found:
    """Run ``dwi2response dhollander``, ``dwi2fod msmt_csd`` and ``sh2peaks``; with one shell, white matter and CSF only."""
    with _mrtrix_folder(signal, mask, gradients, affine=affine) as name:
        here = Path(name)
        _msmt(here, gradients)
        return _sh2peaks(here, mask)


def mrtrix_csd(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, affine: np.ndarray = _AT_ORIGIN
) -> Found:
    """Run ``dwi2fod csd`` on the highest shell with its row of the dhollander response, and ``sh2peaks``."""
    with _mrtrix_folder(signal, mask, gradients, affine=affine) as name:
        here = Path(name)
        rows = np.loadtxt(here / "wm.txt", ndmin=2)
        number = _best_shell(gradients)
        np.savetxt(here / "shell.txt", rows[number : number + 1])
        shell = f"{gradients.shells[number].bvalue:.0f}"
        _run(here, "dwi2fod", "csd", "dwi.nii", "shell.txt", "wm.nii", "-shells", shell, *_COMMON)
        return _sh2peaks(here, mask)


def msmt_tissues(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, *, affine: np.ndarray = _AT_ORIGIN
) -> Tissues:
    """Run MRtrix3's multi-tissue deconvolution and return what predicts the signal."""
    with _mrtrix_folder(signal, mask, gradients, affine=affine) as name:
        here = Path(name)
        tissues = _msmt(here, gradients)
        maps = {
            t: nib.load(here / f"{t}.nii").get_fdata(dtype=np.float32)[mask].reshape(mask.sum(), -1) for t in tissues
        }
        responses = {
            t: parse_response((here / f"{t}.txt").read_text(encoding="utf-8"), t, gradients.shell_bvalues)
            for t in tissues
        }
    isotropic = np.concatenate([maps[t][:, :1] for t in tissues[1:]], axis=1)
    return Tissues(np.nan_to_num(maps["wm"]), np.nan_to_num(isotropic), Responses(**responses))


def dipy_csd(signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, *, n_erosions: int) -> Found:
    """Run dipy's constrained spherical deconvolution (degree 8) on the highest shell."""
    from dipy.data import get_sphere
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel

    number = _best_shell(gradients)
    part = _with_b0(gradients, [number])
    tensor, s0 = _tensor_responses(signal, mask, gradients, [number], n_erosions=n_erosions)
    model = ConstrainedSphericalDeconvModel(_dipy_table(gradients, part), (tensor[0], s0), sh_order_max=8)
    sphere = get_sphere(name="repulsion724")
    odf = model.fit(signal[..., part].astype(np.float64), mask=mask).odf(sphere)[mask]
    return _maxima(odf @ sh_inverse(sphere.vertices, 8).T)


def dipy_rumba(signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, *, tv: bool, n_erosions: int) -> Found:
    """Run dipy's RUMBA-SD on all shells with its defaults (600 iterations), with or without total variation.

    The global fit serves both: without the prior it does for all voxels at once what the voxelwise fit does one by one.
    Only one of each pair of opposite vertices is passed; the kernel is even, so the other would be its copy.
    """
    from dipy.core.sphere import Sphere
    from dipy.data import get_sphere
    from dipy.reconst.rumba import RumbaSDModel

    shells = list(range(1, len(gradients.shells)))
    tensors, _ = _tensor_responses(signal, mask, gradients, shells, n_erosions=n_erosions)
    sphere = get_sphere(name="repulsion724")
    half = sphere.vertices[sphere.vertices[:, 2] > 0]
    model = RumbaSDModel(
        _dipy_table(gradients, np.arange(gradients.n_volumes)),
        wm_response=tensors if len(shells) > 1 else tensors[0],
        voxelwise=False,
        use_tv=tv,
        sphere=Sphere(xyz=half),
    )
    odf = model.fit(signal.astype(np.float64), mask=mask).odf()[mask]
    return _vertex_maxima(odf, half)


def dipy_force(signal: np.ndarray, mask: np.ndarray, gradients: GradientTable) -> Found:
    """Run dipy's FORCE with its defaults: each voxel takes the axes of the simulated voxel that is most like it.

    The amplitude of an axis is that of the simulated ODF there.
    """
    from dipy.data import default_sphere
    from dipy.reconst.force import FORCEModel

    model = FORCEModel(_dipy_table(gradients, np.arange(gradients.n_volumes)))
    fit = model.generate(num_simulations=FORCE_LIBRARY).fit(signal[mask].astype(np.float32))
    height = np.where(np.asarray(fit.label) == 1, np.asarray(fit.odf), 0.0)  # (n, V)
    order = np.argsort(-height, axis=1)[:, :MOST_FIBRES]
    return Found(default_sphere.vertices[order], np.take_along_axis(height, order, axis=1))


def _vertex_maxima(odf: np.ndarray, vertices: np.ndarray) -> Found:
    """Take the vertices above all others within 11 degrees (their first ring), moved to the mean of that ring.

    Harmonics through such sharp functions ring, and vertices alone are 8 degrees apart: measured, this has the larger
    precision-recall area of the first and a smaller angular error than the second.
    """
    cosine = vertices @ vertices.T
    is_near = np.abs(cosine) > np.cos(np.radians(11.0))
    ring = is_near * np.sign(cosine)  # opposite vertices are one axis
    peak = np.zeros(odf.shape, dtype=bool)
    for vertex, near in enumerate(is_near):
        others = near & (np.arange(len(vertices)) != vertex)
        peak[:, vertex] = (odf[:, vertex] > 0) & (odf[:, vertex] >= odf[:, others].max(axis=1))
    height = np.where(peak, odf, 0.0)
    order = np.argsort(-height, axis=1)[:, :MAX_PEAKS]
    amplitudes = np.take_along_axis(height, order, axis=1)
    directions = np.zeros((*order.shape, 3))
    for rank, vertex in enumerate(order.T):
        centroid = (odf * ring[vertex]) @ vertices
        directions[:, rank] = centroid / np.maximum(np.linalg.norm(centroid, axis=1, keepdims=True), 1e-12)
    return Found(directions, amplitudes)


_COMMON = ("-grad", "grad.b", "-mask", "mask.nii", "-quiet", "-force")


def _mrtrix_folder(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, *, affine: np.ndarray = _AT_ORIGIN
) -> tempfile.TemporaryDirectory:
    """Write the inputs of MRtrix3 into a new folder and estimate the responses of the three tissues there."""
    folder = tempfile.TemporaryDirectory()
    here = Path(folder.name)
    nib.save(nib.Nifti1Image(signal, affine), here / "dwi.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), here / "mask.nii")
    np.savetxt(here / "grad.b", np.column_stack([gradients.directions, gradients.bvals]))
    outputs = ("wm.txt", "gm.txt", "csf.txt")
    try:
        _run(here, "dwi2response", "dhollander", "dwi.nii", *outputs, "-erode", str(_erosions(mask)), *_COMMON)
    except BaseException:
        folder.cleanup()
        raise
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


def _best_shell(gradients: GradientTable) -> int:
    """Return the number of the highest shell that has directions enough, or else of the one with most."""
    counts = np.array([len(shell.indices) for shell in gradients.shells])
    counts[0] = 0
    enough = np.flatnonzero(counts >= _LEAST_SHELL)
    return int(enough[-1]) if len(enough) else int(counts.argmax())


def _with_b0(gradients: GradientTable, shells: Sequence[int]) -> np.ndarray:
    """Return the volumes of the given shells and of b=0, in order."""
    return np.flatnonzero(np.isin(gradients.shell_index, [0, *shells]))


def _dipy_table(gradients: GradientTable, volumes: np.ndarray):
    """Build dipy's table; the phantoms have world axes for voxel axes. Each volume has the mean b of its shell."""
    from dipy.core.gradients import gradient_table

    bvals = gradients.shell_bvalues[gradients.shell_index][volumes]
    return gradient_table(bvals, bvecs=gradients.directions[volumes], b0_threshold=50)


def _tensor_responses(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, shells: Sequence[int], *, n_erosions: int
) -> tuple[np.ndarray, float]:
    """Return the mean eigenvalues in single fibres for each shell with b=0, (S, 3), and their b=0 signal.

    A shell with fewer directions than a tensor has parameters is fitted together with the next.
    """
    from dipy.reconst.csdeconv import response_from_mask_ssst

    single = estimate_responses(signal, mask, gradients, n_erosions=n_erosions).voxels["wm"]
    counts = [len(gradients.shells[s].indices) for s in shells]
    eigenvalues = []
    for k, number in enumerate(shells):
        together = [number] if counts[k] >= _LEAST_SHELL else [number, shells[min(k + 1, len(shells) - 1)]]
        part = _with_b0(gradients, together)
        response, _ = response_from_mask_ssst(
            _dipy_table(gradients, part), signal[..., part].astype(np.float64), single
        )
        eigenvalues.append(response[0])
    return np.array(eigenvalues), float(response[1])


def _maxima(coefficients: np.ndarray, cutoff: float = np.nan) -> Found:
    found = find_peaks(
        coefficients.astype(np.float32), max_peaks=MAX_PEAKS, relative_threshold=0.04, min_separation=5.0
    )
    return Found(found.directions, found.amplitudes, cutoff, coefficients)
