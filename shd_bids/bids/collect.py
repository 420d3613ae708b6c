"""Every diffusion series with its gradients and mask.

Everything is asked before anything runs, and the problems of all series are reported together.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from shd_bids.bids.anatomy import Brain, tissue_files, with_anatomy
from shd_bids.bids.doubts import look_at
from shd_bids.bids.given import response_problems
from shd_bids.bids.masks import candidates, with_mask
from shd_bids.bids.parcellations import Parcellation, with_parcellations
from shd_bids.bids.recall import recalled
from shd_bids.bids.sessions import (
    Dataset,
    all_entities,
    ambiguities,
    images_by_session,
    nothing_found,
    open_datasets,
    read_filters,
    require_labels,
    source_entities,
)
from shd_bids.errors import InputError, NoInputError
from shd_bids.files import read_json_object, read_text
from shd_bids.gradients.files import read_fsl, read_mrtrix
from shd_bids.gradients.table import MIN_DIRECTIONS, GradientTable
from shd_bids.images import (
    Volume,
    check_signal,
    count_volumes,
    load_volume,
    read_mask,
    signal_problem,
)
from shd_bids.settings import Settings
from shd_bids.tractography.anatomy import TissueImages

logger = logging.getLogger(__name__)


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


def collect_runs(settings: Settings) -> tuple[DWIRun, ...]:
    """Return every diffusion series that matches the settings, as `collect_study`; one that is unusable is an error."""
    runs, unusable = collect_study(settings)
    if unusable:
        raise InputError(problem for item in unusable for problem in item.problems)
    return runs


def collect_study(settings: Settings) -> tuple[tuple[DWIRun, ...], tuple[Unusable, ...]]:
    """Return every diffusion series that matches the settings, each with usable gradients and mask, and those without.

    Preprocessed series (``desc-preproc`` in a ``--derivatives`` data set) replace the raw ones of their session.
    Every image is read once, so that damage is found before hours of work.

    Raises
    ------
    NoInputError
        A label does not exist, or nothing matched.
    InputError
        No series is usable, for files that are missing, ambiguous, damaged, or contradict each other; all problems of all
        series are named. Or the responses given do not fit.
    """
    filters = read_filters(settings.bids_filter_file)
    datasets = open_datasets(settings)
    require_labels(settings, datasets)
    runs: list[DWIRun] = []
    unusable: list[Unusable] = []
    skipped: list[str] = []
    for images in images_by_session(settings, datasets, filters["dwi"]).values():
        found, troubles, too_few = _session_runs(settings, datasets, filters, images)
        runs += found
        unusable += troubles
        skipped += too_few
    problems = [problem for item in unusable for problem in item.problems]
    if unfit := response_problems(settings, runs):
        raise InputError(problems + unfit)
    if not runs and (problems or skipped):
        raise InputError(problems or skipped)
    if not runs:
        raise NoInputError(nothing_found(settings, datasets))
    for text in skipped:
        logger.warning("%s; skipped", text)
    return tuple(runs), tuple(unusable)


def _session_runs(
    settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any], images: list[tuple[Dataset, Path]]
) -> tuple[list[DWIRun], list[Unusable], list[str]]:
    """Return the series of one session, those that are unusable, and why images with too few volumes are none."""
    if unclear := list(ambiguities(images)):
        return [], [Unusable.of(images[0][1], unclear)], []
    runs, unusable, skipped = [], [], []
    for dataset, path in images:
        try:
            found = _run_of(settings, datasets, filters, dataset, path)
            if isinstance(found, str):
                skipped.append(f"{path.name}: {found}")
            else:
                runs.append(found)
        except InputError as error:
            stem = path.name.partition(".")[0]
            problems = [text if stem in text else f"{path.name}: {text}" for text in error.problems]
            unusable.append(Unusable.of(path, problems))
    return runs, unusable, skipped


def _run_of(
    settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any], dataset: Dataset, path: Path
) -> DWIRun | str:
    """Return the series of an image, or why it is none."""
    if reason := _no_series(path):
        return reason
    run = _find_files(settings, dataset, path)
    masks = candidates(run, settings, datasets, filters["mask"]) + tissue_files(run, settings, datasets, filters)
    if not settings.overwrite and (known := recalled(run, settings, masks)):
        return known
    reason = _hardly_weighted(run, settings.b0_threshold)
    return reason or _checked(replace(run, masks=masks), settings, datasets, filters)


def _no_series(dwi: Path) -> str:
    """Return why an image without tables of its own can be no series, such as a b=0 beside one; nothing where it can."""
    own = [dwi.with_name(dwi.name.partition(".")[0] + ending).exists() for ending in (".b", ".bval", ".bvec")]
    if own[0] or all(own[1:]) or (n_volumes := count_volumes(dwi)) > MIN_DIRECTIONS:
        return ""
    return f"{n_volumes} volume{'s' if n_volumes > 1 else ''} without tables, at least {MIN_DIRECTIONS + 1} are needed"


def _hardly_weighted(run: DWIRun, b0_threshold: float) -> str:
    """Return why the table of an image makes it no series, nothing where it does or where it cannot be told."""
    n_weighted = _n_weighted(run, b0_threshold)
    if n_weighted is None or n_weighted >= MIN_DIRECTIONS:
        return ""
    return f"{n_weighted} diffusion-weighted volumes, at least {MIN_DIRECTIONS} are needed"


def _find_files(settings: Settings, dataset: Dataset, dwi: Path) -> DWIRun:
    """Return the series with its gradients and metadata."""
    entities = source_entities(dwi)
    world_table = _world_table(dwi)
    reads_world_table = settings.input_type in ("auto", "qsiprep")
    grad_b = world_table if reads_world_table and world_table.is_file() else None
    bval, bvec = _inherited(dataset, dwi, ".bval"), _inherited(dataset, dwi, ".bvec")
    is_qsiprep = settings.input_type == "qsiprep" or (settings.input_type == "auto" and "qsiprep" in dataset.pipelines)
    if is_qsiprep and grad_b is None:
        raise InputError(
            f"{dwi.name}: no {world_table.name} beside it, and the .bvec of QSIPrep is not in FSL axes; restore the .b "
            "file, or use --input-type bids if another program wrote this .bvec"
        )
    if grad_b is None:
        missing = [extension for extension, path in ((".bval", bval), (".bvec", bvec)) if path is None]
        if missing:
            raise InputError(
                f"{dwi.name}: no {' and no '.join(missing)} file applies to it, neither beside it nor inherited from "
                "a folder above; add it"
            )
    sidecar: dict[str, Any] = {}
    for path in reversed(dataset.inherited(dwi, ".json")):
        sidecar |= read_json_object(path)
    space = all_entities(dwi).get("space", "orig")
    notes = []
    if not dataset.is_derivative and settings.input_type == "auto":
        notes.append("raw data: motion and distortion are not corrected (--input-type raw hides this)")
    return DWIRun(
        subject=entities["sub"],
        session=entities.get("ses"),
        entities=entities,
        space=space,
        dwi=dwi,
        bval=bval,
        bvec=bvec,
        grad_b=grad_b,
        mask=None,
        mask_origin="estimated",
        sidecar=sidecar,
        source_uri=dataset.uri(dwi),
        spatial_reference="orig" if space == "orig" else str(sidecar.get("SpatialReference") or dataset.uri(dwi)),
        links={dataset.name: dataset.root},
        notes=tuple(notes),
    )


def _world_table(dwi: Path) -> Path:
    """Return where QSIPrep keeps the table in world axes of an image."""
    return dwi.with_name(dwi.name.partition(".")[0] + ".b")


def _inherited(dataset: Dataset, dwi: Path, extension: str) -> Path | None:
    return next(iter(dataset.inherited(dwi, extension)), None)


def _n_weighted(run: DWIRun, b0_threshold: float) -> int | None:
    """Return the number of diffusion-weighted volumes, ``None`` where the table is damaged or of another image."""
    try:
        if run.grad_b is not None:
            bvals = np.loadtxt(read_text(run.grad_b).splitlines(), ndmin=2)[:, 3]
        else:
            bvals = np.array(read_text(run.bval).replace(",", " ").split(), dtype=float)
        n_volumes = count_volumes(run.dwi)
    except (ValueError, IndexError, OSError, InputError):
        return None
    return int((bvals > b0_threshold).sum()) if len(bvals) == n_volumes else None


def _checked(run: DWIRun, settings: Settings, datasets: Sequence[Dataset], filters: Mapping[str, Any]) -> DWIRun:
    """Return the series with mask and tissues after reading every image once; raise with every problem found."""
    volume = load_volume(run.dwi, n_dims=(4,))
    problems: list[str] = []
    table, mask = None, None
    if reason := signal_problem(volume):
        problems.append(f"{run.dwi}: {reason}")
    try:
        table = _read_gradients(run, settings, volume)
        shells = tuple((shell.bvalue, len(shell.indices)) for shell in table.shells)
        sizes = tuple(round(float(size), 4) for size in volume.voxel_size)
        run = replace(run, shape=volume.shape, voxel_size=sizes, shells=shells)
    except InputError as error:
        problems += error.problems
    try:
        run = with_mask(run, volume, settings, datasets, filters["mask"])
        if run.mask is not None:
            mask, cut = read_mask(run.mask, volume)
            run = replace(run, n_mask=int(mask.sum()), notes=(*run.notes, *cut))
            if not problems:
                check_signal(volume, mask)
    except InputError as error:
        problems += error.problems
    try:
        run = with_parcellations(run, volume, settings, datasets)
    except InputError as error:
        problems += error.problems
    if not problems:
        try:
            run = with_anatomy(run, Brain(volume, table, mask), settings, datasets, filters)
        except InputError as error:
            problems += error.problems
    if problems or table is None:
        raise InputError(problems)
    run = replace(run, notes=(*volume.notes, *run.notes))
    if not settings.dry_run:
        return run  # the first stage tells the rest
    n_voxels, doubts = look_at(volume, table, mask, gradient_check=settings.gradient_check)
    return replace(run, n_mask=n_voxels, notes=(*run.notes, *doubts))


def _read_gradients(run: DWIRun, settings: Settings, volume: Volume) -> GradientTable:
    options = {"b0_threshold": settings.b0_threshold, "shell_tolerance": settings.shell_tolerance}
    if run.grad_b is not None:
        return read_mrtrix(run.grad_b, volume.shape[3], **options)
    return read_fsl(run.bval, run.bvec, volume.affine, volume.shape[3], **options)
