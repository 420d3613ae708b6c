"""From the axes of FSL and BIDS to those of the world, and back.

Directions are held in world axes (RAS+). BIDS and FSL hold them along the image axes, with x negated when the
determinant of the affine is positive; MRtrix3 and QSIPrep's ``.b`` files hold them in world axes.
"""

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.errors import GradientError


def fsl_to_world(bvecs: ArrayLike, affine: ArrayLike) -> np.ndarray:
    r"""Return FSL/BIDS directions in world axes.

    .. math:: u = R \, \mathrm{diag}(\mp 1, 1, 1) \, v

    with the upper sign for :math:`\det(\mathrm{affine}) > 0` and R the orthogonal polar factor of the affine.

    Parameters
    ----------
    bvecs : array, shape (3, N) or (N, 3)
        Rows x, y, z as in a ``.bvec`` file, or one row per volume; a 3 x 3 array is read as (3, N).
    affine : array, shape (4, 4)
        Voxel to RAS+ world, mm.

    Returns
    -------
    array, shape (N, 3)

    Source: BIDS specification, "Diffusion imaging data"; FSL FDT manual.
    """
    vectors = np.asarray(bvecs, dtype=np.float64)
    if vectors.ndim != 2 or 3 not in vectors.shape:
        raise GradientError(f"directions have shape {vectors.shape}, expected (3, N) or (N, 3)")
    if vectors.shape[0] == 3:
        vectors = vectors.T  # (N, 3)
    return vectors @ _fsl_axes(affine).T


def world_to_fsl(directions: ArrayLike, affine: ArrayLike) -> np.ndarray:
    """Return world directions, shape (N, 3), as FSL/BIDS ones, shape (N, 3); the inverse of :func:`fsl_to_world`."""
    return np.asarray(directions, dtype=np.float64) @ _fsl_axes(affine)


def image_rotation(affine: ArrayLike) -> np.ndarray:
    """Return the orthogonal polar factor of the affine, shape (3, 3): its columns are the image axes in the world.

    A determinant of -1 (LAS, for one) is kept: the result is then a rotation with a reflection.
    """
    left, _, right = np.linalg.svd(np.asarray(affine, dtype=np.float64)[:3, :3])
    return left @ right


def _fsl_axes(affine: ArrayLike) -> np.ndarray:
    """Return the matrix from FSL to world directions, shape (3, 3)."""
    rotation = image_rotation(affine)
    flip = -1.0 if np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]) > 0 else 1.0
    return rotation * np.array([flip, 1.0, 1.0])
