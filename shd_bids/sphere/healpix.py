"""HEALPix sampling of the sphere and of the hemisphere, in nested order.

The hemisphere keeps one vertex of each antipodal pair. Every even function on the sphere is given by its values there, and
pooling commutes with the antipodal map, so a network on the hemisphere computes what it would on the sphere.
"""

from functools import lru_cache

import numpy as np
from astropy_healpix import healpy

from shd_bids.sphere import constant

_ZERO = 1e-10  # coordinates below are zero: HEALPix centres on the equator or a meridian plane carry rounding only


@lru_cache
def vertices(nside: int) -> np.ndarray:
    """Return the HEALPix pixel centres in nested order, shape (12 nside^2, 3), unit length."""
    if nside < 1 or nside & (nside - 1):
        raise ValueError(f"nside is {nside}, expected a power of two (nested order needs one)")
    points = np.stack(healpy.pix2vec(nside, np.arange(12 * nside**2), nest=True), axis=1)
    points[np.abs(points) < _ZERO] = 0.0
    return constant(points / np.linalg.norm(points, axis=1, keepdims=True))


@lru_cache
def antipodes(nside: int) -> np.ndarray:
    """Return for each vertex the index of the opposite one, shape (V,)."""
    return constant(match(-vertices(nside), nside))


@lru_cache
def hemisphere_indices(nside: int) -> np.ndarray:
    """Return the nested indices of the kept half, ascending, shape (V/2,).

    North is z > 0; on the equator y > 0; on its x axis x > 0.
    """
    x, y, z = vertices(nside).T
    north = (z > 0) | ((z == 0) & (y > 0)) | ((z == 0) & (y == 0) & (x > 0))
    return constant(np.flatnonzero(north))


@lru_cache
def hemisphere(nside: int) -> np.ndarray:
    """Return the kept vertices, shape (V/2, 3)."""
    return constant(vertices(nside)[hemisphere_indices(nside)])


@lru_cache
def hemisphere_lookup(nside: int) -> np.ndarray:
    """Return for each vertex of the sphere the row of :func:`hemisphere` that is it or its antipode, shape (V,)."""
    kept = hemisphere_indices(nside)
    lookup = np.empty(12 * nside**2, dtype=np.int64)
    lookup[kept] = np.arange(len(kept))
    lookup[antipodes(nside)[kept]] = np.arange(len(kept))
    return constant(lookup)


@lru_cache
def grid(nside: int, *, hemisphere_only: bool) -> np.ndarray:
    """Return the vertices of the hemisphere or of the whole sphere, shape (V, 3)."""
    return hemisphere(nside) if hemisphere_only else vertices(nside)


@lru_cache
def children(nside: int, *, hemisphere_only: bool) -> np.ndarray:
    """Return for each vertex of the coarser grid ``nside // 2`` its four children at ``nside``, shape (V_coarse, 4).

    Nested order puts the children of p at 4p..4p+3. On the hemisphere a child in the dropped half stands for its antipode.
    """
    if nside < 2:
        raise ValueError(f"nside is {nside}, expected at least 2: the 12 base pixels have no parents")
    nested = np.arange(12 * nside**2).reshape(-1, 4)
    if not hemisphere_only:
        return constant(nested)
    return constant(hemisphere_lookup(nside)[nested[hemisphere_indices(nside // 2)]])


@lru_cache
def parents(nside: int, *, hemisphere_only: bool) -> np.ndarray:
    """Return for each vertex at ``nside`` its parent in the coarser grid ``nside // 2``, shape (V,)."""
    table = children(nside, hemisphere_only=hemisphere_only)
    inverse = np.empty(table.size, dtype=np.int64)
    inverse[table] = np.arange(len(table))[:, None]
    return constant(inverse)


def match(points: np.ndarray, nside: int) -> np.ndarray:
    """Return the nested indices (N,) of the vertices at ``points``, shape (N, 3), all of which must be vertices."""
    index = np.asarray(healpy.vec2pix(nside, *np.asarray(points).T, nest=True))
    # A centre on a pixel edge of rounding cannot happen, so the pixel that holds a vertex is that vertex.
    worst = np.abs(vertices(nside)[index] - points).max(initial=0.0)
    if worst > 1e-7:
        raise ValueError(
            f"points are up to {worst:.1e} away from the vertices of nside {nside}, expected rounding only"
        )
    return index
