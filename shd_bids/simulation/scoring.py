"""Score fibre directions against a known truth: matching within 25 degrees, precision-recall area, angular error.

The rules are those of the evaluation of Elaldi et al. (SHD-TV, 2024): a detected peak is true when it and a true fibre
are each other's nearest neighbours within 25 degrees, counts are summed over voxels that hold at least one fibre, and
the relative amplitude threshold runs over 0.05, 0.10, ..., 0.95. False fibres in voxels without any, which those rules
leave out, are counted apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.integrate import trapezoid

from shd_bids.boxes import chunks

THRESHOLDS = np.round(np.arange(0.05, 0.951, 0.05), 2)
"""Relative amplitude thresholds of the precision-recall curve."""

MATCH_ANGLE = 25.0
"""Largest angle, in degrees, between a true fibre and the peak that counts as having found it."""

_VOXELS_PER_CHUNK = 50_000  # bounds the angle table: 50 000 voxels x 5 fibres x 10 peaks x 8 bytes = 20 MB


@dataclass(frozen=True, eq=False)
class PeakScore:
    """Agreement of detected peaks with true fibres over a range of relative amplitude thresholds.

    Attributes
    ----------
    thresholds : (T,) array
        Relative amplitude thresholds, ascending.
    true_positives, false_positives, false_negatives : (T,) int arrays
        Counts over the voxels with at least one true fibre.
    angular_errors : (T,) array
        Degrees: mean over voxels of the mean over true fibres of the angle to the nearest peak (90 if there is none).
    n_voxels : int
        Voxels with at least one true fibre.
    n_empty_voxels : int
        Scored voxels without a true fibre.
    empty_false_fibres : (T,) int array
        Peaks found in the empty voxels.
    empty_voxels_hit : int
        Empty voxels with at least one peak; a relative threshold always keeps the largest, so this has no threshold.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    angular_errors: np.ndarray
    n_voxels: int
    n_empty_voxels: int
    empty_false_fibres: np.ndarray
    empty_voxels_hit: int

    @property
    def recall(self) -> np.ndarray:
        """Return TP / (TP + FN) at each threshold, (T,); 0 where there is no true fibre."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives, empty=0.0)

    @property
    def precision(self) -> np.ndarray:
        """Return TP / (TP + FP) at each threshold, (T,); 1 where nothing was detected."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives, empty=1.0)

    @property
    def f1(self) -> np.ndarray:
        """Return 2 TP / (2 TP + FP + FN) at each threshold, (T,)."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong, empty=0.0)

    @property
    def best(self) -> int:
        """Return the index of the threshold with the largest F1."""
        return int(np.argmax(self.f1))

    @property
    def pr_area(self) -> float:
        """Return the area under precision over recall, closed by the points (1, 0) and (0, 1)."""
        recall = np.concatenate([[1.0], self.recall, [0.0]])
        precision = np.concatenate([[0.0], self.precision, [1.0]])
        return float(-trapezoid(precision, recall))  # recall falls as the threshold rises

    @property
    def f1_max(self) -> float:
        """Return the largest F1 over the thresholds."""
        return float(self.f1[self.best])

    @property
    def angular_error(self) -> float:
        """Return the angular error in degrees at the threshold with the largest F1."""
        return float(self.angular_errors[self.best])

    @property
    def angular_error_mean(self) -> float:
        """Return the angular error in degrees averaged over the thresholds."""
        return float(self.angular_errors.mean())

    @property
    def fnr(self) -> float:
        """Return the share of true fibres missed, 1 - recall, at the threshold with the largest F1."""
        return float(1 - self.recall[self.best])

    @property
    def fdr(self) -> float:
        """Return the share of detected fibres that are false, 1 - precision, at the threshold with the largest F1."""
        return float(1 - self.precision[self.best])

    @property
    def empty_false_fibres_per_voxel(self) -> float:
        """Return the mean number of peaks in a voxel without fibres at the threshold with the largest F1."""
        return float(self.empty_false_fibres[self.best] / max(self.n_empty_voxels, 1))

    @property
    def empty_hit_rate(self) -> float:
        """Return the share of voxels without fibres that show at least one peak."""
        return self.empty_voxels_hit / max(self.n_empty_voxels, 1)

    def summary(self) -> dict[str, float]:
        """Return the headline numbers as a JSON-safe dictionary (angles in degrees, all else dimensionless)."""
        return {
            "pr_area": self.pr_area,
            "f1": self.f1_max,
            "threshold": float(self.thresholds[self.best]),
            "angular_error": self.angular_error,
            "angular_error_mean": self.angular_error_mean,
            "fnr": self.fnr,
            "fdr": self.fdr,
            "n_voxels": self.n_voxels,
            "n_empty_voxels": self.n_empty_voxels,
            "empty_false_fibres_per_voxel": self.empty_false_fibres_per_voxel,
            "empty_hit_rate": self.empty_hit_rate,
        }


def score_peaks(
    directions: np.ndarray,
    amplitudes: np.ndarray,
    truth: np.ndarray,
    *,
    thresholds: np.ndarray = THRESHOLDS,
) -> PeakScore:
    """Return the score of detected peaks against true fibres in every voxel.

    A peak is kept at threshold t where its amplitude exceeds t times the largest of its voxel.

    Parameters
    ----------
    directions : (n, K, 3) array
        Detected axes (sign free), any non-zero length; zero rows where there is none.
    amplitudes : (n, K) array
        Their amplitudes; entries that are not positive count as no peak.
    truth : (n, G, 3) array
        True axes, zero rows where there is none; same frame as ``directions``.
    thresholds : (T,) array
        Relative amplitude thresholds.

    Returns
    -------
    PeakScore

    Raises
    ------
    ValueError
        If the shapes do not belong together.
    """
    directions, amplitudes, truth = (np.asarray(a, dtype=np.float64) for a in (directions, amplitudes, truth))
    if directions.shape != (*amplitudes.shape, 3) or truth.shape[::2] != (len(directions), 3) or truth.ndim != 3:
        raise ValueError(
            f"found directions {directions.shape}, amplitudes {amplitudes.shape}, truth {truth.shape}; "
            "expected (n, K, 3), (n, K) and (n, G, 3) with one n"
        )
    thresholds = np.asarray(thresholds, dtype=np.float64)
    (true, is_true), (peaks, is_peak) = _unit(truth), _unit(directions)
    is_peak &= amplitudes > 0
    has_fibre = is_true.sum(axis=1) > 0
    counts = np.zeros((5, len(thresholds)))
    for part in chunks(len(directions), _VOXELS_PER_CHUNK):
        angle = np.degrees(np.arccos(np.minimum(np.abs(np.einsum("ngc,nkc->ngk", true[part], peaks[part])), 1.0)))
        for t, kept in enumerate(_above(thresholds, amplitudes[part], is_peak[part])):
            counts[:, t] += _count(angle, is_true[part], kept, has_fibre[part])
    found, false, missed, error, empty_false = counts
    n_voxels = int(has_fibre.sum())
    return PeakScore(
        thresholds=thresholds,
        true_positives=found.astype(int),
        false_positives=false.astype(int),
        false_negatives=missed.astype(int),
        angular_errors=error / max(n_voxels, 1),
        n_voxels=n_voxels,
        n_empty_voxels=len(truth) - n_voxels,
        empty_false_fibres=empty_false.astype(int),
        empty_voxels_hit=int(is_peak[~has_fibre].any(axis=1).sum()),
    )


def pooled(scores: Sequence[PeakScore]) -> PeakScore:
    """Return the score of several volumes scored at the same thresholds, as if they had been one.

    Raises
    ------
    ValueError
        If there is no score or the thresholds differ.
    """
    if not scores or any(not np.array_equal(s.thresholds, scores[0].thresholds) for s in scores):
        raise ValueError(f"found {len(scores)} scores, expected at least one and the same thresholds in all")
    n_voxels = sum(s.n_voxels for s in scores)
    errors = np.sum([s.angular_errors * s.n_voxels for s in scores], axis=0)
    counts = ("true_positives", "false_positives", "false_negatives", "empty_false_fibres")
    return PeakScore(
        thresholds=scores[0].thresholds,
        angular_errors=errors / max(n_voxels, 1),
        n_voxels=n_voxels,
        n_empty_voxels=sum(s.n_empty_voxels for s in scores),
        empty_voxels_hit=sum(s.empty_voxels_hit for s in scores),
        **{name: np.sum([getattr(s, name) for s in scores], axis=0) for name in counts},
    )


def score_by_crossing(
    directions: np.ndarray,
    amplitudes: np.ndarray,
    truth: np.ndarray,
    *,
    edges: tuple[float, ...] = (0.0, 20.0, 45.0, 70.0, 90.0),
    thresholds: np.ndarray = THRESHOLDS,
) -> dict[str, PeakScore]:
    """Return the scores of voxels by how they cross: one fibre, then bins of the smallest angle between two true fibres.

    Arguments are those of `score_peaks`; ``edges`` are the bin edges in degrees, each bin open below and closed above.
    Keys are ``"single"`` and ``"20-45"`` and so on; a bin without voxels is left out.
    """
    angle = crossing_angle(truth)
    is_true = _unit(np.asarray(truth, dtype=np.float64))[1]
    groups = {"single": is_true.sum(axis=1) == 1}
    for low, high in pairwise(edges):
        groups[f"{low:g}-{high:g}"] = (angle > low) & (angle <= high)
    return {
        name: score_peaks(directions[where], amplitudes[where], truth[where], thresholds=thresholds)
        for name, where in groups.items()
        if where.any()
    }


def crossing_angle(truth: np.ndarray) -> np.ndarray:
    """Return the smallest angle between two true fibres of a voxel, (n,) degrees, NaN with fewer than two.

    Parameters
    ----------
    truth : (n, G, 3) array
        True axes, zero rows where there is none.
    """
    true, is_true = _unit(np.asarray(truth, dtype=np.float64))
    cosine = np.abs(np.einsum("ngc,nhc->ngh", true, true))
    first, second = np.triu_indices(true.shape[1], k=1)
    pair = is_true[:, first] & is_true[:, second]
    widest = np.where(pair, cosine[:, first, second], -1.0).max(axis=1, initial=-1.0)
    return np.where(widest >= 0, np.degrees(np.arccos(np.clip(widest, 0.0, 1.0))), np.nan)


def _above(thresholds: np.ndarray, amplitudes: np.ndarray, is_peak: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for each relative threshold which peaks (n, K) exceed it."""
    strength = np.where(is_peak, amplitudes, 0.0)
    strongest = strength.max(axis=1, initial=0.0, keepdims=True)
    for threshold in thresholds:
        yield is_peak & (strength > threshold * strongest)


