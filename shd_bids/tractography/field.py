"""fODFs on a grid, with what tracking needs to know of the tissue there."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import generate_binary_structure, maximum_filter

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.peaks.measures import afd_total, largest_peak
from shd_bids.peaks.threshold import noise_threshold
from shd_bids.sphere.harmonics import l_max_of, sh_basis
from shd_bids.sphere.healpix import hemisphere
from shd_bids.tractography.anatomy import Anatomy, anatomy_of_fractions

SEED_WM_FRACTION = 0.5
"""Seeded where there is more white matter."""

LEAST_SHARE = 0.05
"""Streamlines end below this share of the median height of the largest peaks of white matter."""

_SAMPLE = 1000  # voxels, of which that median is taken
_LOW_QUANTILE = 0.25  # of the amplitudes over the sphere: no lobes of two crossing bundles reach as far
_LOOKED_AT = 4  # n_side of the directions for it


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
    given : Anatomy, optional
        Tissues by other images, which go before those of the fractions.

    Raises
    ------
    ValueError
        If shapes disagree.
    """

    coefficients: np.ndarray
    fractions: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    given: Anatomy | None = None

    def __post_init__(self) -> None:
        n = np.count_nonzero(self.mask)
        if self.mask.ndim != 3 or len(self.coefficients) != n or self.fractions.shape != (n, 3):
            raise ValueError(
                f"found mask {self.mask.shape} with {n} voxels, {len(self.coefficients)} rows of coefficients and "
                f"fractions {self.fractions.shape}; expected one row a mask voxel"
            )

    @property
    def has_grey(self) -> bool:
        """Whether grey matter was fitted."""
        return bool(self.fractions[:, 1].any())

    @cached_property
    def tissues(self) -> np.ndarray:
        """White matter, grey matter and fluid, (n, 3).

        Where grey matter was not fitted, it is an even pedestal of the fODFs, and what the pedestal makes of a function counts as
        grey.
        """
        if self.has_grey:
            return self.fractions
        grey = self.fractions[:, 0] * _pedestal(self.coefficients)
        return np.stack([self.fractions[:, 0] - grey, grey, self.fractions[:, 2]], axis=1)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The tissues given, else those of the fractions."""
        return self.given or anatomy_of_fractions(self.tissues, self.mask, self.affine)

    @cached_property
    def white(self) -> np.ndarray:
        """Share of white matter, (n,)."""
        if self.given is None:
            return self.tissues[:, 0]
        return self.given.mean_in(self.given.white, np.argwhere(self.mask), self.affine)

    @cached_property
    def usual_cutoff(self) -> float:
        """The amplitude that noise reaches (`noise_threshold`), and at least a share of the usual peak in white matter."""
        white = np.flatnonzero(self.tissues[:, 0] > SEED_WM_FRACTION)
        some = white[np.linspace(0, len(white) - 1, min(_SAMPLE, len(white))).astype(int)]
        usual = float(np.median(largest_peak(self.coefficients[some]).heights)) if len(some) else 0.0
        noise = noise_threshold(self.coefficients, self.fractions[:, 2], wm_fraction=self.fractions[:, 0])
        return max(noise, LEAST_SHARE * usual)

    def seeded_voxels(self, *, at_border: bool = False) -> np.ndarray:
        """Return the voxels (v, 3) of white matter, or only those with grey matter beside them.

        Raises
        ------
        InputError
            If there is none.
        """
        chosen = self.white > SEED_WM_FRACTION
        if at_border:
            chosen &= self._is_beside_grey()
        voxels = np.argwhere(self.mask)[chosen]
        if not len(voxels):
            raise InputError("no voxel holds white matter enough to be seeded; look at the WM signal fraction")
        return voxels

    def _is_beside_grey(self) -> np.ndarray:
        """Return which voxels of the mask, (n,), share a face with one in which streamlines end in grey matter."""
        grey = self.tissues[:, 1]
        if self.given is not None:
            grey = self.given.mean_in(self.given.shares[..., :2].sum(axis=-1), np.argwhere(self.mask), self.affine)
        image = np.zeros(self.mask.shape, dtype=np.float32)
        image[self.mask] = grey
        return maximum_filter(image, footprint=generate_binary_structure(3, 1))[self.mask] > SEED_WM_FRACTION


def _pedestal(coefficients: np.ndarray) -> np.ndarray:
    """Return how much of each function, (n,), lies below what three quarters of the sphere exceed, in [0, 1]."""
    basis = sh_basis(hemisphere(_LOOKED_AT), l_max_of(coefficients.shape[1])).T.astype(np.float32)
    level = np.zeros(len(coefficients))
    for part in chunks(len(coefficients)):
        level[part] = np.quantile(coefficients[part] @ basis, _LOW_QUANTILE, axis=1)
    total = afd_total(coefficients)
    return np.divide(4 * np.pi * level, total, out=np.zeros_like(level), where=total > 0).clip(0, 1)
