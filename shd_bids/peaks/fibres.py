"""Fibre directions as the options of the user ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from shd_bids.options import PeakOptions
from shd_bids.peaks.lobes import Lobes, direction_intervals, measure_lobes
from shd_bids.peaks.rule import Rule
from shd_bids.peaks.search import Peaks, find_peaks
from shd_bids.peaks.threshold import noise_threshold

_MOSTLY = 0.5  # of the signal of a voxel


@dataclass(frozen=True, eq=False)
class Fibres:
    """Peaks that count as fibres.

    Attributes
    ----------
    peaks : Peaks
    lobes : Lobes
        Beneath each of them.
    intervals : ndarray, shape (n, K), float32
        Angle around each that holds the true direction with 90 % confidence, degrees; zero where there is no peak.
    rule : Rule
        By which their heights and distances were judged.
    """

    peaks: Peaks
    lobes: Lobes
    intervals: np.ndarray
    rule: Rule


def find_fibres(
    coefficients: np.ndarray,
    options: PeakOptions,
    *,
    wm_fraction: np.ndarray,
    csf_fraction: np.ndarray,
    prominence: float,
    direction_errors: np.ndarray,
    device: str | torch.device = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Fibres:
    """Return the peaks that count as fibres.

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
    direction_errors : (3, W) array
        See `shd_bids.peaks.lobes.direction_intervals`.
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
    peaks = find_peaks(coefficients, **asdict(rule), device=device, progress=progress)
    lobes = measure_lobes(coefficients, peaks)
    intervals = direction_intervals(lobes, direction_errors)
    is_told = are_told(intervals, wm_fraction=wm_fraction, widest=options.peak_interval)
    return _kept(Fibres(peaks, lobes, intervals, rule), (peaks.amplitudes > 0) & is_told)


def are_told(intervals: np.ndarray, *, wm_fraction: np.ndarray, widest: float) -> np.ndarray:
    """Return which peaks, (n, K), noise does not explain.

    A peak whose direction noise leaves open is no fibre, but for the largest of a voxel that is mostly white matter, which holds
    fibres: its interval tells how little is known of them.

    Parameters
    ----------
    intervals : (n, K) array
        With 90 % confidence, degrees.
    wm_fraction : (n,) array
        Signal fraction.
    widest : float
        At 45 degrees the interval of a direction meets that of one at right angles to it.
    """
    told = intervals <= widest
    told[:, 0] |= np.asarray(wm_fraction) > _MOSTLY
    return told


def _kept(fibres: Fibres, kept: np.ndarray) -> Fibres:
    """Return some of the fibres, (n, K) of bool: in each voxel first those, then zeros."""
    order = np.argsort(~kept, axis=1, kind="stable")

    def moved(values: np.ndarray) -> np.ndarray:
        shape = (*kept.shape, *[1] * (values.ndim - 2))
        return np.take_along_axis(np.where(kept.reshape(shape), values, 0), order.reshape(shape), axis=1)

    peaks, lobes = fibres.peaks, fibres.lobes
    return replace(
        fibres,
        peaks=replace(peaks, directions=moved(peaks.directions), amplitudes=moved(peaks.amplitudes)),
        lobes=Lobes(moved(lobes.dispersion), moved(lobes.density)),
        intervals=moved(fibres.intervals),
    )
