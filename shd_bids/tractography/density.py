"""How many streamlines visit each voxel, and what they pass through."""

import numpy as np
from nibabel.streamlines import ArraySequence

from shd_bids.tractography.visits import Grid, Lines, traversal_kernel


def track_density(
    streamlines: ArraySequence, affine: np.ndarray, shape: tuple[int, ...], weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the sum of weights, or the number, of the streamlines that visit each voxel, every streamline once a voxel.

    Parameters
    ----------
    streamlines : ArraySequence
        Points in world mm.
    affine : (4, 4) array
        Voxel to world mm.
    shape : tuple of int
        Size of the image.
    weights : (s,) array, optional
        Of each streamline; one for each if left out.

    Returns
    -------
    (x, y, z) float64 array
        Points outside the image are not counted.

    Raises
    ------
    InputError
        If the kernel can neither be loaded nor compiled.
    """
    lines, grid = Lines(streamlines), Grid(affine, shape)
    density, last = np.zeros(shape), np.full(shape, -1, dtype=np.int64)
    given = None if weights is None else np.ascontiguousarray(weights, dtype=np.float32)
    address = None if given is None else given.ctypes.data
    traversal_kernel().shd_density(*grid.arguments, *lines.arguments, address, last.ctypes.data, density.ctypes.data)
    return density


def means_along(streamlines: ArraySequence, volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the mean of a map along each streamline, by the length in each voxel, (s,) float32.

    Parameters
    ----------
    streamlines : ArraySequence
        Points in world mm.
    volume : (x, y, z) array
    affine : (4, 4) array
        Voxel to world mm.

    Returns
    -------
    (s,) float32 array
        NaN where a streamline lies outside of the image.

    Raises
    ------
    InputError
        If the kernel can neither be loaded nor compiled.
    """
    lines, grid = Lines(streamlines), Grid(affine, volume.shape)
    values, means = np.ascontiguousarray(volume, dtype=np.float32), np.empty(lines.n, dtype=np.float32)
    traversal_kernel().shd_means(*grid.arguments, values.ctypes.data, *lines.arguments, means.ctypes.data)
    return means
