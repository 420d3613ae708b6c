"""Label images for the connectomes of a series, given as files or found by name in derivatives, with their tables of names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from shd_bids.bids.sessions import Dataset, all_entities
from shd_bids.errors import InputError
from shd_bids.images import Volume
from shd_bids.options import is_label_file
from shd_bids.settings import Settings
from shd_bids.tractography.regions import Regions, read_regions

if TYPE_CHECKING:
    from shd_bids.bids.run import DWIRun

__all__ = ["Parcellation", "table_beside", "with_parcellations"]

NAMED_BY = ("atlas", "seg", "desc")
"""Entities by which a parcellation is asked for."""

KEPT = ("atlas", "seg", "scale")
"""Entities that a parcellation gives to the names of outputs."""

FOLDERS = ("anat", "dwi")
LEAST_INSIDE = 0.5
"""Share of the labelled voxels that must lie in the diffusion image."""

_SAMPLE = 100_000  # labelled voxels, of which that share is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcellation:
    """A label image in the space of a series.

    Attributes
    ----------
    image : Path
    table : Path, optional
        BIDS look-up table; without one each label is its own name.
    entities : mapping
        What it adds to the names of outputs: ``atlas``, ``seg``, ``scale``.
    uri : str
        BIDS URI of the image, or its name where it lies in no data set.
    n_regions : int
    """

    image: Path
    table: Path | None
    entities: Mapping[str, str] = field(default_factory=dict)
    uri: str
    n_regions: int = 0

    @property
    def label(self) -> str:
        """Its entities as in a name: ``atlas-x_seg-y``."""
        return "_".join(f"{name}-{value}" for name, value in self.entities.items())

    @property
    def files(self) -> tuple[Path, ...]:
        """Image and table."""
        return (self.image,) if self.table is None else (self.image, self.table)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Parcellation":
        """Return the parcellation that `dataclasses.asdict` and JSON made a mapping of."""
        paths = {name: Path(content[name]) if content[name] else None for name in ("image", "table")}
        return cls(**{**content, **paths})


def with_parcellations(run: "DWIRun", volume: Volume, settings: Settings, datasets: Sequence[Dataset]) -> "DWIRun":
    """Return the series with every parcellation asked for, each read once.

    Raises
    ------
    InputError
        One is not there, cannot be read, lies elsewhere, or has the name of another; all problems are told.
    """
    found: dict[str, Parcellation] = {}
    problems: list[str] = []
    notes: list[str] = []
    links = dict(run.links)
    for asked in settings.parcellation if settings.analysis_level == "participant" else ():
        try:
            one, dataset = _given(Path(asked)) if is_label_file(asked) else _named(asked, run, datasets)
            regions = read_regions(one.image, one.table)
            _require_overlap(one.image, regions, volume)
            if one.label in found:
                raise InputError(f"{one.image}: {one.label} is also {found[one.label].image}; rename one of them")
        except InputError as error:
            problems += error.problems
            continue
        found[one.label] = replace(one, n_regions=len(regions))
        notes += regions.notes
        links |= {dataset.name: dataset.root} if dataset else {}
    if problems:
        raise InputError(problems)
    return replace(run, parcellations=tuple(found.values()), notes=(*run.notes, *notes), links=links)


def _given(image: Path) -> tuple[Parcellation, None]:
    """Return a parcellation given as a file, with the table beside it."""
    return Parcellation(image=image, table=table_beside(image), entities=_own_entities(image), uri=image.name), None


def table_beside(image: Path) -> Path | None:
    """Return the look-up table of a label image given as a file, ``None`` where there is none."""
    table = image.with_name(f"{image.name.partition('.')[0]}.tsv")
    return table if table.is_file() else None


def _named(asked: str, run: "DWIRun", datasets: Sequence[Dataset]) -> tuple[Parcellation, Dataset]:
    """Return the parcellation of a name in the space of the series.

    Raises
    ------
    InputError
        None or several apply.
    """
    everywhere = {path: dataset for dataset in datasets for path in _images(asked, run, dataset)}
    here = [(dataset, path) for path, dataset in everywhere.items() if _space_of(path) == run.space]
    if len(here) > 1:
        names = ", ".join(str(path) for _, path in here)
        raise InputError(f"{run.dwi.name}: --parcellation {asked}: {len(here)} apply ({names}); give the file")
    if not here:
        spaces = ", ".join(sorted(set(map(_space_of, everywhere))))
        elsewhere = f"only in space {spaces}, expected {run.space}; resample it" if spaces else "not found"
        roots = ", ".join(str(dataset.root) for dataset in datasets)
        raise InputError(
            f"{run.dwi.name}: --parcellation {asked}: {elsewhere} (_dseg of atlas-, seg- or desc-{asked} in {roots}); "
            "give the file, or the data set with -d"
        )
    dataset, path = here[0]
    table = next(_tables(path, dataset.root), None)
    return Parcellation(image=path, table=table, entities=_own_entities(path), uri=dataset.uri(path)), dataset


def _images(asked: str, run: "DWIRun", dataset: Dataset) -> list[Path]:
    """Return the label images of a subject and session that bear a name."""
    subject = dataset.root / f"sub-{run.subject}"
    homes = [subject / f"ses-{run.session}", subject] if run.session else [subject]
    found = [
        path
        for home in homes
        for folder in FOLDERS
        for path in sorted((home / folder).glob(f"sub-{run.subject}_*dseg.nii*"))
        if is_label_file(path.name) and asked in (all_entities(path).get(name) for name in NAMED_BY)
    ]
    return [path for path in found if all_entities(path).get("run", run.entities.get("run")) == run.entities.get("run")]


def _space_of(path: Path) -> str:
    """Return the space of a label image: that of its name, else the anatomical one or that of the series it lies beside."""
    return all_entities(path).get("space", "T1w" if path.parent.name == "anat" else "orig")


def _own_entities(image: Path) -> dict[str, str]:
    """Return what a parcellation adds to names: its own entities, else its description or the whole of its name."""
    entities = all_entities(image)
    kept = {name: entities[name] for name in KEPT if name in entities}
    stem = image.name.partition(".")[0].removesuffix("_dseg")
    if {"atlas", "seg"} & set(kept):
        return kept
    return {"seg": re.sub(r"[^a-zA-Z0-9]", "", entities.get("desc", stem)) or "labels", **kept}


def _tables(image: Path, root: Path) -> Iterator[Path]:
    """Yield the tables that apply: beside the image, inherited from a folder above, or of the atlas itself."""
    entities = all_entities(image).items()
    for folder in (image.parent, *image.parent.parents):
        applying = [path for path in folder.glob("*dseg.tsv") if all_entities(path).items() <= entities]
        yield from sorted(applying, key=lambda path: (-len(all_entities(path)), path.name))
        if folder == root:
            break
    for name in NAMED_BY:
        if value := all_entities(image).get(name):
            folder = root / "atlases" / f"atlas-{value}"
            yield from (path for path in [folder / f"atlas-{value}_dseg.tsv"] if path.is_file())


def _require_overlap(image: Path, regions: Regions, volume: Volume) -> None:
    """Raise `InputError` where most labels lie outside of the diffusion image."""
    centres = regions.centres
    centres = centres[:: max(1, len(centres) // _SAMPLE)]
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(volume.affine), centres))
    inside = ((voxels >= 0) & (voxels < volume.shape[:3])).all(axis=1).mean()
    if inside < LEAST_INSIDE:
        raise InputError(
            f"{image}: {1 - inside:.0%} of its labels lie outside of the diffusion image, expected at most "
            f"{1 - LEAST_INSIDE:.0%}: it is of another space or its affine is wrong; give labels in the space of the image"
        )
