"""Figures of the peaks that a method shows: how many there are, and how far from the true axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

TOLERANCE = 20.0
"""Degrees within which an axis counts as found; half the crossing angle where that is less."""

Samples = dict[str, np.ndarray]
"""Metric -> its value in each voxel."""

_MEDIANS = ("first_error",)


def keep_peaks(
    directions: np.ndarray, amplitudes: np.ndarray, *, relative: float, absolute: float, separation: float, most: int
) -> np.ndarray:
    """Return which peaks, (n, K), a choice by size and distance keeps.

    Parameters
    ----------
    directions : ndarray, shape (n, K, 3)
        Unit axes.
    amplitudes : ndarray, shape (n, K)
        Descending; zero where there is no peak.
    relative : float
        Smallest amplitude as a share of the largest of the voxel.
    absolute : float
        Smallest amplitude.
    separation : float
        Smallest angle to a larger peak that is kept, degrees.
    most : int
        Peaks kept in a voxel.
    """
    kept = (amplitudes > 0) & (amplitudes >= np.maximum(relative * amplitudes[:, :1], absolute))
    is_near = np.abs(np.einsum("nki,nji->nkj", directions, directions)) > np.cos(np.radians(separation))
    for rank in range(1, amplitudes.shape[1]):
        kept[:, rank] &= ~(kept[:, :rank] & is_near[:, rank, :rank]).any(axis=1)
    return kept & (kept.cumsum(axis=1) <= most)


def measure(directions: np.ndarray, axes: np.ndarray) -> Samples:
    """Compare the peaks of n voxels with their true axes.

    Parameters
    ----------
    directions : ndarray, shape (n, K, 3)
        Unit axes of the peaks, the largest first; zero where there is none.
    axes : ndarray, shape (n, F, 3)
        Of zero, one or two bundles.

    Returns
    -------
    dict
        Without a bundle ``with_peak``; with one ``one_peak`` (exactly one); with two ``both_found`` (each by a peak of its own)
        and ``exactly_two``; ``first_error``, of the largest peak from the nearest axis in degrees, 90 without a peak.
    """
    count = directions.any(axis=2).sum(axis=1)
    n_axes = axes.shape[1]
    if n_axes == 0:
        return {"with_peak": count > 0}
    errors = angles(directions, axes)  # (n, K, F)
    first = {"first_error": errors[:, 0].min(axis=1)}
    if n_axes == 1:
        return {"one_peak": count == 1, **first}
    between = angles(axes[:, :1], axes[:, 1:])[:, 0, 0]
    both = all_found(errors, np.minimum(TOLERANCE, between / 2))
    return {"both_found": both, "exactly_two": count == 2, **first}


def angles(directions: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return the angles between directions (n, K, 3) and axes (n, F, 3), (n, K, F), in degrees; 90 to a zero direction."""
    return np.degrees(np.arccos(np.abs(np.einsum("nki,nfi->nkf", directions, axes)).clip(0, 1)))


def all_found(errors: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Whether each axis has a direction of its own within the tolerance (n,), for errors (n, K, F)."""
    n_axes = errors.shape[2]
    is_near = errors < tolerance[:, None, None]
    choices = permutations(range(errors.shape[1]), n_axes)
    return np.any([is_near[:, choice, range(n_axes)].all(axis=1) for choice in choices], axis=0)


def pool(samples: Sequence[Samples]) -> dict[str, float]:
    """Return the share of voxels, or the median error, over the voxels of several volumes."""
    joined = {metric: np.concatenate([s[metric] for s in samples]) for metric in samples[0]}
    return {m: float(np.median(v) if m in _MEDIANS else v.mean()) for m, v in joined.items()}
