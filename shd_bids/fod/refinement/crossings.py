"""Tell two fibres that cross narrowly from one lobe that is long and thin."""

from __future__ import annotations

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.sphere.lobes import lobes

_LOBE = np.deg2rad(30)  # around its middle; two fibres that a lobe hides lie within
_ALONE = 0.85  # least share of the masses in the lobe: beside others, a long one is one of uncertain direction
_LEAST_SPREAD = np.deg2rad(7)  # of masses on either side of the middle: fibres that cross at 14 degrees
_MOST_SKEW = 1.5  # of two fibres whose weaker one holds a fifth of the mass
_NARROW = 300.0  # concentration of the lobe that stands for a direction between axes: as narrow as axes are close
_LEAST_MASS = 1e-6
_VOXELS_PER_CHUNK = 4096


def split_crossings(masses: np.ndarray, axes: np.ndarray, measured: np.ndarray | None = None) -> np.ndarray:
    r"""Put the masses of a lobe that is long and thin on the two directions that have the same moments.

    A network that cannot tell how two fibres share a narrow crossing answers with what they are on average: a lobe that is
    as narrow as that of one fibre across, but long. Along its long axis :math:`e_2`, at angles t from the middle :math:`e_1`,
    the masses within 30 degrees have the mean :math:`\mu`, the variance beyond that across, :math:`\sigma^2`, and the skewness
    :math:`\gamma`. Two directions and masses have the same as the nodes and weights of their Gauss quadrature,

    .. math:: t_\pm = \mu + \sigma\left(\frac\gamma2 \pm \sqrt{1 + \frac{\gamma^2}4}\right), \qquad
              w_\pm = \frac12 \mp \frac{\gamma}{2\sqrt{4 + \gamma^2}}.

    They replace the lobe where :math:`\sigma` exceeds 7 degrees, neither would hold less than a fifth, and nearly all mass of
    the voxel lies in the lobe. Where the spread was measured that takes the place of the moments, with two equal fibres.

    Parameters
    ----------
    masses : ndarray, shape (n, A)
        Not negative.
    axes : ndarray, shape (A, 3)
        Unit vectors; either sign.
    measured : ndarray, shape (n, 3), optional
        Direction and standard deviation, radians, of the spread of a lobe; zero where it was not measured.

    Returns
    -------
    ndarray, shape (n, A)
        Of the same sum and type.

    References
    ----------
    Golub and Welsch (1969), Mathematics of Computation 23, for the quadrature that moments define.
    """
    axes = axes.astype(masses.dtype)
    result = masses.copy()
    for part in chunks(len(masses), _VOXELS_PER_CHUNK):
        block = masses[part]
        total = block.sum(axis=1)
        frame = _frame(block, total, axes)
        lobe = block * (np.abs(frame[:, 0] @ axes.T) > np.cos(_LOBE))
        inside = lobe.sum(axis=1)
        alone = np.flatnonzero((inside > _ALONE * total) & (inside > _LEAST_MASS))
        lobe, inside, frame = lobe[alone], inside[alone], frame[alone]
        mean, spread, skew = _moments(lobe / inside[:, None], frame, axes)
        long = (spread > _LEAST_SPREAD) & (np.abs(skew) < _MOST_SKEW)
        if measured is not None:
            known = np.flatnonzero(measured[part][alone].any(axis=1))
            mean[known] = skew[known] = 0
            spread[known], frame[known, 1] = _beside(measured[part][alone[known]], frame[known, 0])
            long[known] = True
        if long.any():
            fibres = _two_fibres(mean[long], spread[long], skew[long], frame[long], axes)
            result[part][alone[long]] += inside[long, None] * fibres - lobe[long]
    return result


def _frame(masses: np.ndarray, total: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return the main axes of the masses, (n, 3, 3), that of most mass first."""
    products = (axes[:, :, None] * axes[:, None, :]).reshape(-1, 9)
    tensors = (masses @ products / np.maximum(total, _LEAST_MASS)[:, None]).reshape(-1, 3, 3)
    return np.linalg.eigh(tensors)[1].transpose(0, 2, 1)[:, ::-1]


def _moments(shares: np.ndarray, frame: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean angle, standard deviation beyond that across, and skewness of lobes along their long axis, (n,) each."""
    middle, long, across = (frame[:, i] @ axes.T for i in range(3))  # (n, A)
    angle = np.arctan2(long * np.sign(middle), np.abs(middle))
    mean = (shares * angle).sum(axis=1)
    angle -= mean[:, None]
    power = shares * angle**2
    spread = np.sqrt((power.sum(axis=1) - (shares * across**2).sum(axis=1)).clip(0))
    skew = (power * angle).sum(axis=1) / np.maximum(spread, _LEAST_SPREAD) ** 3
    return mean, spread, skew


def _beside(vectors: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths (n,) of vectors (n, 3), and unit vectors towards them across the middle of a lobe."""
    across = vectors - (vectors * middle).sum(axis=1, keepdims=True) * middle
    return np.linalg.norm(vectors, axis=1), across / np.linalg.norm(across, axis=1, keepdims=True)


def _two_fibres(
    mean: np.ndarray, spread: np.ndarray, skew: np.ndarray, frame: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """Return masses (n, A) of sum 1 around the two directions that moments define."""
    root = np.sqrt(4 + skew**2)
    masses = np.zeros((len(frame), len(axes)), dtype=axes.dtype)
    for side in (1, -1):
        angle = mean + spread * (skew + side * root) / 2
        direction = np.cos(angle)[:, None] * frame[:, 0] + np.sin(angle)[:, None] * frame[:, 1]
        near = lobes(axes, direction, _NARROW)
        masses += ((1 - side * skew / root) / 2 / near.sum(axis=1))[:, None] * near
    return masses
