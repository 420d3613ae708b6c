"""fODFs on a grid, with what tracking needs to know of the tissue there."""

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt

from shd_bids.errors import InputError
from shd_bids.peaks.measures import largest_peak
from shd_bids.peaks.threshold import noise_threshold

SEED_WM_FRACTION = 0.5
"""Seeded where white matter makes more of the signal."""

DEEP = 15.0
"""Depth in mm below the edge of the mask from which on fluid is that of ventricles; that of sulci lies above."""

LEAST_SHARE = 0.05
"""Streamlines end below this share of the median height of the largest peaks of white matter."""

_SAMPLE = 1000  # voxels, of which that median is taken


@dataclass(frozen=True, eq=False)
class FibreField:
    """fODFs on a grid with the tissues of their voxels.

    Attributes
    ----------
    coefficients : (n, C) array
        Even real SH coefficients in world axes (MRtrix3 basis), in C order of the mask.
    fractions : (n, 3) array
        Signal fractions of white matter, grey matter and CSF.
    mask : (x, y, z) bool array
    affine : (4, 4) array
        Voxel to world mm (RAS+).

    Raises
    ------
    ValueError
        If shapes disagree.
    """

    coefficients: np.ndarray
    fractions: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        n = np.count_nonzero(self.mask)
        if self.mask.ndim != 3 or len(self.coefficients) != n or self.fractions.shape != (n, 3):
            raise ValueError(
                f"found mask {self.mask.shape} with {n} voxels, {len(self.coefficients)} rows of coefficients and "
                f"fractions {self.fractions.shape}; expected one row a mask voxel"
            )

    @cached_property
    def usual_cutoff(self) -> float:
        """The amplitude that noise reaches (`noise_threshold`), and at least a share of the usual peak in white matter."""
        white = np.flatnonzero(self.fractions[:, 0] > SEED_WM_FRACTION)
        some = white[np.linspace(0, len(white) - 1, min(_SAMPLE, len(white))).astype(int)]
        usual = float(np.median(largest_peak(self.coefficients[some]).heights)) if len(some) else 0.0
        noise = noise_threshold(self.coefficients, self.fractions[:, 2], wm_fraction=self.fractions[:, 0])
        return max(noise, LEAST_SHARE * usual)

    @property
    def shares(self) -> np.ndarray:
        """White matter, and fluid so deep in the mask that it is that of ventricles, (n, 2)."""
        sizes = nib.affines.voxel_sizes(self.affine)
        depth = distance_transform_edt(np.pad(self.mask, 1), sampling=sizes)[1:-1, 1:-1, 1:-1][self.mask]
        return np.stack([self.fractions[:, 0], np.where(depth > DEEP, self.fractions[:, 2], 0)], axis=1)

    def seeded_voxels(self) -> np.ndarray:
        """Return the voxels (v, 3) of white matter.

        Raises
        ------
        InputError
            If there is none.
        """
        voxels = np.argwhere(self.mask)[self.fractions[:, 0] > SEED_WM_FRACTION]
        if not len(voxels):
            raise InputError("no voxel holds white matter enough to be seeded; look at the WM signal fraction")
        return voxels
