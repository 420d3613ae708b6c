"""How many streamlines visit each voxel."""

import math

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence

from shd_bids.boxes import chunks


def track_density(streamlines: ArraySequence, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Count the streamlines that visit each voxel, every streamline once a voxel.

    Segments are cut to at most a quarter of a voxel, so that corners are not stepped over.

    Parameters
    ----------
    streamlines : ArraySequence
        Points in world mm.
    affine : (4, 4) array
        Voxel to world mm.
    shape : tuple of int
        Size of the image.

    Returns
    -------
    (x, y, z) int32 array
        Points outside the image are not counted.
    """
    density = np.zeros(math.prod(shape), dtype=np.int64)
    to_voxel = np.linalg.inv(affine)
    for some in chunks(len(streamlines), 2000):
        part = streamlines[some]
        points = nib.affines.apply_affine(to_voxel, part.get_data())
        owner = np.repeat(np.arange(len(part)), _lengths(part))
        joined = np.flatnonzero(owner[1:] == owner[:-1])  # first point of every segment
        steps = points[joined + 1] - points[joined]
        pieces = max(1, math.ceil(4 * np.abs(steps).max(initial=0)))
        fractions = np.arange(pieces) / pieces
        between = (points[joined, None] + fractions[:, None] * steps[:, None]).reshape(-1, 3)
        voxels = np.rint(np.concatenate([between, points])).astype(int)
        owner = np.concatenate([np.repeat(owner[joined], pieces), owner])
        inside = ((voxels >= 0) & (voxels < shape)).all(axis=1)
        index = np.ravel_multi_index(tuple(voxels[inside].T), shape)
        visits = np.unique(owner[inside] * density.size + index)
        density += np.bincount(visits % density.size, minlength=density.size)
    return density.reshape(shape).astype(np.int32)


def _lengths(streamlines: ArraySequence) -> np.ndarray:
    """Return the number of points of each streamline."""
    return np.fromiter(map(len, streamlines), dtype=np.int64, count=len(streamlines))
