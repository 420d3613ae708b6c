"""How high a peak must rise, judged from voxels that hold fluid and so, no fibre."""

import numpy as np
import torch

from shd_bids.peaks.measures import largest_height

FLUID_QUANTILE = 0.95
"""Share of the voxels of fluid that shows no peak."""


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
    that neither a perfect fit nor a wrong tissue map decides alone. With fewer than 20 such voxels the lower bound (for CSF)
    or the voxels with most white matter (for WM) take their place.

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
    reference = float(np.median(largest_height(coefficients[white], device=device))) if len(white) else 0.0
    low, high = 0.02 * reference, 0.15 * reference
    if len(fluid) < 20:
        return low
    return float(np.clip(np.quantile(largest_height(coefficients[fluid], device=device), FLUID_QUANTILE), low, high))


def _sample_of(indices: np.ndarray, limit: int = 5000) -> np.ndarray:
    """Return at most ``limit`` of the indices, evenly spaced: a median needs no more."""
    return indices[np.linspace(0, len(indices) - 1, min(limit, len(indices))).astype(int)]
