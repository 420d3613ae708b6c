"""Lobes of fODFs on a grid (fixels)."""

import math
from dataclasses import dataclass

import numpy as np

WIDEST = math.cos(math.radians(45))
"""Cosine of the largest angle between a streamline and the lobe that it counts for: half that of two crossing bundles."""


@dataclass(frozen=True, eq=False)
class Fixels:
    """Lobes on a grid; fixel ``K * v + k`` is lobe k of voxel v.

    Attributes
    ----------
    directions : (n, K, 3) float32 array
        Unit vectors in world axes, in C order of the mask; zero where there is no lobe.
    density : (n, K) float32 array
        Apparent fibre density of each lobe.
    share : (n,) float32 array
        How much each voxel counts: its signal fraction of white matter.
    mask : (x, y, z) bool array
    affine : (4, 4) array
        Voxel to world mm (RAS+).

    Raises
    ------
    ValueError
        If shapes disagree.
    """

    directions: np.ndarray
    density: np.ndarray
    share: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        n = np.count_nonzero(self.mask)
        if self.directions.shape != (*self.density.shape, 3) or len(self.density) != n or self.share.shape != (n,):
            raise ValueError(
                f"found directions {self.directions.shape}, densities {self.density.shape} and shares "
                f"{self.share.shape} for {n} mask voxels; expected (n, K, 3), (n, K) and (n,)"
            )

    @property
    def volumes(self) -> np.ndarray:
        """Volume of the fibres of each fixel in units of density, (nK,), mm³."""
        return self.density.ravel() * abs(np.linalg.det(self.affine[:3, :3]))

    @property
    def shares(self) -> np.ndarray:
        """How much each fixel counts, (nK,)."""
        return np.repeat(self.share, self.density.shape[1])
