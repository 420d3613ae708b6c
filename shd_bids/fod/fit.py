"""Apply the network to a whole volume: from the signal to fODFs, tissue fractions and the quality of the fit."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from shd_bids.boxes import Box, chunks, grown, row_numbers, within
from shd_bids.errors import DeviceError, WeightsError
from shd_bids.fod.inputs.estimates import CHANNELS, REACH, Conditioner, Recent, ShellInput, condition, signal_block
from shd_bids.fod.refinement.refine import MODEL_ERROR, SHARPNESS, VOXELS_PER_CHUNK, correct
from shd_bids.fod.weights import Weights
from shd_bids.gradients.noise import estimate_noise
from shd_bids.gradients.table import GradientTable
from shd_bids.nn.streaming.tiles import apply_in_tiles
from shd_bids.nn.unet import UNet
from shd_bids.response.forward import ForwardModel, forward_model
from shd_bids.response.response import Responses
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.training.adapt import AdaptationOptions, Adapted, adapt
from shd_bids.training.measured import Scan

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]

TRAINED_BVALUES = (500.0, 13000.0)
"""Smallest and largest b-value of the simulated protocols, s/mm2."""

TRAINED_SNR = (8.0, 60.0)
"""Range of the simulated signal-to-noise ratio of white matter at b=0."""

MIN_DIRECTIONS = 12
"""Fewest directions that every simulated protocol had in one of its shells."""

POOR_FIT = 2.5
"""Residual of a shell, in units of noise and model error, above which something is wrong; four real scans showed 1.3 to 2."""

_AS_DEFAULT = AdaptationOptions()
_LEAST_TILE_BYTES = 200 * 2**20  # below this a tile is mostly halo
_SHARE_OF_FREE = 0.8  # of a GPU's memory; the rest is for its libraries and for what others start there


@dataclass(frozen=True, eq=False)
class FodResult:
    """fODFs and tissue amplitudes of the n voxels of a mask, in the order of its true entries.

    Attributes
    ----------
    wm : ndarray, shape (n, C), float32
        SH coefficients of the fODF, MRtrix3 basis, world axes; a voxel of pure white matter has c_00 = 1/sqrt(4 pi).
    gm, csf : ndarray, shape (n,)
        SH coefficient of degree 0; zero where the tissue was not fitted.
    fractions : ndarray, shape (n, 3)
        Shares of WM, GM and CSF, sum 1.
    r_squared : ndarray, shape (n,)
        Share of the variance of the signal over its volumes that the fit explains.
    residual_std : ndarray, shape (n,)
        Root mean square of measured minus predicted signal, in the units of the input.
    volume_residuals : ndarray, shape (N,)
        The same of each volume, over the voxels.
    shell_residuals : dict
        b-value of each shell -> median over voxels of the same within the shell.
    info : dict
        JSON-safe facts of the run.
    """

    wm: np.ndarray
    gm: np.ndarray
    csf: np.ndarray
    fractions: np.ndarray
    r_squared: np.ndarray
    residual_std: np.ndarray
    volume_residuals: np.ndarray
    shell_residuals: dict[float, float]
    info: dict[str, Any]


def fit_fod(
    signal: np.ndarray,
    mask: np.ndarray,
    gradients: GradientTable,
    responses: Responses,
    *,
    affine: np.ndarray,
    fit: str = "amortised",
    weights: Weights | None,
    device: str = "auto",
    precision: str = "float32",
    adaptation: AdaptationOptions = _AS_DEFAULT,
    memory_gb: float = 8.0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> FodResult:
    """Estimate the fODF of every voxel of a mask.

    Parameters
    ----------
    signal : ndarray, shape (X, Y, Z, N)
        Diffusion-weighted volumes, in any unit.
    mask : ndarray of bool, shape (X, Y, Z)
    gradients : GradientTable
        World axes.
    responses : Responses
        Of this subject or of a group, in the unit of the signal.
    affine : ndarray, shape (4, 4)
        From voxels to the world, in which the gradients are given.
    fit : {"amortised", "subject", "cohort"}
        Apply the weights as they are; adapt them to this subject first by the self-supervised loss; apply weights adapted to
        a cohort.
    weights : Weights or None
        None trains a network of the default configuration from scratch on this subject; only ``subject`` can do that.
    device : str
        ``auto`` takes CUDA where it is; ``cpu``, ``cuda`` or ``cuda:N`` insist.
    precision : {"float32", "tf32", "bf16"}
        Of the network.
    adaptation : AdaptationOptions
        For ``subject``.
    memory_gb : float
        Host or device memory the network may use.
    checkpoint : Path or None
        Where an adaptation keeps its state; an interrupted one goes on from there.
    progress : callable, optional
        Called with the name of the stage and the share done.

    Raises
    ------
    DeviceError
        When CUDA is asked for and absent.
    WeightsError
        When the fit needs weights and there are none.
    """
    if weights is None and fit != "subject":
        raise WeightsError(f"--fit {fit} applies trained weights, but none were given; use --fit subject or --weights")
    began = time.monotonic()
    report = progress or (lambda stage, share: None)
    where = choose_device(device)
    _set_precision(precision)
    voxels = np.ascontiguousarray(signal[mask], dtype=np.float32)
    del signal  # a caller that holds no name for it either gets the memory of the 4-D image back
    sigma = estimate_noise(voxels, gradients)
    adapted = None
    if fit == "subject":
        adapted = adapt(
            [Scan(voxels, mask, affine, gradients, responses, sigma)],
            weights=weights,
            device=where,
            options=adaptation,
            checkpoint=checkpoint,
            progress=report,
        )
        net, l_max = adapted.network, adapted.l_max
    else:
        net, l_max = weights.network(), weights.l_max
    channels = weights.channels if weights else CHANNELS
    conditioner = condition(gradients, responses, affine=affine, sigma=sigma, nside=net.config.nside, channels=channels)
    wm, fractions = predict(
        net, voxels, mask, conditioner, device=where, fall_back=device == "auto", precision=precision,
        memory_gb=memory_gb, l_max=l_max, progress=report,
    )  # fmt: skip
    model = forward_model(gradients, responses, l_max=l_max)
    taught = weights.training.get("sharpness", SHARPNESS) if weights else SHARPNESS
    wm, isotropic, updates = correct(
        wm,
        fractions,
        taught=taught,
        voxels=voxels,
        mask=mask,
        affine=affine,
        gradients=gradients,
        model=model,
        sigma=sigma,
    )
    quality = _quality(voxels, wm, isotropic, model=model, gradients=gradients)
    info = _info(adapted, weights, sigma=sigma, device=where, conditioner=conditioner) | {
        "fit": fit if adapted is None or adapted.improved else "amortised",
        "l_max": l_max,
        "correction_updates": updates,
        "warnings": domain_warnings(gradients, snr=conditioner.scale / max(sigma, 1e-12))
        + fit_warnings(quality["shell_residuals"], sigma=sigma, scale=conditioner.scale),
        "seconds": round(time.monotonic() - began, 1),
    }
    by_tissue = dict(zip(model.tissues[1:], isotropic.T, strict=True))
    zero = np.zeros(len(voxels), dtype=np.float32)
    gm, csf = by_tissue.get("gm", zero), by_tissue.get("csf", zero)
    return FodResult(wm=wm, gm=gm, csf=csf, fractions=_fractions(wm[:, 0], gm, csf), info=info, **quality)


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} was asked for, found {torch.cuda.device_count()} CUDA devices; use --device auto or cpu"
        )
    return torch.device("cuda", index)


def domain_warnings(gradients: GradientTable, *, snr: float) -> list[str]:
    """Say in which ways an acquisition lies outside what the shipped weights were trained on; empty when it does not."""
    weighted = gradients.shells[1:]
    warnings = []
    outside = [round(s.bvalue) for s in weighted if not TRAINED_BVALUES[0] <= s.bvalue + 25 <= TRAINED_BVALUES[1] + 50]
    low, high = (f"{b:.0f}" for b in TRAINED_BVALUES)
    if outside:
        warnings.append(f"b-values {outside} lie outside the trained range {low} to {high} s/mm2; try --fit subject")
    if len(weighted) > 5:
        warnings.append(f"{len(weighted)} shells, trained with up to 5 (a grid scheme?); try --fit subject")
    most = max(len(s.indices) for s in weighted)
    if most < MIN_DIRECTIONS:
        warnings.append(
            f"at most {most} directions in a shell, trained with {MIN_DIRECTIONS} or more; crossings will be missed"
        )
    if not TRAINED_SNR[0] <= snr <= 2 * TRAINED_SNR[1]:
        warnings.append(
            f"signal-to-noise ratio {snr:.0f} in white matter at b=0, trained from {TRAINED_SNR[0]:.0f} to "
            f"{TRAINED_SNR[1]:.0f}; check the noise of the images, or denoise them first"
        )
    return warnings


def fit_warnings(shell_residuals: dict[float, float], *, sigma: float, scale: float) -> list[str]:
    """Say in which shells the predicted signal misses the measured one by more than noise and responses explain.

    Parameters
    ----------
    shell_residuals : dict
        b-value of each shell -> typical residual, as in :class:`FodResult`.
    sigma, scale : float
        Noise level and white-matter signal at b=0, in the same unit.
    """
    expected = float(np.hypot(sigma, MODEL_ERROR * scale))
    return [
        f"b={b:.0f}: the predicted signal misses the measured one by {residual / expected:.1f} times what noise and responses "
        "explain; look at the residual map for motion, drop-out or scaling between volumes, or try --fit subject"
        for b, residual in shell_residuals.items()
        if residual > POOR_FIT * expected
    ]


def predict(
    net: UNet,
    voxels: np.ndarray,
    mask: np.ndarray,
    conditioner: Conditioner | ShellInput,
    *,
    device: torch.device,
    fall_back: bool,
    precision: str,
    memory_gb: float,
    l_max: int,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Run the network over the volume in tiles.

    Returns
    -------
    wm : ndarray, shape (n, C), float32
        SH coefficients of the fODF before normalisation.
    fractions : ndarray, shape (n, 2), float32
        GM and CSF.
    """
    row = row_numbers(mask)
    to_sh = torch.as_tensor(sh_inverse(hemisphere(net.config.nside), l_max), dtype=torch.float32)
    wm = np.zeros((len(voxels), len(to_sh)), dtype=np.float32)
    fractions = np.zeros((len(voxels), 2), dtype=np.float32)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def reader(where: torch.device) -> Callable[[Box], Tensor]:
        maps, recent = conditioner.to(where), Recent()

        def read(box: Box) -> Tensor:
            near = grown(box, REACH, mask.shape)
            recent.corner = near[0].start, near[1].start, near[2].start
            signal, inside = signal_block(voxels, row[near], where)
            return maps(signal, inside, within(box, near), recent)[None].to(dtype)  # (1, C, X, Y, Z, V)

        return read

    def write(box: Box, output: Tensor) -> None:
        rows = torch.as_tensor(row[box])
        inside = (rows >= 0).to(output.device)
        positive = softplus(output[0][:, inside].float())  # (3, n, V)
        target = rows[rows >= 0].numpy()
        wm[target] = (positive[0] @ to_sh.to(positive.device).T).cpu().numpy()
        fractions[target] = positive[1:].mean(dim=-1).T.cpu().numpy()

    bound = memory = _memory_bytes(device, memory_gb)
    while True:
        try:
            apply_in_tiles(
                net.folded().to(device, dtype),
                mask,
                read=reader(device),
                write=write,
                memory_bytes=memory,
                progress=lambda p: progress("fod", p),
            )
            return wm, fractions
        except torch.OutOfMemoryError:
            if memory // 2 < _LEAST_TILE_BYTES and not fall_back:
                raise
            memory //= 2
        except ValueError:  # no tile is as small as what was left to try
            if memory == bound or not fall_back:
                raise
            memory = 0
        # Not in the handlers: while they run, the traceback holds the tensors of what failed.
        torch.cuda.empty_cache()
        if memory < _LEAST_TILE_BYTES:
            logger.warning("the device has too little memory even for small tiles: going on with the CPU")
            device, dtype = torch.device("cpu"), torch.float32
            bound = memory = _memory_bytes(device, memory_gb)
        else:
            logger.warning("out of memory on the device: going on with tiles of %d MB", memory // 2**20)


def _memory_bytes(device: torch.device, memory_gb: float) -> int:
    """Give what the network may use: no more than asked, and on a GPU no more than most of what is free there."""
    asked = int(memory_gb * 2**30)
    return asked if device.type == "cpu" else min(asked, int(_SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]))


