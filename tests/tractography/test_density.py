"""Density of streamlines on a grid."""

import numpy as np
from nibabel.streamlines import ArraySequence

from shd_bids.tractography.density import track_density


def test_density_counts_each_streamline_once_a_voxel():
    """A line through four voxels, one that turns back in them, and one that steps over a voxel."""
    line = np.array([[0, 0, 0], [3, 0, 0]], dtype=np.float32)
    there_and_back = np.array([[0, 1, 0], [3, 1, 0], [0, 1, 0]], dtype=np.float32)
    outside = np.array([[2, 2, 0], [9, 2, 0]], dtype=np.float32)
    density = track_density(ArraySequence([line, line, there_and_back, outside]), np.eye(4), (4, 3, 1))
    np.testing.assert_array_equal(density[:, :, 0].T, [[2, 2, 2, 2], [1, 1, 1, 1], [0, 0, 1, 1]])
    assert track_density(ArraySequence(), np.eye(4), (4, 3, 1)).sum() == 0