def _count(
    angle: np.ndarray, is_true: np.ndarray, kept: np.ndarray, has_fibre: np.ndarray
) -> tuple[float, float, float, float, float]:
    """Return TP, FP, FN, summed angular error and false fibres in empty voxels, for angles (n, G, K), at one threshold."""
    n_false_empty = float(kept[~has_fibre].sum())
    angle, is_true, kept = angle[has_fibre], is_true[has_fibre], kept[has_fibre]
    if not angle.size:
        return 0.0, float(kept.sum()), float(is_true.sum()), 90.0 * len(angle), n_false_empty
    valid = np.where(is_true[:, :, None] & kept[:, None, :], angle, np.inf)
    nearest_peak, nearest_true = valid.argmin(axis=2), valid.argmin(axis=1)  # (n, G), (n, K)
    back = np.take_along_axis(nearest_true, nearest_peak, axis=1)
    distance = valid.min(axis=2)
    found = (back == np.arange(angle.shape[1])) & (distance <= MATCH_ANGLE)
    n_true = is_true.sum(axis=1)
    error = np.where(is_true, np.minimum(distance, 90.0), 0.0).sum(axis=1) / n_true
    tp = float(found.sum())
    return tp, float(kept.sum()) - tp, float(n_true.sum()) - tp, float(error.sum()), n_false_empty


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors at unit length and which of them are not zero; non-finite ones count as zero."""
    length = np.linalg.norm(vectors, axis=-1)
    is_set = np.isfinite(length) & (length > 0)
    return np.where(is_set[..., None], vectors / np.where(is_set, length, 1.0)[..., None], 0.0), is_set


def _ratio(part: np.ndarray, whole: np.ndarray, *, empty: float) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), empty)
