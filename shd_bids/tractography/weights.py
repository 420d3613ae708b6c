"""Weights of streamlines whose density fits the fibre densities of the fODFs.

The aim is that of SIFT2 (Smith, Tournier, Calamante and Connelly, NeuroImage 119, 2015): a cross-section for each streamline,
so that the sum over streamlines in every lobe is its volume of fibres. The weights come from a non-negative least-squares fit
(as in COMMIT: Daducci et al., IEEE Trans Med Imaging 34, 2015) by multiplicative updates from one.
"""

from dataclasses import dataclass

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


def fit_weights(lengths: sparse.csr_array, volumes: np.ndarray, shares: np.ndarray) -> Weights:
    r"""Fit one weight a streamline.

    .. math:: \min_{w \ge 0} \sum_k p_k \Big(\sum_i a_{ik} w_i - F_k / \mu\Big)^2 + \lambda \sum_i q_i (w_i - 1)^2,
              \qquad q_i = \sum_k p_k a_{ik}^2, \qquad
              \mu = \frac{\sum_k p_k F_k}{\sum_k p_k \sum_i a_{ik}}

    over the lobes that streamlines reach; a lobe is left out where :math:`\mu \sum_i a_{ik}` is below `LEAST_TRACKED` of F.

    Parameters
    ----------
    lengths : (s, m) sparse array
        Length a of each streamline in each lobe, mm.
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
    reached = np.asarray(lengths.sum(axis=0), dtype=np.float64)
    fitted = (volumes > 0) & (shares > 0) & (reached > 0)
    mu = _proportion(volumes, reached, shares * fitted)
    fitted &= mu * reached >= LEAST_TRACKED * volumes
    p = (shares * fitted).astype(np.float32)
    mu = _proportion(volumes, reached, p)
    if not mu:
        return Weights(np.ones(lengths.shape[0], np.float32), 0.0, 0.0, 0.0, 0)
    return _fitted(lengths, (volumes / mu).astype(np.float32), p, mu)


def _proportion(volumes: np.ndarray, reached: np.ndarray, p: np.ndarray) -> float:
    tracked = float(p @ reached)
    return float(p @ volumes) / tracked if tracked else 0.0


def _fitted(lengths: sparse.csr_array, target: np.ndarray, p: np.ndarray, mu: float) -> Weights:
    pull = _PULL * (lengths.power(2) @ p)
    weights = np.ones(lengths.shape[0], dtype=np.float32)
    wanted = lengths @ (p * target) + pull
    found = lengths.T @ weights
    misfits = [_misfit(found, target, p)]
    for _ in range(_MOST_UPDATES):
        given = lengths @ (p * found) + pull * weights
        weights *= np.divide(wanted, given, out=np.ones_like(weights), where=given > 0)
        found = lengths.T @ weights
        misfits.append(_misfit(found, target, p))
        if abs(misfits[-2] - misfits[-1]) <= _STILL * misfits[-2]:
            break
    return Weights(weights, mu, misfits[0], misfits[-1], len(misfits) - 1)


def _misfit(found: np.ndarray, target: np.ndarray, p: np.ndarray) -> float:
    return float(np.sqrt((p @ (found - target) ** 2) / (p @ target**2)))
