"""Fibre directions as the options of the user ask for them."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from shd_bids.options import PeakOptions
from shd_bids.peaks.rule import Rule
from shd_bids.peaks.search import Peaks, find_peaks
from shd_bids.peaks.threshold import noise_threshold


def find_fibres(
    coefficients: np.ndarray,
    options: PeakOptions,
    *,
    wm_fraction: np.ndarray,
    csf_fraction: np.ndarray,
    prominence: float,
    device: str | torch.device = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Peaks, Rule]:
    """Return the peaks that count as fibres, and the rule by which they do.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients (MRtrix3 basis), world axes.
    options : PeakOptions
        Without an absolute threshold it is taken from the voxels of fluid, see `noise_threshold`.
    wm_fraction, csf_fraction : (n,) arrays
        Signal fractions.
    prominence : float
        Least relative depth of the saddle between two peaks, where the options leave it open.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with a text and the share done.
    """
    threshold = options.peak_absolute_threshold
    if threshold is None:
        threshold = noise_threshold(coefficients, csf_fraction, wm_fraction=wm_fraction, device=device)
    rule = Rule(
        max_peaks=options.peak_max,
        relative_threshold=options.peak_relative_threshold,
        absolute_threshold=threshold,
        min_separation=options.peak_separation,
        prominence=prominence if options.peak_prominence is None else options.peak_prominence,
    )
    return find_peaks(coefficients, **asdict(rule), device=device, progress=progress), rule
