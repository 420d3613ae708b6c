"""The tissues of a series: five-tissue images, probability maps and segmentations of derivatives in its space."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

from shd_bids.bids.doubts import bright_part
from shd_bids.bids.run import DWIRun
from shd_bids.bids.sessions import Dataset, all_entities
from shd_bids.errors import InputError
from shd_bids.files import read_json_object, read_text
from shd_bids.gradients.table import GradientTable
from shd_bids.images import Volume, count_volumes, load_volume
from shd_bids.settings import Settings
from shd_bids.tractography.anatomy import TissueImages, TissuePart, read_anatomy

__all__ = ["Brain", "tissue_files", "with_anatomy"]

FREESURFER: Mapping[str, tuple[int, ...]] = {
    "cortical": (3, 8, 42, 47, *range(1000, 3000)),
    "deep": (9, 10, 11, 12, 13, 17, 18, 26, 48, 49, 50, 51, 52, 53, 54, 58),
    "white": (2, 7, 16, 28, 41, 46, 60, 77, 78, 79, 85, 192, *range(251, 256), *range(3000, 5003)),
    "fluid": (4, 5, 14, 15, 24, 31, 43, 44, 63, 72),
}
"""Labels of FreeSurfer's volumes; the ventral diencephalon is white matter, as the pyramidal tract runs through it."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "cortical": ("GM", "CGM", "gray matter", "grey matter", "cortical gray matter", "cortical grey matter"),
    "deep": (
        "SGM",
        "DGM",
        "subcortical gray matter",
        "subcortical grey matter",
        "deep gray matter",
        "deep grey matter",
    ),
    "white": ("WM", "BS", "white matter", "brainstem", "brain stem"),
    "fluid": ("CSF", "cerebrospinal fluid"),
}
"""Abbreviations and names of the tables of BIDS."""

STANDARD: Mapping[str, tuple[int, ...]] = {"cortical": (1, 8), "deep": (9,), "white": (2, 10), "fluid": (3,)}
"""Labels that BIDS gives tissues where a segmentation has no table."""

FLUID_FIRST: Mapping[str, tuple[int, ...]] = {"cortical": (2,), "white": (3,), "fluid": (1,)}
"""Labels in the order of brightness of a T1-weighted image, as FSL FAST and ANTs Atropos give them."""

FIVE_TISSUES = ("cortical", "deep", "white", "fluid")
"""Volumes of a five-tissue image of MRtrix3; of the fifth, pathological tissue, nothing is assumed."""

_PARCELLATIONS = ("atlas", "seg")  # entities of their names
_FREESURFER_CEREBRUM = ((2, 41), (3, 42))  # white and grey of both sides
_LEAST_COVERED = 0.5  # of the brain
_LOOKED_AT = 20_000  # voxels of each label


@dataclass(frozen=True, eq=False)
class Brain:
    """What tissues are compared with.

    Attributes
    ----------
    volume : Volume
        The series.
    table : GradientTable
    mask : (x, y, z) bool array, optional
    """

    volume: Volume
    table: GradientTable
    mask: np.ndarray | None

    @cached_property
    def b0(self) -> np.ndarray:
        """Mean signal at b=0, (x, y, z)."""
        return self.table.take(self.volume.data)[..., self.table.b0_indices].mean(axis=-1)

    @property
    def voxels(self) -> np.ndarray:
        """Voxels of the brain, (n, 3); without a mask what is bright at b=0."""
        return np.argwhere(bright_part(self.b0) if self.mask is None else self.mask)

    def b0_at(self, places: np.ndarray) -> np.ndarray:
        """Return the signal of the voxels nearest to places (n, 3) in world mm, zero outside."""
        voxels = nib.affines.apply_affine(np.linalg.inv(self.volume.affine), places)
        return map_coordinates(self.b0, voxels.T, order=0, mode="constant")


def with_anatomy(
    run: DWIRun, brain: Brain, settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any]
) -> DWIRun:
    """Return the series with the best tissue images of its space that the data sets hold, none where there are none.

    Five-tissue images go before segmentations that tell deep from cortical grey matter, then come probability maps, then other
    segmentations.

    Raises
    ------
    InputError
        Several images are as good, or those found are damaged, without tissues or beside the brain.
    """
    if not _asks_for_tissues(settings):
        return run
    ways: tuple[Callable[..., list[TissueImages]], ...] = (_volumes, _freesurfer, _maps, _segmentations)
    for find in ways:
        for dataset in [*datasets[1:], datasets[0]]:
            found = find(run, dataset, filters)
            if len(found) > 1:
                names = ", ".join(path.name for images in found for path in images.files)
                raise InputError(f"{run.dwi.name}: several tissue images apply ({names}); {_REMEDY}")
            if found:
                return _taken(run, found[0], brain, dataset)
    return run


