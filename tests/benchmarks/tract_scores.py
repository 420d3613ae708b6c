"""Measures of a tractogram of known bundles, after the Tractometer (Cote et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from tract_scenes import TractScene

from shd_bids.tractography.density import track_density


def score(streamlines: nib.streamlines.ArraySequence, truth: TractScene) -> dict[str, float]:
    """Return shares of valid, invalid and no connections, bundles found, and overlap and overreach in percent.

    A connection is valid when its two ends lie in the two end regions of one bundle, invalid when they lie in other two,
    and none when an end lies in no region. Overlap is the share of a bundle's voxels that its valid connections visit,
    overreach the voxels that they visit beside it as a share of its own; both are means over bundles, found or not.
    """
    first, last = (_regions([line[end] for line in streamlines], truth) for end in (0, -1))
    connects = (first >= 0) & (last >= 0)
    is_valid = connects & (first // 2 == last // 2) & (first != last)
    is_invalid = connects & ~is_valid
    overlaps, overreaches, n_found = [], [], 0
    for number, inside in enumerate(truth.inside):
        own = np.flatnonzero(is_valid & (first // 2 == number))
        n_found += len(own) > 0
        visited = track_density(streamlines[own], truth.affine, inside.shape) > 0
        overlaps.append((visited & inside).sum() / inside.sum())
        overreaches.append((visited & ~inside).sum() / inside.sum())
    n = max(len(streamlines), 1)
    pairs = {tuple(sorted(pair)) for pair in np.stack([first, last], axis=1)[is_invalid].tolist()}
    return {
        "streamlines": len(streamlines),
        "valid": 100 * is_valid.sum() / n,
        "invalid": 100 * is_invalid.sum() / n,
        "bundles": n_found,
        "invalid_bundles": len(pairs),
        "overlap": 100 * float(np.mean(overlaps)),
        "overreach": 100 * float(np.mean(overreaches)),
    }


def _regions(points: Sequence[np.ndarray], truth: TractScene) -> np.ndarray:
    """Return the end region of each point in world mm, -1 for none."""
    if not len(points):
        return np.zeros(0, dtype=int)
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(truth.affine), np.asarray(points))).astype(int)
    return truth.ends[tuple(voxels.clip(0, np.array(truth.ends.shape) - 1).T)]
