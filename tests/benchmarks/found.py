"""What a method found, and which of its peaks it is used with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from counts import keep_peaks

from shd_bids.gradients.table import GradientTable
from shd_bids.options import PeakOptions
from shd_bids.peaks.fibres import are_told
from shd_bids.peaks.lobes import direction_intervals, measure_lobes
from shd_bids.peaks.search import find_peaks

MAX_PEAKS = 10
MOST_FIBRES = 5
"""Peaks kept in a voxel by `own_peaks`, the default of this package and of dipy."""

_OURS, _MRTRIX, _DIPY = (0.1, 15.0), (0.0, 0.0), (0.5, 25.0)
RULES = {
    "amortised": _OURS,
    "network": _OURS,
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

LEAST_SHELL = 15
"""Directions that a shell needs for a deconvolution of its own."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found in n voxels, in the order of the mask.

    Attributes
    ----------
    directions : ndarray, shape (n, K, 3)
    amplitudes : ndarray, shape (n, K)
    cutoff : float
        Amplitude below which the package's own tools see no fibre; NaN where it has no such rule.
    coefficients : ndarray, shape (n, C), or None
        The fODF, where the method gives it as spherical harmonics of MRtrix3's basis.
    told : ndarray of bool, shape (n, K), or None
        Which directions noise does not explain, where the method says so.
    """

    directions: np.ndarray
    amplitudes: np.ndarray
    cutoff: float = np.nan
    coefficients: np.ndarray | None = None
    told: np.ndarray | None = None


def own_peaks(name: str, found: Found) -> Found:
    """Keep the peaks that a method's own tools show, by `RULES`, its cutoff and what it says of noise; the others become zero."""
    relative, separation = RULES[name]
    kept = keep_peaks(
        found.directions,
        found.amplitudes,
        relative=relative,
        absolute=np.nan_to_num(found.cutoff),
        separation=separation,
        most=MOST_FIBRES,
    )
    if found.told is not None:
        kept &= found.told
    return replace(found, directions=found.directions * kept[..., None], amplitudes=found.amplitudes * kept)


def find_maxima(
    coefficients: np.ndarray,
    cutoff: float = np.nan,
    *,
    prominence: float = 0.0,
    direction_errors: np.ndarray | None = None,
    wm_fraction: np.ndarray | None = None,
) -> Found:
    """Find the peaks of fODFs (n, C) down to 0.04 of the largest.

    Those of the app have a saddle of its ``prominence`` between them, count by their heights above the isotropic part, and are
    told by its ``direction_errors`` and ``wm_fraction``.
    """
    coefficients = coefficients.astype(np.float32)
    found = find_peaks(
        coefficients,
        max_peaks=MAX_PEAKS,
        relative_threshold=0.04,
        min_separation=5.0,
        prominence=prominence,
    )
    told = None
    if direction_errors is not None:
        intervals = direction_intervals(measure_lobes(coefficients, found), direction_errors)
        told = are_told(intervals, wm_fraction=wm_fraction, widest=PeakOptions().peak_interval)
    return Found(found.directions, found.heights if prominence else found.amplitudes, cutoff, coefficients, told)


def best_shell(gradients: GradientTable) -> int:
    """Return the number of the highest shell that has directions enough, or else of the one with most."""
    counts = np.array([len(shell.indices) for shell in gradients.shells])
    counts[0] = 0
    enough = np.flatnonzero(counts >= LEAST_SHELL)
    return int(enough[-1]) if len(enough) else int(counts.argmax())