def _set_precision(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _quality(
    voxels: np.ndarray, wm: np.ndarray, isotropic: np.ndarray, *, model: ForwardModel, gradients: GradientTable
) -> dict[str, Any]:
    """Compare the predicted with the measured signal, by voxel and by shell."""
    matrix = model.matrix.numpy()
    n_wm, shells = wm.shape[1], gradients.shells
    by_shell = np.zeros((len(voxels), len(shells)), dtype=np.float32)
    r_squared = np.zeros(len(voxels), dtype=np.float32)
    by_volume = np.zeros(voxels.shape[1])
    for part in chunks(len(voxels), VOXELS_PER_CHUNK):
        error = (voxels[part] - wm[part] @ matrix[:, :n_wm].T - isotropic[part] @ matrix[:, n_wm:].T) ** 2
        by_volume += error.sum(axis=0)
        spread = np.maximum(voxels[part].var(axis=1) * voxels.shape[1], 1e-12)
        r_squared[part] = 1 - error.sum(axis=1) / spread
        for i, shell in enumerate(shells):
            by_shell[part, i] = error[:, shell.indices].mean(axis=1)
    counts = np.array([len(s.indices) for s in shells]) / gradients.n_volumes
    medians = np.median(np.sqrt(by_shell), axis=0) if len(voxels) else np.zeros(len(shells))
    return {
        "r_squared": r_squared,
        "residual_std": np.sqrt(by_shell @ counts).astype(np.float32),
        "volume_residuals": np.sqrt(by_volume / max(len(voxels), 1)),
        "shell_residuals": {float(s.bvalue): float(m) for s, m in zip(shells, medians, strict=True)},
    }


def _fractions(wm: np.ndarray, gm: np.ndarray, csf: np.ndarray) -> np.ndarray:
    """Return the share of each tissue among the degree-0 coefficients, (n, 3)."""
    parts = np.stack([wm, gm, csf], axis=1).clip(0)
    total = parts.sum(axis=1, keepdims=True)
    return np.where(total > 0, parts / np.maximum(total, 1e-12), 0).astype(np.float32)


def _info(
    adapted: Adapted | None,
    weights: Weights | None,
    *,
    sigma: float,
    device: torch.device,
    conditioner: Conditioner | ShellInput,
) -> dict[str, Any]:
    """Collect what provenance and the report say about the fit."""
    facts: dict[str, Any] = {
        "device": str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})",
        "weights": weights.name if weights else "none",
        "weights_sha256": weights.sha256 if weights else None,
        "noise_sigma": sigma,
        "snr": conditioner.scale / max(sigma, 1e-12),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    if device.type == "cuda":
        facts["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    if adapted is not None:
        facts["adaptation"] = adapted.facts
    return facts
