"""One diffusion series as a data set has it: its files and what is known of them, or why it cannot be processed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shd_bids.bids.parcellations import Parcellation
from shd_bids.bids.sessions import source_entities
from shd_bids.tractography.anatomy import TissueImages

__all__ = ["DWIRun", "Unusable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DWIRun:
    """One diffusion series and the files that belong to it.

    Attributes
    ----------
    subject, session : str
        Labels without ``sub-`` and ``ses-``; the session is ``None`` where the data set has none.
    entities : dict
        Source entities (``sub``, ``ses``, ``acq``, ``dir``, ``run``, ...) as written in the name.
    space : str
        Label of the image's space; ``orig`` where the name has none.
    dwi, bval, bvec, grad_b : Path
        Image, FSL gradients, and QSIPrep's table in world axes; ``grad_b`` wins where it is not ``None``.
    mask : Path, optional
        Brain mask on the grid of the image; ``None`` means that one must be estimated.
    mask_origin : str
        ``given``, ``derivative`` or ``estimated``.
    sidecar : dict
        Metadata of the image with inheritance.
    source_uri, mask_uri : str
        BIDS URIs.
    spatial_reference : str
        For sidecars: ``orig`` or a BIDS URI.
    links : dict
        Name of each data set used -> its root.
    shape : tuple of int
        Voxels along x, y, z, and volumes.
    voxel_size : tuple of float
        Along x, y, z, mm.
    n_mask : int, optional
        Voxels inside the mask, where there is one; for ``--dry-run`` an estimate where there is none.
    shells : tuple of (float, int)
        b-value in s/mm2 and number of volumes of each shell.
    responses : tuple of Path
        Responses that were given for it; empty to estimate them.
    parcellations : tuple of Parcellation
        Regions of its connectomes.
    anatomy : TissueImages, optional
        Tissues that end streamlines; ``None`` to take those that are fitted.
    anatomy_uris : tuple of str
        BIDS URIs of its images.
    notes : tuple of str
        What the user should know about the choice of files.
    masks : tuple of Path
        Masks and tissue images among which was chosen, with the tables of these.
    hashes : mapping
        SHA-256 of its files by path, where an earlier call knows them and they did not change since.
    """

    subject: str
    session: str | None
    entities: Mapping[str, str]
    space: str
    dwi: Path
    bval: Path | None
    bvec: Path | None
    grad_b: Path | None
    mask: Path | None
    mask_origin: str
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    source_uri: str
    mask_uri: str | None = None
    spatial_reference: str = "orig"
    links: Mapping[str, Path] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    voxel_size: tuple[float, ...] = ()
    n_mask: int | None = None
    shells: tuple[tuple[float, int], ...] = ()
    responses: tuple[Path, ...] = ()
    parcellations: tuple[Parcellation, ...] = ()
    anatomy: TissueImages | None = None
    anatomy_uris: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Source entities as in the name: ``sub-01_ses-1_acq-x``."""
        return "_".join(f"{name}-{value}" for name, value in self.entities.items())

    @property
    def key(self) -> str:
        """Name of the series, with its space where that is not the original one, for nodes and folders."""
        return re.sub(r"\W", "_", self.prefix if self.space == "orig" else f"{self.prefix}_space-{self.space}")

    @property
    def folder(self) -> Path:
        """Folder of its derivatives below the root of the output."""
        session = f"ses-{self.session}" if self.session else ""
        return Path(f"sub-{self.subject}") / session / "dwi"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every input file that decides about the result, but for tissues."""
        return tuple(path for path in (self.dwi, self.bval, self.bvec, self.grad_b, self.mask) if path is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can hold."""
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DWIRun":
        """Return the series that `to_dict` wrote."""
        values = dict(content)
        for name in ("dwi", "bval", "bvec", "grad_b", "mask"):
            values[name] = Path(values[name]) if values[name] is not None else None
        values["links"] = {name: Path(path) for name, path in values["links"].items()}
        values |= {name: tuple(values[name]) for name in ("shape", "voxel_size", "notes", "anatomy_uris")}
        values["anatomy"] = TissueImages.from_dict(values["anatomy"]) if values["anatomy"] else None
        values |= {name: tuple(Path(path) for path in values[name]) for name in ("responses", "masks")}
        values["parcellations"] = tuple(Parcellation.from_dict(one) for one in values["parcellations"])
        values["shells"] = tuple((bvalue, count) for bvalue, count in values["shells"])
        return cls(**{f.name: values[f.name] for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class Unusable:
    """One or several images of a session that cannot be processed.

    Attributes
    ----------
    prefix, subject, session : str
        As of a `DWIRun`; of the first image where there are several.
    problems : tuple of str
        What was found and what to do, one line each.
    """

    prefix: str
    subject: str
    session: str | None
    problems: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, problems: Sequence[str]) -> "Unusable":
        """Return it for an image."""
        entities = source_entities(path)
        prefix = "_".join(f"{name}-{value}" for name, value in entities.items())
        return cls(prefix, entities.get("sub", ""), entities.get("ses"), tuple(problems))
