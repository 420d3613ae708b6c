"""Regions between which streamlines run: label images with the table of their names."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from shd_bids.errors import InputError
from shd_bids.files import read_text
from shd_bids.images import load_volume

MOST_REGIONS = 10_000
"""Tables of more regions hold 10^8 numbers and more."""

LARGEST_LABEL = 2**24
"""Up to which float32 tells whole numbers apart."""

_SHOWN = 5  # labels in a message


@dataclass(frozen=True, eq=False)
class Regions:
    """The nodes of a connectome.

    Attributes
    ----------
    node : (x, y, z) int32 array
        Number of the region of each voxel, -1 outside of all.
    affine : (4, 4) array
        Voxel to world mm (RAS+).
    labels : (n,) int64 array
        Label of each region in the image.
    names : tuple of str
        One for each region.
    notes : tuple of str
        What the user should know about labels and table.
    """

    node: np.ndarray
    affine: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def volumes(self) -> np.ndarray:
        """Volume of each region, (n,), mm³; zero for one that the image lacks."""
        counts = np.bincount(self.node[self.node >= 0], minlength=len(self))
        return counts * abs(np.linalg.det(self.affine[:3, :3]))

    @property
    def centres(self) -> np.ndarray:
        """Labelled voxels in world mm, (v, 3)."""
        return nib.affines.apply_affine(self.affine, np.argwhere(self.node >= 0))


def read_regions(image: Path, table: Path | None) -> Regions:
    """Read a label image; without a table every label above zero is a region.

    With a table its rows are the regions, whether or not the image has them, so that connectomes of several subjects have
    the same rows; other labels of the image are left out.

    Parameters
    ----------
    image : Path
        NIfTI image of whole numbers from zero.
    table : Path, optional
        BIDS table with the columns ``index`` and ``name``.

    Raises
    ------
    InputError
        If the image holds no labels or the table cannot be read; with one line for each problem.
    """
    volume = load_volume(image, n_dims=(3,), keep_negative=True)
    found = _labels_of(image, volume.data)
    rows = {int(label): str(label) for label in found} if table is None else read_table(table)
    labels = np.array(sorted(rows), dtype=np.int64)
    if len(labels) > MOST_REGIONS:
        raise InputError(f"{image}: {len(labels)} labels, expected at most {MOST_REGIONS}; give a coarser parcellation")
    place = np.searchsorted(labels, volume.data).clip(max=len(labels) - 1)
    node = np.where(labels[place] == volume.data, place, -1).astype(np.int32)
    if not (node >= 0).any():
        raise InputError(f"{image}: none of its labels is an index of {table}; give the table of this image")
    names = tuple(rows[label] for label in labels.tolist())
    return Regions(node, volume.affine, labels, names, _notes(image, found, labels))


def read_table(path: Path) -> dict[int, str]:
    """Return the names of a BIDS look-up table by index, without the background.

    Raises
    ------
    InputError
        If there are no columns ``index`` and ``name``, or an index is no whole number or stands twice.
    """
    rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
    if not rows or not {"index", "name"} <= set(rows[0]):
        columns = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise InputError(f"{path}: found {columns}, expected the tab-separated columns index and name")
    names: dict[int, str] = {}
    for row in rows:
        text = (row["index"] or "").strip()
        if not text.isdecimal():
            raise InputError(f"{path}: index {text!r}, expected whole numbers from 0; correct the table")
        if int(text) in names:
            raise InputError(f"{path}: index {text} stands twice; correct the table")
        names[int(text)] = (row["name"] or "").strip() or text
    names.pop(0, None)
    if not names:
        raise InputError(f"{path}: no index above 0, expected one for each region")
    return names


def _labels_of(image: Path, data: np.ndarray) -> np.ndarray:
    """Return the labels above zero, ascending."""
    values = np.unique(data)
    if not (values == np.rint(values)).all():
        wrong = ", ".join(f"{value:g}" for value in values[values != np.rint(values)][:_SHOWN])
        raise InputError(
            f"{image}: values that are not whole ({wrong}), expected labels; resample label images by nearest neighbour"
        )
    if values[0] < 0:
        raise InputError(f"{image}: values down to {values[0]:g}, expected labels from 0")
    if values[-1] >= LARGEST_LABEL:
        raise InputError(
            f"{image}: labels up to {values[-1]:.0f}, expected less than {LARGEST_LABEL}; number the regions from 1"
        )
    if values[-1] == 0:
        raise InputError(f"{image}: no label, all voxels are 0; give another image")
    return values[values > 0].astype(np.int64)


def _notes(image: Path, found: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    """Return which labels are in the image or in the table only."""
    notes = []
    for only, where in ((np.setdiff1d(found, labels), "table, left out"), (np.setdiff1d(labels, found), "image")):
        if len(only):
            shown = ", ".join(map(str, only[:_SHOWN])) + (", ..." if len(only) > _SHOWN else "")
            notes.append(f"{image.name}: {len(only)} labels are not in the {where} ({shown})")
    return tuple(notes)
