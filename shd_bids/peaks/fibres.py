"""Fibre directions as the options of the user ask for them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from shd_bids.options import PeakOptions
from shd_bids.peaks.search import Peaks, find_peaks
from shd_bids.peaks.threshold import noise_threshold


def with_prominence(options: PeakOptions, prominence: float) -> PeakOptions:
    """Return options with this least depth of the saddle between peaks, where the user leaves it open."""
    return options if options.peak_prominence is not None else replace(options, peak_prominence=prominence)


def find_fibres(
    coefficients: np.ndarray,
    options: PeakOptions,
    *,
    wm_fraction: np.ndarray,
    csf_fraction: np.ndarray,
    device: str | torch.device = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Peaks, float]:
    """Return the peaks that count as fibres, and the absolute threshold on their heights.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients (MRtrix3 basis), world axes.
    options : PeakOptions
        Without an absolute threshold it is taken from the voxels of fluid, see `noise_threshold`; without a prominence
        (`with_prominence`) every maximum counts.
    wm_fraction, csf_fraction : (n,) arrays
        Signal fractions.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with a text and the share done.
    """
    threshold = options.peak_absolute_threshold
    if threshold is None:
        threshold = noise_threshold(coefficients, csf_fraction, wm_fraction=wm_fraction, device=device)
    peaks = find_peaks(
        coefficients,
        max_peaks=options.peak_max,
        relative_threshold=options.peak_relative_threshold,
        absolute_threshold=threshold,
        min_separation=options.peak_separation,
        prominence=options.peak_prominence or 0.0,
        device=device,
        progress=progress,
    )
    return peaks, threshold
