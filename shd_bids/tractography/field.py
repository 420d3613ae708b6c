"""The table of fODF amplitudes in which dipy's trackers step.

dipy steps along voxel axes (in mm) through a table of amplitudes sampled on directions. The one border between the two
frames is `voxel_frame`: the table of the tracker's direction v holds the fODF at the world direction R v, with R the
columns of the affine at unit length. No coefficient is rotated.
"""

import nibabel as nib
import numpy as np
from dipy.core.sphere import Sphere
from dipy.direction.pmf import SimplePmfGen
from dipy.tracking.stopping_criterion import BinaryStoppingCriterion

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.sphere.harmonics import l_max_of, sh_basis
from shd_bids.sphere.spiral import spiral

_TABLE_BYTES = 1.6e9  # amplitudes of the bounding box, float64 because dipy reads no other
_DIRECTIONS = (250, 750)  # 9 to 5 degrees apart, over a hemisphere
_PTT_DIRECTIONS = 250  # PTT looks for the nearest direction hundreds of times a step, and steps along a smooth curve


class AmplitudeField:
    """Amplitudes on a box around a mask, with what dipy needs to know of them.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients in world axes, in C order of the mask.
    mask : (x, y, z) bool array
        Voxels of the rows of ``coefficients``.
    affine : (4, 4) array
        Voxel to world mm (RAS+).
    stop_amplitude : float
        Smaller amplitudes count as zero.
    algorithm : {"det", "prob", "ptt"}
        Decides how many directions are of use.

    Attributes
    ----------
    affine : (4, 4) array
        Voxel of the box to world mm.
    pmf : dipy.direction.pmf.SimplePmfGen
        The amplitudes, on directions along voxel axes.
    stopping : dipy.tracking.stopping_criterion.BinaryStoppingCriterion
        Open where some amplitude is positive.

    Raises
    ------
    InputError
        No amplitude reaches the stop amplitude.
    """

    def __init__(
        self, coefficients: np.ndarray, mask: np.ndarray, affine: np.ndarray, *, stop_amplitude: float, algorithm: str
    ) -> None:
        corners = np.argwhere(mask)
        low = corners.min(axis=0) - 1  # one voxel more all around: what lies beyond the image then reads as zero
        shape = corners.max(axis=0) + 2 - low
        most = _PTT_DIRECTIONS if algorithm == "ptt" else _DIRECTIONS[1]
        vertices = spiral(int(np.clip(_TABLE_BYTES / (8 * shape.prod()), _DIRECTIONS[0], most)))
        table = np.zeros((*shape, len(vertices)))
        rows = np.ravel_multi_index(tuple((corners - low).T), tuple(shape))
        flat = table.reshape(-1, len(vertices))
        _fill(flat, rows, coefficients, vertices @ voxel_frame(affine)[1].T, stop_amplitude)
        is_open = flat.any(axis=1).reshape(tuple(shape))
        if not is_open.any():
            raise InputError(
                f"no fODF amplitude reaches the stop amplitude {stop_amplitude:g}; look at the fODF or lower it"
            )
        self.affine = affine @ nib.affines.from_matvec(np.eye(3), low)
        self.pmf = SimplePmfGen(table, Sphere(xyz=vertices))
        self.stopping = BinaryStoppingCriterion(is_open)


def voxel_frame(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return voxel sizes (3,) in mm and R (3, 3), which turns a direction along voxel axes into a world direction."""
    sizes = nib.affines.voxel_sizes(affine)
    return sizes, affine[:3, :3] / sizes


def _fill(
    table: np.ndarray, rows: np.ndarray, coefficients: np.ndarray, directions: np.ndarray, stop_amplitude: float
) -> None:
    """Write the amplitudes of each voxel on world directions into its row of the table, (v, d)."""
    basis = sh_basis(directions, l_max_of(coefficients.shape[1])).astype(np.float32)
    for part in chunks(len(rows)):
        amplitudes = np.asarray(coefficients[part], dtype=np.float32) @ basis.T
        table[rows[part]] = np.where(amplitudes >= stop_amplitude, np.maximum(amplitudes, 0), 0)
