"""Lobes of fODFs on a grid (fixels), and the lengths of streamlines in them."""

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence
from scipy import sparse

from shd_bids.boxes import chunks, row_numbers

WIDEST = math.cos(math.radians(45))
"""Cosine of the largest angle between a streamline and the lobe that it counts for: half that of two crossing bundles."""

_STREAMLINES = 2000  # at once


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


def lengths_in(fixels: Fixels, streamlines: ArraySequence) -> sparse.csr_array:
    """Return the length of each streamline in each fixel.

    Segments are cut to at most a quarter of a voxel; each piece counts for the lobe of its voxel that is nearest in
    direction, or for none beyond `WIDEST`.

    Parameters
    ----------
    fixels : Fixels
    streamlines : ArraySequence
        Points in world mm.

    Returns
    -------
    (s, nK) sparse array, float32
        Length in mm.
    """
    numbers = row_numbers(fixels.mask).astype(np.int32)
    parts = [_lengths_of(fixels, numbers, streamlines[some]) for some in chunks(len(streamlines), _STREAMLINES)]
    return stacked(parts, fixels.density.size)


def stacked(parts: list[sparse.csr_array], n_columns: int) -> sparse.csr_array:
    """Return the rows of all parts; without any, an array without rows."""
    return sparse.vstack([sparse.csr_array((0, n_columns), dtype=np.float32), *parts], format="csr")


def _lengths_of(fixels: Fixels, numbers: np.ndarray, streamlines: ArraySequence) -> sparse.csr_array:
    points = streamlines.get_data()
    owner = np.repeat(np.arange(len(streamlines)), [len(line) for line in streamlines])
    joined = np.flatnonzero(owner[1:] == owner[:-1])  # first point of every segment
    voxels = nib.affines.apply_affine(np.linalg.inv(fixels.affine), points)
    steps = voxels[joined + 1] - voxels[joined]
    pieces = max(1, math.ceil(4 * np.abs(steps).max(initial=0)))
    middle = (np.arange(pieces) + 0.5) / pieces
    places = np.rint(voxels[joined, None] + middle[:, None] * steps[:, None]).astype(int)  # (segment, piece, 3)
    inside = ((places >= 0) & (places < numbers.shape)).all(axis=-1)
    segment = np.nonzero(inside)[0]
    row = numbers[tuple(places[inside].T)]
    segment, row = segment[row >= 0], row[row >= 0]
    vectors = (points[joined + 1] - points[joined])[segment]
    column, length = _nearest(fixels, row, vectors)
    kept = column >= 0
    entries = (length[kept] / pieces, (owner[joined][segment[kept]], column[kept]))
    return sparse.coo_array(entries, shape=(len(streamlines), fixels.density.size)).tocsr()


def _nearest(fixels: Fixels, row: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fixel nearest to each vector, -1 for none, and the length of each, (p,)."""
    length = np.linalg.norm(vectors, axis=1).astype(np.float32)
    along = np.abs(np.einsum("pkc,pc->pk", fixels.directions[row], vectors.astype(np.float32)))
    along = np.where(fixels.density[row] > 0, along, 0)
    lobe = along.argmax(axis=1)
    near = (length > 0) & (np.take_along_axis(along, lobe[:, None], axis=1)[:, 0] >= WIDEST * length)
    return np.where(near, row * fixels.density.shape[1] + lobe, -1), length
