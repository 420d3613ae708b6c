"""How well a fit explains the signal, and what the user should be warned of."""

from __future__ import annotations

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.fod.fod import FOD, Quality
from shd_bids.fod.refinement.refine import MODEL_ERROR, VOXELS_PER_CHUNK
from shd_bids.gradients.table import GradientTable
from shd_bids.scan import Scan

TRAINED_BVALUES = (500.0, 13000.0)
"""Smallest and largest b-value of the simulated protocols, s/mm2."""

TRAINED_SNR = (8.0, 60.0)
"""Range of the simulated signal-to-noise ratio of white matter at b=0."""

TRAINED_DIRECTIONS = 12
"""Fewest directions that every simulated protocol had in one of its shells."""

POOR_FIT = 2.5
"""Residual of a shell, in units of noise and model error, above which something is wrong; four real scans showed 1.3 to 2."""


def measure_quality(fod: FOD, scan: Scan) -> Quality:
    """Compare the predicted with the measured signal, by voxel, volume and shell."""
    model, shells = scan.forward(fod.l_max), scan.gradients.shells
    voxels, isotropic = scan.voxels, fod.isotropic(model)
    of_wm, of_isotropic = np.split(model.matrix.numpy(), [fod.wm.shape[1]], axis=1)
    by_shell = np.zeros((len(voxels), len(shells)), dtype=np.float32)
    r_squared = np.zeros(len(voxels), dtype=np.float32)
    by_volume = np.zeros(voxels.shape[1])
    for part in chunks(len(voxels), VOXELS_PER_CHUNK):
        error = (voxels[part] - fod.wm[part] @ of_wm.T - isotropic[part] @ of_isotropic.T) ** 2
        by_volume += error.sum(axis=0)
        variation = np.maximum(voxels[part].var(axis=1) * voxels.shape[1], 1e-12)
        r_squared[part] = 1 - error.sum(axis=1) / variation
        for i, shell in enumerate(shells):
            by_shell[part, i] = error[:, shell.indices].mean(axis=1)
    shares = np.array([len(s.indices) for s in shells]) / voxels.shape[1]
    medians = np.median(np.sqrt(by_shell), axis=0) if len(voxels) else np.zeros(len(shells))
    return Quality(
        r_squared=r_squared,
        residual_std=np.sqrt(by_shell @ shares).astype(np.float32),
        volume_residuals=np.sqrt(by_volume / max(len(voxels), 1)),
        shell_residuals={float(s.bvalue): float(m) for s, m in zip(shells, medians, strict=True)},
    )


def domain_warnings(gradients: GradientTable, *, snr: float) -> list[str]:
    """Return in which ways an acquisition lies outside what the shipped weights were trained on."""
    weighted = gradients.shells[1:]
    warnings = []
    outside = [round(s.bvalue) for s in weighted if not TRAINED_BVALUES[0] <= s.bvalue + 25 <= TRAINED_BVALUES[1] + 50]
    low, high = (f"{b:.0f}" for b in TRAINED_BVALUES)
    if outside:
        warnings.append(f"b-values {outside} lie outside the trained range {low} to {high} s/mm2; try --fit subject")
    if len(weighted) > 5:
        warnings.append(f"{len(weighted)} shells, trained with up to 5 (a grid scheme?); try --fit subject")
    most = max(len(s.indices) for s in weighted)
    if most < TRAINED_DIRECTIONS:
        warnings.append(
            f"at most {most} directions in a shell, trained with {TRAINED_DIRECTIONS} or more; crossings will be missed"
        )
    if not TRAINED_SNR[0] <= snr <= 2 * TRAINED_SNR[1]:
        warnings.append(
            f"signal-to-noise ratio {snr:.0f} in white matter at b=0, trained from {TRAINED_SNR[0]:.0f} to "
            f"{TRAINED_SNR[1]:.0f}; check the noise of the images, or denoise them first"
        )
    return warnings


def fit_warnings(quality: Quality, *, sigma: float, scale: float) -> list[str]:
    """Return in which shells the predicted signal misses the measured one by more than noise and responses explain.

    Parameters
    ----------
    quality : Quality
    sigma, scale : float
        Noise level and white-matter signal at b=0, in the same unit.
    """
    expected = float(np.hypot(sigma, MODEL_ERROR * scale))
    return [
        f"b={b:.0f}: the predicted signal misses the measured one by {residual / expected:.1f} times what noise and responses "
        "explain; look at the residual map for motion, drop-out or scaling between volumes, or try --fit subject"
        for b, residual in quality.shell_residuals.items()
        if residual > POOR_FIT * expected
    ]
