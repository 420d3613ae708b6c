"""Figures of the peaks that a method shows: how many there are, how far from the true axes, and how reproducible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np

from shd_bids.gradients.dti import fractional_anisotropy
from shd_bids.gradients.table import GradientTable

TOLERANCE = 20.0
"""Degrees within which an axis counts as found; half the crossing angle where that is less."""

Samples = dict[str, np.ndarray]
"""Metric -> its value in each voxel."""

FA_EDGES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Bins of fractional anisotropy: the larger it is, the less can anything but one fibre be there."""

_MEDIANS = ("first_error", "fod_correlation")
_SINGLE = 0.6  # FA above which the main axis of the tensor is that of the largest fibre
_WHITE, _GREY = 0.3, 0.15  # FA above which a voxel is white, below which it is grey matter
_DENSE = (0.6e-3, 1.1e-3)  # mean diffusivity of tissue, mm2/s
_FLUID = 2.0e-3  # mean diffusivity above which a voxel is CSF, mm2/s
_COMPARED = 45  # coefficients of fODFs that are correlated: to degree 8


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


def tissues(tensors: np.ndarray) -> dict[str, np.ndarray]:
    """Return which of n voxels are surely white matter, grey matter and CSF, by their tensors (n, 3, 3) alone."""
    fa, md = fractional_anisotropy(tensors), np.trace(tensors, axis1=1, axis2=2) / 3
    is_dense = (md > _DENSE[0]) & (md < _DENSE[1])
    return {"white matter": is_dense & (fa > _WHITE), "grey matter": is_dense & (fa < _GREY), "CSF": md > _FLUID}


def measure_scan(directions: np.ndarray, tensors: np.ndarray) -> dict[str, Samples]:
    """Compare the peaks of n voxels with their tensors.

    Parameters
    ----------
    directions : ndarray, shape (n, K, 3)
        Unit axes of the peaks, the largest first; zero where there is none.
    tensors : ndarray, shape (n, 3, 3)

    Returns
    -------
    dict
        ``one_peak`` by FA; ``first_error`` of the largest peak from the main axis where FA exceeds 0.6; ``three_peaks`` (or
        more) in white matter; ``with_peak`` in grey matter and CSF.
    """
    count = directions.any(axis=2).sum(axis=1)
    fa, tissue = fractional_anisotropy(tensors), tissues(tensors)
    errors = _off_main_axis(directions, tensors)
    bins = {f"FA {low}-{high}": {"one_peak": count[(fa > low) & (fa <= high)] == 1} for low, high in pairwise(FA_EDGES)}
    return bins | {
        f"FA above {_SINGLE}": {"first_error": errors[fa > _SINGLE]},
        "white matter": {"three_peaks": count[tissue["white matter"]] >= 3},
        "grey matter": {"with_peak": count[tissue["grey matter"]] > 0},
        "CSF": {"with_peak": count[tissue["CSF"]] > 0},
    }


def odd_and_even(gradients: GradientTable) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of volumes: every other direction of each shell, in the order of acquisition, and all of b=0."""
    one, other = ([gradients.b0_indices, *(s.indices[start::2] for s in gradients.shells[1:])] for start in (0, 1))
    return np.sort(np.concatenate(one)), np.sort(np.concatenate(other))


def measure_halves(one: np.ndarray, other: np.ndarray) -> Samples:
    """Compare the peaks, (n, K, 3), of two halves of a scan: their number, and the angle between the largest, degrees."""
    number = [directions.any(axis=2).sum(axis=1) for directions in (one, other)]
    return {"first_error": angles(one[:, :1], other[:, :1])[:, 0, 0], "same_count": number[0] == number[1]}


def measure_across(
    halves: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray], tensors: np.ndarray
) -> Samples:
    """Compare the largest peak of each half of a scan with the tensor of the other half, whose noise it does not share.

    Parameters
    ----------
    halves : pair of ndarray, shape (n, K, 3)
        Unit axes of the peaks, the largest first.
    others : pair of ndarray, shape (n, 3, 3)
        Tensors of the other half of each.
    tensors : ndarray, shape (n, 3, 3)
        Of the whole scan, which decide where FA exceeds 0.6.
    """
    single = fractional_anisotropy(tensors) > _SINGLE
    errors = [_off_main_axis(half[single], other[single]) for half, other in zip(halves, others, strict=True)]
    return {"first_error": np.concatenate(errors)}


def _off_main_axis(directions: np.ndarray, tensors: np.ndarray) -> np.ndarray:
    """Return the angle (n,) of the largest peak, of (n, K, 3), from the main axis of a tensor (n, 3, 3), degrees."""
    main = np.linalg.eigh(tensors)[1][:, :, 2]
    return angles(directions[:, :1], main[:, None])[:, 0, 0]


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    r"""Return the angular correlation (n,) of fODFs given by SH coefficients (n, C), degrees 2 to 8.

    .. math:: \frac{\sum_{l \ge 2, m} a_{lm} b_{lm}}{\sqrt{\sum a_{lm}^2 \sum b_{lm}^2}}

    Source: Anderson, Magn. Reson. Med. 54 (2005) 1194, equation 71. It is 0 where one of them is isotropic.
    """
    a, b = (x[:, 1 : min(_COMPARED, one.shape[1], other.shape[1])].astype(float) for x in (one, other))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norm, 1e-12)


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
    """Return the share of voxels, or the median of an angle or correlation, over the voxels of several volumes."""
    joined = {metric: np.concatenate([s[metric] for s in samples]) for metric in samples[0]}
    return {m: float(np.median(v) if m in _MEDIANS else v.mean()) for m, v in joined.items()}
