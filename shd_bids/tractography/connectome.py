"""Connectomes: how many streamlines connect each pair of regions, and what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy.spatial import cKDTree

from shd_bids.boxes import chunks
from shd_bids.tractography.regions import Regions

COUNT, BUNDLE_CAPACITY, LENGTH, DENSITY = "streamlineCount", "fibreBundleCapacity", "meanLength", "streamlineDensity"
"""Measures of a connection; the capacity (mm²) is the sum of the weights times their proportionality coefficient."""


_AT_ONCE = 500_000  # ends


@dataclass(frozen=True, eq=False)
class Streamlines:
    """What connectomes need to know of streamlines.

    Attributes
    ----------
    ends : (s, 2, 3) array
        First and last point, world mm.
    lengths : (s,) array
        mm.
    cross_sections : (s,) array, optional
        Weight times proportionality coefficient, mm²; ``None`` where no weights were fitted.
    means : mapping
        Name of a map -> its mean along each streamline, (s,).
    """

    ends: np.ndarray
    lengths: np.ndarray
    cross_sections: np.ndarray | None
    means: Mapping[str, np.ndarray]


def measures(*, is_weighted: bool, maps: tuple[str, ...]) -> tuple[str, ...]:
    """Return the measures of a connectome, in the order in which they are told."""
    capacity = (BUNDLE_CAPACITY,) if is_weighted else ()
    return (COUNT, *capacity, DENSITY, LENGTH, *(mean_of(name) for name in maps))


def mean_of(name: str) -> str:
    """Return the measure that is the mean of a map."""
    return f"mean{name}"


def assign_ends(ends: np.ndarray, regions: Regions, *, radius: float, n_threads: int = 1) -> np.ndarray:
    """Return the region of each end: that of its voxel, else that of the nearest labelled voxel within a radius.

    Parameters
    ----------
    ends : (s, 2, 3) array
        World mm.
    regions : Regions
    radius : float
        Largest distance to the centre of a voxel that is not the end's own, mm.
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    (s, 2) int32 array
        Number of the region, -1 for none.
    """
    points = ends.reshape(-1, 3)
    found = np.full(len(points), -1, dtype=np.int32)
    tree, nodes = cKDTree(regions.centres), regions.node[regions.node >= 0]
    for some in chunks(len(points), _AT_ONCE):
        own = _node_of_voxel(points[some], regions)
        outside = np.flatnonzero(own < 0)
        if radius > 0 and len(outside):
            _, nearest = tree.query(points[some][outside], distance_upper_bound=radius, workers=n_threads)
            near = nearest < tree.n
            own[outside[near]] = nodes[nearest[near]]
        found[some] = own
    return found.reshape(-1, 2)


def _node_of_voxel(points: np.ndarray, regions: Regions) -> np.ndarray:
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(regions.affine), points)).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < regions.node.shape)).all(axis=1)
    found = np.full(len(points), -1, dtype=np.int32)
    found[inside] = regions.node[tuple(voxels[inside].T)]
    return found


def connect(streamlines: Streamlines, nodes: np.ndarray, regions: Regions) -> dict[str, np.ndarray]:
    r"""Return symmetric matrices, (n, n) float64 by measure.

    With cross-sections :math:`x_i` (one for each streamline without weights) of the streamlines between regions of volumes
    :math:`V_a` and :math:`V_b`, the capacity is :math:`\sum_i x_i`, the density :math:`2 \sum_i x_i / (V_a + V_b)`
    (Hagmann et al., PLoS Biol 6, 2008), the length and the mean of a map :math:`\sum_i x_i l_i / \sum_i x_i`; these are NaN
    where there is no connection.

    Parameters
    ----------
    streamlines : Streamlines
    nodes : (s, 2) array
        Of `assign_ends`.
    regions : Regions
    """
    n = len(regions)
    assigned = (nodes >= 0).all(axis=1)
    pairs = np.sort(nodes[assigned], axis=1) @ np.array([n, 1])  # of numbers up to MOST_REGIONS squared

    def total(values: np.ndarray | None) -> np.ndarray:
        upper = np.bincount(pairs, values, minlength=n * n).reshape(n, n).astype(np.float64)
        return upper + np.triu(upper, 1).T

    def mean(values: np.ndarray) -> np.ndarray:
        known = np.isfinite(values)
        share = np.where(known, weights, 0)
        above, below = total(share * np.where(known, values, 0)), total(share)
        return np.divide(above, below, out=np.full((n, n), np.nan), where=below > 0)

    given = streamlines.cross_sections
    weights = np.ones(np.count_nonzero(assigned)) if given is None else given[assigned].astype(np.float64)
    matrices = {COUNT: total(None)}
    if given is not None:
        matrices[BUNDLE_CAPACITY] = total(weights)
    both = regions.volumes[:, None] + regions.volumes
    matrices[DENSITY] = np.divide(2 * total(weights), both, out=np.zeros((n, n)), where=both > 0)
    matrices[LENGTH] = mean(streamlines.lengths[assigned])
    return matrices | {mean_of(name): mean(values[assigned]) for name, values in streamlines.means.items()}
