"""Weights of streamlines whose density fits the fibre densities of the fODFs.

The aim is that of SIFT2 (Smith, Tournier, Calamante and Connelly, NeuroImage 119, 2015): a cross-section for each streamline,
so that the sum over streamlines in every lobe is its volume of fibres. The weights come from a non-negative least-squares fit
(as in COMMIT: Daducci et al., IEEE Trans Med Imaging 34, 2015) by multiplicative updates from one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

LEAST_TRACKED = 0.1
"""Lobes of which the streamlines reach less than this share are not fitted: tracking failed there."""

_PULL = 0.1  # towards one, relative to what the lobes of one streamline alone say of it
_MOST_UPDATES = 200
_STILL = 1e-4  # relative change of the misfit in an update, below which the fit ends


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of streamlines.

    Attributes
    ----------
    weights : (s,) float32 array
        One where streamlines are neither too dense nor too sparse.
    mu : float
        Cross-section of a streamline of weight one, mm² of pure white matter with one fibre; ``mu`` times a sum of weights
        compares between subjects.
    misfit_before, misfit : float
        Root of the squared difference between lengths and volumes, relative to the volumes, with weights one and fitted.
    n_updates : int
        Updates that were made.
    """

    weights: np.ndarray
    mu: float
    misfit_before: float
    misfit: float
    n_updates: int


class Visits:
    """Lengths of many streamlines in fixels, kept in a file and read in parts of successive streamlines.

    Parameters
    ----------
    folder : Path
        Gets the file, which holds 8 bytes for each fixel that a streamline visits.
    n_fixels : int
    """

    def __init__(self, folder: Path, n_fixels: int) -> None:
        self._path, self._n_fixels = folder / "visits.bin", n_fixels
        self._starts: list[np.ndarray] = []
        self._path.write_bytes(b"")

    def append(self, lengths: sparse.csr_array) -> None:
        """Add streamlines, (s, m)."""
        with self._path.open("ab") as file:
            lengths.indices.astype("<i4", copy=False).tofile(file)
            lengths.data.astype("<f4", copy=False).tofile(file)
        self._starts.append(lengths.indptr.astype(np.int64))

    def __iter__(self) -> Iterator[sparse.csr_array]:
        with self._path.open("rb") as file:
            for starts in self._starts:
                columns = np.fromfile(file, dtype="<i4", count=int(starts[-1]))
                lengths = np.fromfile(file, dtype="<f4", count=int(starts[-1]))
                yield sparse.csr_array((lengths, columns, starts), shape=(len(starts) - 1, self._n_fixels))

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink()


def fit_weights(visits: Iterable[sparse.csr_array], volumes: np.ndarray, shares: np.ndarray) -> Weights:
    r"""Fit one weight a streamline.

    .. math:: \min_{w \ge 0} \sum_k p_k \Big(\sum_i a_{ik} w_i - F_k / \mu\Big)^2 + \lambda \sum_i q_i (w_i - 1)^2,
              \qquad q_i = \sum_k p_k a_{ik}^2, \qquad
              \mu = \frac{\sum_k p_k F_k}{\sum_k p_k \sum_i a_{ik}}

    over the lobes that streamlines reach; a lobe is left out where :math:`\mu \sum_i a_{ik}` is below `LEAST_TRACKED` of F.

    Parameters
    ----------
    visits : iterable of (s, m) sparse arrays
        Length a of each streamline in each lobe, mm, for successive streamlines; gone through once an update.
    volumes : (m,) array
        Volume F of the fibres of each lobe, mm³.
    shares : (m,) array
        How much each lobe counts, p.

    Returns
    -------
    Weights
        Weight one where a streamline reaches no fitted lobe; ``mu`` is zero where none does.

    References
    ----------
    Smith et al. (2015) for the model; Daube-Witherspoon and Muehllehner (1986), IEEE Trans Med Imaging 5,
    for the update.
    """
    reached, n = np.zeros(len(volumes)), 0
    for part in visits:
        reached += np.bincount(part.indices, part.data, minlength=len(volumes))
        n += part.shape[0]
    fitted = (volumes > 0) & (shares > 0) & (reached > 0)
    mu = _proportion(volumes, reached, shares * fitted)
    fitted &= mu * reached >= LEAST_TRACKED * volumes
    p = shares * fitted
    mu = _proportion(volumes, reached, p)
    if not mu:
        return Weights(np.ones(n, np.float32), 0.0, 0.0, 0.0, 0)
    return _fitted(visits, volumes / mu, p, mu, reached)


def _proportion(volumes: np.ndarray, reached: np.ndarray, p: np.ndarray) -> float:
    tracked = float(p @ reached)
    return float(p @ volumes) / tracked if tracked else 0.0


def _fitted(
    visits: Iterable[sparse.csr_array], target: np.ndarray, p: np.ndarray, mu: float, reached: np.ndarray
) -> Weights:
    wanted, pull = _constants(visits, target, p)
    weights, found = np.ones(len(wanted), dtype=np.float32), reached
    misfits = [_misfit(found, target, p)]
    for _ in range(_MOST_UPDATES):
        found = _update(visits, weights, (p * found).astype(np.float32), wanted, pull)
        misfits.append(_misfit(found, target, p))
        if abs(misfits[-2] - misfits[-1]) <= _STILL * misfits[-2]:
            break
    return Weights(weights, mu, misfits[0], misfits[-1], len(misfits) - 1)


def _constants(visits: Iterable[sparse.csr_array], target: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what each streamline's lobes and the weight one ask for together, and the part of the latter."""
    p_target, p = (p * target).astype(np.float32), p.astype(np.float32)
    wanted, pull = [], []
    for part in visits:
        pull.append(_PULL * (part.power(2) @ p))
        wanted.append(part @ p_target + pull[-1])
    return np.concatenate(wanted), np.concatenate(pull)


def _update(
    visits: Iterable[sparse.csr_array], weights: np.ndarray, p_found: np.ndarray, wanted: np.ndarray, pull: np.ndarray
) -> np.ndarray:
    """Change the weights in place by one multiplicative update and return the length that they then give each lobe."""
    found, first = np.zeros(len(p_found)), 0
    for part in visits:
        own = slice(first, first + part.shape[0])
        given = part @ p_found + pull[own] * weights[own]
        weights[own] *= np.divide(wanted[own], given, out=np.ones_like(given), where=given > 0)
        found += part.T @ weights[own]
        first = own.stop
    return found


def _misfit(found: np.ndarray, target: np.ndarray, p: np.ndarray) -> float:
    return float(np.sqrt((p @ (found - target) ** 2) / (p @ target**2)))
