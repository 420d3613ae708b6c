"""Tissues that end streamlines, on a grid of their own."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt, map_coordinates

from shd_bids.errors import InputError
from shd_bids.images import MAX_PROBABILITY, load_volume, same_grid

TISSUES = ("cortical", "deep", "white", "fluid")
"""Cortical and deep grey matter, white matter and cerebrospinal fluid, in the order of arrays."""

DEEP = 15.0
"""Depth in mm below the edge of the mask from which on fluid is that of ventricles; that of sulci lies above."""

_LEAST_WHITE = 0.2  # of a voxel's signal, below which a streamline has left white matter
_KERNEL_END = 0.5  # share of a tissue from which the kernel ends streamlines
_SAMPLES = 3  # of each edge of a voxel, for the mean over it
_LEAST_SUM = 0.5  # of all tissues somewhere


@dataclass(frozen=True, slots=True)
class TissuePart:
    """Where an image holds a tissue.

    Attributes
    ----------
    file : int
        Number of the image in `TissueImages`.
    tissue : str
        One of `TISSUES`.
    labels : tuple of int
        Labels of a segmentation that are of the tissue; empty for an image of shares.
    volume : int
        Of an image of shares.
    """

    file: int
    tissue: str
    labels: tuple[int, ...] = ()
    volume: int = 0


@dataclass(frozen=True, slots=True)
class TissueImages:
    """Images of one grid with the tissues of a brain.

    Attributes
    ----------
    kind : str
        What they are, in words.
    files : tuple of Path
    parts : tuple of TissuePart
    """

    kind: str
    files: tuple[Path, ...]
    parts: tuple[TissuePart, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can hold."""
        return {
            "kind": self.kind,
            "files": [str(path) for path in self.files],
            "parts": [asdict(p) for p in self.parts],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TissueImages":
        """Return the images that `to_dict` wrote."""
        parts = tuple(TissuePart(**{**part, "labels": tuple(part["labels"])}) for part in content["parts"])
        return cls(content["kind"], tuple(map(Path, content["files"])), parts)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What the tracker asks of the tissues at a place.

    Attributes
    ----------
    shares : (x, y, z, 4) float32 array
        Of cortical grey matter, deep grey matter and fluid, and how much of a voxel is such that a streamline may end where
        its amplitude fades; above a half counts.
    white : (x, y, z) float32 array
        Share of white matter.
    affine : (4, 4) array
        Voxel to world mm (RAS+).
    """

    shares: np.ndarray
    white: np.ndarray
    affine: np.ndarray

    def mean_in(self, image: np.ndarray, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Return the mean of an image (x, y, z) of this grid over voxels (n, 3) of another, (n,)."""
        offsets = (np.indices((_SAMPLES,) * 3).reshape(3, -1).T + 0.5) / _SAMPLES - 0.5
        to_own = np.linalg.inv(self.affine) @ affine
        total = np.zeros(len(voxels))
        for offset in offsets:
            places = nib.affines.apply_affine(to_own, voxels + offset)
            total += map_coordinates(image, places.T, order=1, mode="grid-constant")
        return total / len(offsets)


def read_anatomy(images: TissueImages) -> Anatomy:
    """Return the tissues that images hold.

    Raises
    ------
    InputError
        An image is damaged, on another grid than the first, without the volume or not of shares, or there is no white or no
        grey matter.
    """
    volumes = [load_volume(path, keep_negative=True) for path in images.files]
    first = volumes[0]
    tissues = np.zeros((len(TISSUES), *first.shape[:3]), dtype=np.float32)
    for path, volume in zip(images.files, volumes, strict=True):
        if not same_grid(volume, first):
            raise InputError(f"{path}: not on the grid of {images.files[0].name}, expected tissues of one grid")
    for part in images.parts:
        tissues[TISSUES.index(part.tissue)] += _share(volumes[part.file].data, part, images.files[part.file])
    cortical, deep, white, fluid = tissues
    for name, share in (("white", white), ("grey", cortical + deep)):
        if not (share > _LEAST_SUM).any():
            raise InputError(f"{images.files[0]}: no {name} matter in it, expected the tissues of a brain")
    return Anatomy(np.stack([cortical, deep, fluid, cortical + deep], axis=-1), white, first.affine)


def _share(data: np.ndarray, part: TissuePart, path: Path) -> np.ndarray:
    """Return the share of a tissue in each voxel."""
    data = data if data.ndim == 4 else data[..., None]
    if part.volume >= data.shape[3]:
        raise InputError(f"{path}: found {data.shape[3]} volumes, expected one for each tissue")
    values = data[..., part.volume]
    if part.labels:
        return np.isin(np.rint(values), part.labels)
    low, high = float(values.min()), float(values.max())
    if low < 1 - MAX_PROBABILITY or high > MAX_PROBABILITY:
        raise InputError(f"{path}: values from {low:.3g} to {high:.3g}, expected shares from 0 to 1")
    return values.clip(0, 1)


def anatomy_of_fractions(tissues: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Anatomy:
    """Return the anatomy that signal fractions tell.

    Voxels at the cortex hold some of everything, so streamlines end where hardly any white matter is left. Where they fade, they
    may end if less than half is white matter; in the depth, where fluid is that of ventricles, only if more than half is grey.

    Parameters
    ----------
    tissues : (n, 3) array
        White matter, grey matter and fluid of the voxels of the mask, in C order.
    mask : (x, y, z) bool array
    affine : (4, 4) array
    """
    white, grey, fluid = tissues.T
    mask = np.pad(mask, 1)  # so that the outermost voxels can be interpolated
    is_deep = distance_transform_edt(mask, sampling=nib.affines.voxel_sizes(affine))[mask] > DEEP
    left = _KERNEL_END + _LEAST_WHITE - white  # above the kernel's share where white matter is below its least
    ends, rests = np.where(is_deep, np.minimum(left, grey), left), np.where(is_deep, grey, 1 - white)
    shares = np.zeros((*mask.shape, 4), dtype=np.float32)
    shares[~mask] = _KERNEL_END + _LEAST_WHITE, 0, 0, 1
    shares[mask] = np.stack([ends, 0 * white, fluid, rests], axis=1)
    image = np.zeros(mask.shape, dtype=np.float32)
    image[mask] = white
    return Anatomy(shares, image, affine @ nib.affines.from_matvec(np.eye(3), [-1, -1, -1]))
