r"""The HEALPix graph: ties kept, symmetric, with a normalised Laplacian rescaled to [-1, 1].

Published graph of the method (DeepSphere widths, 8 neighbours and all ties). Everything is dense float64, built once:
at most 768 vertices are used by the network.
"""

from functools import lru_cache

import numpy as np
from scipy.linalg import eigh

from shd_bids.sphere import constant, healpix

_NEIGHBOURS = 8
_TIE = 1e-5  # chord lengths closer than this are equal: dropping one of two ties would break the antipodal symmetry
_MARGIN = 1.01  # published head room above the largest eigenvalue

# Kernel widths of DeepSphere (Perraudin et al. 2019, k = 8), which follow 0.8 / nside up to 32.
_WIDTHS = {64: 0.01228, 128: 0.00614, 256: 0.00307, 512: 0.00154, 1024: 0.00077}


def kernel_width(nside: int) -> float:
    """Return the distance on the unit sphere at which an edge weighs one half."""
    return _WIDTHS[nside] if nside in _WIDTHS else 0.8 / nside


@lru_cache
def adjacency(nside: int) -> np.ndarray:
    r"""Return the weights of the edges between neighbouring vertices, shape (V, V), symmetric, zero diagonal.

    .. math:: W_{ij} = 2^{-(d_{ij} / \sigma)^2}

    for every j no farther than the 8th nearest vertex of i, ties included; an edge found from one end only is filled in.
    """
    points = healpix.vertices(nside)
    distance = np.sqrt(np.maximum(2 - 2 * points @ points.T, 0))
    np.fill_diagonal(distance, 0)
    distance = (distance + distance.T) / 2
    reach = np.sort(distance, axis=1)[:, _NEIGHBOURS]
    edge = distance < reach[:, None] + _TIE
    np.fill_diagonal(edge, False)
    edge |= edge.T
    return constant(np.where(edge, np.exp2(-((distance / kernel_width(nside)) ** 2)), 0.0))


@lru_cache
def laplacian(nside: int) -> np.ndarray:
    r"""Return the normalised Laplacian :math:`I - D^{-1/2} W D^{-1/2}`, shape (V, V)."""
    weights = adjacency(nside)
    scale = 1 / np.sqrt(weights.sum(axis=1))
    return constant(np.eye(len(weights)) - scale[:, None] * weights * scale)


@lru_cache
def largest_eigenvalue(nside: int) -> float:
    """Return the largest eigenvalue of the Laplacian to rounding (an iterative estimate would differ between runs)."""
    last = 12 * nside**2 - 1
    return float(eigh(laplacian(nside), eigvals_only=True, subset_by_index=[last, last])[0])


@lru_cache
def rescaled_laplacian(nside: int, *, hemisphere_only: bool) -> np.ndarray:
    r"""Return :math:`\tilde L = 2 L / (1.01 \lambda_{max}) - I`, folded onto the hemisphere where asked, shape (V, V).

    .. math:: L^+(p, q) = \tilde L(p, q) + \tilde L(p, a(q)), \quad p, q \in H, \; a(q) \text{ the antipode of } q

    On an even signal L+ acts exactly as the Laplacian of the sphere does.
    """
    scaled = 2 / (_MARGIN * largest_eigenvalue(nside)) * laplacian(nside) - np.eye(12 * nside**2)
    if not hemisphere_only:
        return constant(scaled)
    kept = healpix.hemisphere_indices(nside)
    opposite = healpix.antipodes(nside)[kept]
    return constant(scaled[np.ix_(kept, kept)] + scaled[np.ix_(kept, opposite)])