_REMEDY = "choose with the queries dseg and probseg of --bids-filter-file, or leave them out with --act off"


def _taken(run: DWIRun, images: TissueImages, brain: Brain, dataset: Dataset) -> DWIRun:
    notes = []
    if images.kind == _UNNAMED:
        images, note = _named(images, brain)
        notes.append(note)
    try:
        anatomy = read_anatomy(images)
    except InputError as error:
        raise InputError(f"{problem}; {_REMEDY}" for problem in error.problems) from None
    any_tissue = anatomy.white + anatomy.shares[..., :3].sum(axis=-1)
    covered = float(anatomy.mean_in(any_tissue, brain.voxels, brain.volume.affine).mean())
    if covered < _LEAST_COVERED:
        raise InputError(
            f"{images.files[0]}: tissues cover {covered:.0%} of the brain in {run.dwi.name}, expected at least "
            f"{_LEAST_COVERED:.0%}: it is not in the space of the image; {_REMEDY}"
        )
    uris = tuple(dataset.uri(path) for path in images.files)
    links = {**run.links, dataset.name: dataset.root}
    return replace(run, anatomy=images, anatomy_uris=uris, links=links, notes=(*run.notes, *notes))


def _volumes(run: DWIRun, dataset: Dataset, filters: Mapping[str, Any]) -> list[TissueImages]:
    """Return images with a volume for each tissue: by their LabelMap, else those of five volumes."""
    found = []
    for path in [*_images(run, dataset, "probseg", filters), *_images(run, dataset, "5tt", filters)]:
        if "label" in all_entities(path):
            continue
        named: dict[str, Any] = {}
        for sidecar in reversed(dataset.inherited(path, ".json")):
            named |= read_json_object(sidecar)
        tissues = [_tissue_named([str(name)]) for name in named.get("LabelMap", ())]
        kind = "probability maps"
        if not tissues and count_volumes(path) == len(FIVE_TISSUES) + 1:
            tissues, kind = list(FIVE_TISSUES), "five-tissue image"
        parts = [TissuePart(0, tissue, volume=number) for number, tissue in enumerate(tissues) if tissue]
        if parts:
            found.append(TissueImages(kind, (path,), tuple(parts)))
    return found


