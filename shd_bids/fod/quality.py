"""How well a fit explains the signal, and what the user should be warned of."""

from __future__ import annotations

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.fod.config import TrainedDomain
from shd_bids.fod.fod import FOD, VOXELS_PER_CHUNK, Quality
from shd_bids.gradients.table import B0_THRESHOLD, GradientTable
from shd_bids.scan import Scan


def measure_quality(fod: FOD, scan: Scan, *, error: float, most_misfit: float) -> Quality:
    """Compare the predicted with the measured signal, by voxel, volume and shell; noise and responses explain ``error``."""
    model, shells = scan.forward(fod.l_max), scan.gradients.shells
    voxels, isotropic = scan.voxels, fod.isotropic(model)
    of_wm, of_isotropic = np.split(model.matrix.numpy(), [fod.wm.shape[1]], axis=1)
    by_shell = np.zeros((len(voxels), len(shells)), dtype=np.float32)
    r_squared = np.zeros(len(voxels), dtype=np.float32)
    by_volume = np.zeros(voxels.shape[1])
    for part in chunks(len(voxels), VOXELS_PER_CHUNK):
        squared = (voxels[part] - fod.wm[part] @ of_wm.T - isotropic[part] @ of_isotropic.T) ** 2
        by_volume += squared.sum(axis=0)
        variation = np.maximum(voxels[part].var(axis=1) * voxels.shape[1], 1e-12)
        r_squared[part] = 1 - squared.sum(axis=1) / variation
        for i, shell in enumerate(shells):
            by_shell[part, i] = squared[:, shell.indices].mean(axis=1)
    shares = np.array([len(s.indices) for s in shells]) / voxels.shape[1]
    medians = np.median(np.sqrt(by_shell), axis=0) if len(voxels) else np.zeros(len(shells))
    return Quality(
        r_squared=r_squared,
        residual_std=np.sqrt(by_shell @ shares).astype(np.float32),
        explained_error=error,
        most_misfit=most_misfit,
        volume_residuals=np.sqrt(by_volume / max(len(voxels), 1)),
        shell_residuals={float(s.bvalue): float(m) for s, m in zip(shells, medians, strict=True)},
    )


def worst_volumes(quality: Quality, gradients: GradientTable) -> list[int]:
    """Return the volume of each diffusion-weighted shell that the fit explains worst."""
    return [
        int(s.indices[np.argmax(quality.volume_residuals[s.indices])])
        for s in gradients.shells
        if s.bvalue > B0_THRESHOLD
    ]


def predicted_volumes(fod: FOD, scan: Scan, volumes: list[int]) -> np.ndarray:
    """Return the signal that a fit predicts in some volumes, shape (n, volumes)."""
    model = scan.forward(fod.l_max)
    of_wm, of_isotropic = np.split(model.matrix.numpy()[volumes], [fod.wm.shape[1]], axis=1)
    return fod.wm @ of_wm.T + fod.isotropic(model) @ of_isotropic.T


def domain_warnings(gradients: GradientTable, domain: TrainedDomain, *, snr: float) -> list[str]:
    """Return in which ways an acquisition lies outside what weights were trained on."""
    weighted = gradients.shells[1:]
    (low, high), warnings = domain.bvalues, []
    outside = [round(s.bvalue) for s in weighted if not low <= s.bvalue + 25 <= high + 50]
    if outside:
        warnings.append(
            f"b-values {outside} lie outside the trained range {low:.0f} to {high:.0f} s/mm2; try --fit subject"
        )
    if len(weighted) > domain.max_shells:
        warnings.append(
            f"{len(weighted)} shells, trained with up to {domain.max_shells} (a grid scheme?); try --fit subject"
        )
    most = max(len(s.indices) for s in weighted)
    if most < domain.min_directions:
        warnings.append(
            f"at most {most} directions in a shell, trained with {domain.min_directions} or more; crossings will be missed"
        )
    if not domain.snr[0] <= snr <= 2 * domain.snr[1]:
        warnings.append(
            f"signal-to-noise ratio {snr:.0f} in white matter at b=0, trained from {domain.snr[0]:.0f} to "
            f"{domain.snr[1]:.0f}; check the noise of the images, or denoise them first"
        )
    return warnings


def fit_warnings(quality: Quality) -> list[str]:
    """Return in which shells the predicted signal misses the measured one by more than noise and responses explain."""
    error = quality.explained_error
    return [
        f"b={b:.0f}: the predicted signal misses the measured one by {residual / error:.1f} times what noise and responses "
        "explain; look at the residual map for motion, drop-out or scaling between volumes, or try --fit subject"
        for b, residual in quality.shell_residuals.items()
        if residual > quality.most_misfit * error
    ]
