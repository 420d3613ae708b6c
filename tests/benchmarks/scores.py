"""Figures of the comparisons that no part of the package needs."""

from itertools import pairwise

import numpy as np

from shd_bids.simulation.scoring import PeakScore


def fnr_at(score: PeakScore, fdr: float) -> float:
    """Return the smallest share of missed fibres reachable at a false discovery rate of at most ``fdr``.

    The curve is read by linear interpolation between thresholds, so that two methods are compared at equal error.
    """
    rates = np.concatenate([1 - score.precision, [0.0]])
    missed = np.concatenate([1 - score.recall, [1.0]])
    reachable = [float(m) for r, m in zip(rates, missed, strict=True) if r <= fdr]
    for (r0, m0), (r1, m1) in pairwise(zip(rates, missed, strict=True)):
        if (r0 - fdr) * (r1 - fdr) < 0:
            reachable.append(float(m0 + (m1 - m0) * (fdr - r0) / (r1 - r0)))
    return min(reachable)


def full_fibre_amplitude(amplitudes: np.ndarray, fractions: np.ndarray) -> float:
    """Return the amplitude that a method gives to one fibre that fills its voxel.

    It is a unit in which amplitudes of methods with different scales compare: a peak of 0.1 of it claims as much as a
    fibre that fills a tenth of the voxel. It is the median, over the fullest tenth of the voxels with one fibre, of the
    largest amplitude divided by the fraction.

    Parameters
    ----------
    amplitudes : (n, K) array
        Peak amplitudes.
    fractions : (n, G) array
        True volume fraction of each fibre, zero where there is none.

    Raises
    ------
    ValueError
        If no voxel has exactly one fibre.
    """
    single = np.flatnonzero((fractions > 0).sum(axis=1) == 1)
    if not len(single):
        raise ValueError("found no voxel with exactly one fibre, expected at least one to measure the amplitude in")
    fraction = fractions[single].sum(axis=1)
    fullest = fraction >= np.quantile(fraction, 0.9)
    return float(np.median(amplitudes[single[fullest]].max(axis=1) / fraction[fullest]))


def peaks_per_voxel(amplitudes: np.ndarray, threshold: float) -> float:
    """Return the mean number of peaks above an absolute threshold in voxels (n, K); 0 without voxels.

    In voxels without fibres each of them is false. An absolute threshold is needed there: of a nearly empty fODF, a share
    of its own largest lobe would count the noise.
    """
    return float((amplitudes > threshold).sum() / max(len(amplitudes), 1))