def _maps(run: DWIRun, dataset: Dataset, filters: Mapping[str, Any]) -> list[TissueImages]:
    """Return probability maps with a file for each tissue, those with the same other entities together."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, Path]] = {}
    for path in _images(run, dataset, "probseg", filters):
        entities = all_entities(path)
        if tissue := _tissue_named([entities.pop("label", "")]):
            groups.setdefault(tuple(entities.items()), {})[tissue] = path
    found = []
    for paths in groups.values():
        if "white" in paths and "cortical" in paths:
            parts = tuple(TissuePart(number, tissue) for number, tissue in enumerate(paths))
            found.append(TissueImages("probability maps", tuple(paths.values()), parts))
    return found


def _freesurfer(run: DWIRun, dataset: Dataset, filters: Mapping[str, Any]) -> list[TissueImages]:
    """Return segmentations with the labels of FreeSurfer: those named aseg, else aparcaseg, else others that look like it."""
    paths = _tissue_segmentations(run, dataset, filters)
    for desc in ("aseg", "aparcaseg"):
        if own := [path for path in paths if all_entities(path).get("desc") == desc]:
            return [_by_labels("segmentation with FreeSurfer labels", path, FREESURFER) for path in own]
    return [
        _by_labels("segmentation with FreeSurfer labels", path, FREESURFER)
        for path in _unnamed(paths)
        if not _table(dataset, path) and all(np.isin(pair, _labels(path)).all() for pair in _FREESURFER_CEREBRUM)
    ]


def _segmentations(run: DWIRun, dataset: Dataset, filters: Mapping[str, Any]) -> list[TissueImages]:
    """Return segmentations whose tables name tissues, else those without a table."""
    paths = _tissue_segmentations(run, dataset, filters)
    named = [_by_labels("segmentation", path, table) for path in paths if (table := _table(dataset, path))]
    return named or [_by_labels(_UNNAMED, path, STANDARD) for path in _unnamed(paths)]


_UNNAMED = "segmentation without a table"


def _unnamed(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if "desc" not in all_entities(path)]


def _by_labels(kind: str, path: Path, table: Mapping[str, tuple[int, ...]]) -> TissueImages:
    return TissueImages(kind, (path,), tuple(TissuePart(0, tissue, labels) for tissue, labels in table.items()))


def _named(images: TissueImages, brain: Brain) -> tuple[TissueImages, str]:
    """Return three tissues in the order that the signal tells, as fluid is the brightest at b=0, and a note about it."""
    (path,) = images.files
    volume = load_volume(path)
    medians = {}
    for label in (1, 2, 3):
        voxels = np.argwhere(np.rint(volume.data if volume.data.ndim == 3 else volume.data[..., 0]) == label)
        voxels = voxels[:: max(1, len(voxels) // _LOOKED_AT)]
        signal = brain.b0_at(nib.affines.apply_affine(volume.affine, voxels))
        medians[label] = float(np.median(signal[signal > 0])) if (signal > 0).any() else 0.0
    table = FLUID_FIRST if max(medians, key=lambda label: medians[label]) == 1 else STANDARD
    order = ", ".join(f"{label} {name}" for name, labels in table.items() for label in labels if label in medians)
    taken = _by_labels("segmentation", path, table)
    return taken, f"{path.name} has no table; by the signal at b=0 its labels are taken as {order}"


def tissue_files(
    run: DWIRun, settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Return the images among which `with_anatomy` chooses, and what tells the meaning of their labels and volumes."""
    if not _asks_for_tissues(settings):
        return ()
    found: list[Path] = []
    for dataset in datasets:
        for suffix, ending in (("dseg", ".tsv"), ("probseg", ".json"), ("5tt", ".json")):
            for path in _images(run, dataset, suffix, filters):
                found += [path, *dataset.inherited(path, ending)]
    return tuple(found)


def _asks_for_tissues(settings: Settings) -> bool:
    return settings.act == "auto" and settings.level == "full"


def _images(run: DWIRun, dataset: Dataset, suffix: str, filters: Mapping[str, Any]) -> list[Path]:
    """Return the images of a data set in the space of a series, those of its own session if there are any."""
    asked = filters["dseg" if suffix == "dseg" else "probseg"]
    fitting = [path for path in sorted(dataset.tissue_images(run.subject, suffix, asked)) if _fits(run, path)]
    own = [path for path in fitting if "ses" in all_entities(path)]
    return own or fitting


def _fits(run: DWIRun, path: Path) -> bool:
    """Whether an image is of the session and space of a series; in ``anat`` an image without a space is in its own."""
    entities = all_entities(path)
    same_space = entities.get("space", "orig") == run.space and (run.space != "orig" or path.parent.name == "dwi")
    return same_space and entities.get("ses", run.session) == run.session


def _tissue_segmentations(run: DWIRun, dataset: Dataset, filters: Mapping[str, Any]) -> list[Path]:
    """Return segmentations that are no parcellations by their names."""
    paths = _images(run, dataset, "dseg", filters)
    return [path for path in paths if not any(name in all_entities(path) for name in _PARCELLATIONS)]


def _table(dataset: Dataset, path: Path) -> dict[str, tuple[int, ...]]:
    """Return the labels of each tissue that the table of a segmentation names; empty without white or grey matter."""
    tables = dataset.inherited(path, ".tsv")
    if not tables:
        return {}
    found: dict[str, list[int]] = {}
    for row in csv.DictReader(io.StringIO(read_text(tables[0])), delimiter="\t"):
        tissue = _tissue_named([row.get("abbreviation") or "", row.get("name") or ""])
        if tissue and (row.get("index") or "").strip().isdigit():
            found.setdefault(tissue, []).append(int(row["index"]))
    is_of_tissues = "white" in found and ("cortical" in found or "deep" in found)
    return {tissue: tuple(labels) for tissue, labels in found.items()} if is_of_tissues else {}


def _tissue_named(names: Iterable[str]) -> str:
    """Return the tissue that one of the names means, nothing where none does."""
    asked = {" ".join(name.replace("_", " ").replace("-", " ").lower().split()) for name in names}
    return next((tissue for tissue, known in NAMES.items() if asked & {name.lower() for name in known}), "")


def _labels(path: Path) -> np.ndarray:
    return np.unique(np.rint(load_volume(path).data))
