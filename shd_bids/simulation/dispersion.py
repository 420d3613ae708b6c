r"""Densities of fibre directions, and what of them lies beyond the dispersion that a response holds.

.. math:: f(n) \propto \exp\left(-\tfrac12\, n^T \Sigma^+ n \left(\theta / \sin\theta\right)^{2m}\right)

at the angle :math:`\theta` from a main direction u, with the covariance :math:`\Sigma` in the tangent plane,
:math:`\Sigma u = 0`. The Bingham density has m = 0; m = 1 is a Gaussian of angles, whose tails are shorter.

References
----------
Bingham (1974), The Annals of Statistics 2, equation 1.1; Sotiropoulos et al. (2012), NeuroImage 60, for fanning fibres.
"""

from __future__ import annotations

import numpy as np

from shd_bids.simulation.microstructure import Subject
from shd_bids.simulation.phantoms import MAX_FIBRES
from shd_bids.simulation.tissue import Tissue
from shd_bids.sphere.harmonics import SQRT_4PI, sh_inverse
from shd_bids.sphere.healpix import hemisphere

_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def densities(
    directions: np.ndarray, covariance: np.ndarray, points: np.ndarray, tails: np.ndarray | float = 0.0
) -> np.ndarray:
    """Evaluate the densities of populations, 1 at their maximum, (n, V), float32.

    Parameters
    ----------
    directions : ndarray, shape (n, 3)
    covariance : ndarray, shape (n, 3, 3)
        Positive definite across the directions, zero along them; radians squared.
    points : ndarray, shape (V, 3)
        Unit vectors.
    tails : ndarray, shape (n,), or float
        The m: 0 for a Bingham density, 1 for a Gaussian of angles.
    """
    main = directions[:, :, None] * directions[:, None, :]
    precision = (np.linalg.inv(covariance + main) - main).astype(np.float32)
    products = np.stack([points[:, i] * points[:, j] * (1 if i == j else 2) for i, j in _PAIRS]).astype(np.float32)
    exponent = (np.stack([precision[:, i, j] for i, j in _PAIRS], axis=1) @ products).clip(0)
    if np.any(np.asarray(tails) != 0.0):
        power = 2 * np.broadcast_to(tails, len(exponent))[:, None].astype(np.float32)
        exponent *= _angle_over_sine(directions, points) ** power
    exponent *= -0.5
    return np.exp(exponent, out=exponent)


def _angle_over_sine(directions: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the angle between axes over its sine, (n, V); 1 where they are the same."""
    cosine = np.minimum(np.abs(directions.astype(np.float32) @ points.T.astype(np.float32)), 1 - 1e-6)
    return np.arccos(cosine) / np.sqrt(1 - cosine**2)


def least_spread(l_max: int) -> float:
    """Return the standard deviation of the narrowest lobe that a degree holds without ripples, radians: 6 degrees for 18."""
    return np.deg2rad(108.0 / l_max)


def relative_covariance(
    directions: np.ndarray, covariance: np.ndarray, response_spread: float, *, l_max: int
) -> np.ndarray:
    r"""Return what of a covariance (n, 3, 3) lies beyond the dispersion that a response holds.

    Each of the two variances across the direction becomes :math:`\max(\sigma^2 - \sigma_r^2, \sigma_{min}^2)`, the least being
    that of :func:`least_spread`.
    """
    values, axes = np.linalg.eigh(covariance + 1e3 * directions[:, :, None] * directions[:, None, :])
    values = np.maximum(values[:, :2] - response_spread**2, least_spread(l_max) ** 2)
    return np.einsum("nk,nik,njk->nij", values, axes[..., :2], axes[..., :2])


def true_density(tissue: Tissue, subject: Subject, *, nside: int, l_max: int) -> np.ndarray:
    """Return the fODF on the hemisphere that, convolved with the response, gives the signal; (X, Y, Z, V), float32.

    Parameters
    ----------
    tissue : Tissue
    subject : Subject
        Says what signal and dispersion the response holds.
    nside : int
        Resolution of the hemisphere.
    l_max : int
        Degree that is to hold the fODF, and in which each population integrates to its fraction times its intensity.
    """
    points = hemisphere(nside)
    integral = SQRT_4PI * sh_inverse(points, l_max)[0].astype(np.float32)
    density = np.zeros((*tissue.gm.shape, len(points)), dtype=np.float32)
    for slot in range(MAX_FIBRES):
        there = tissue.fractions[..., slot] > 0
        if there.any():
            direction = tissue.directions[there, slot]
            spread = relative_covariance(
                direction, tissue.covariance[there, slot], subject.response_spread, l_max=l_max
            )
            owner = tissue.bundle[there, slot]
            lobe = densities(direction, spread, points, tissue.tails[owner])
            amount = subject.intensity[owner] * tissue.fractions[there, slot]
            density[there] += (amount / (lobe @ integral))[:, None].astype(np.float32) * lobe
    return density
