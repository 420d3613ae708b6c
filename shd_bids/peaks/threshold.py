"""How high a peak must rise, judged from voxels that hold fluid and so, no fibre."""

import numpy as np
import torch

from shd_bids.peaks.measures import afd_total, largest_peak

FLUID_QUANTILE = 0.95
"""Share of the voxels of fluid that shows no peak."""

_MOST_ISOTROPIC = 0.2  # of the fODF of white matter


def noise_threshold(
    coefficients: np.ndarray,
    csf_fraction: np.ndarray,
    *,
    wm_fraction: np.ndarray,
    device: str | torch.device = "cpu",
) -> float:
    """Return an absolute peak threshold from voxels that hold fluid and so, no fibre.

    The threshold is what `FLUID_QUANTILE` of the largest heights of CSF-dominated voxels stay below (after the ventricle
    rule of Dell'Acqua et al. 2013), held between 2 and 15 percent of the median largest height of WM-dominated voxels, so
    that neither a perfect fit nor a wrong tissue map decides alone. White matter is what the fODF holds beyond its isotropic
    part, which with one shell is grey matter. With fewer than 20 such voxels the lower bound (for CSF) or the voxels with
    most white matter (for WM) take their place.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients.
    csf_fraction, wm_fraction : (n,) arrays
        Signal fractions in [0, 1].
    device : str or torch.device
        Where to compute.

    Returns
    -------
    float
        In the units of the function.
    """
    white = _sample_of(np.flatnonzero(np.asarray(wm_fraction) > 0.8))
    fluid = _sample_of(np.flatnonzero(np.asarray(csf_fraction) > 0.9))
    if len(white) < 20:
        white = np.argsort(-np.asarray(wm_fraction), kind="stable")[:200]
    reference = _median_height(coefficients[white], device) if len(white) else 0.0
    low, high = 0.02 * reference, 0.15 * reference
    if len(fluid) < 20:
        return low
    heights = largest_peak(coefficients[fluid], device=device).heights
    return float(np.clip(np.quantile(heights, FLUID_QUANTILE), low, high))


def _median_height(coefficients: np.ndarray, device: str | torch.device) -> float:
    """Return the median largest height of the voxels whose fODF is mostly anisotropic, or of the quarter that is most so."""
    peaks = largest_peak(coefficients, device=device)
    isotropic = 4 * np.pi * peaks.isotropic / np.maximum(afd_total(coefficients), 1e-6)
    return float(np.median(peaks.heights[isotropic <= max(_MOST_ISOTROPIC, np.quantile(isotropic, 0.25))]))


def _sample_of(indices: np.ndarray, limit: int = 5000) -> np.ndarray:
    """Return at most ``limit`` of the indices, evenly spaced: a median needs no more."""
    return indices[np.linspace(0, len(indices) - 1, min(limit, len(indices))).astype(int)]
