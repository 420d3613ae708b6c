"""Every diffusion series with its gradients and mask.

Everything is asked before anything runs, and the problems of all series are reported together.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shd_bids.bids.anatomy import Brain, tissue_files, with_anatomy
from shd_bids.bids.doubts import look_at
from shd_bids.bids.given import response_problems
from shd_bids.bids.masks import candidates, with_mask
from shd_bids.bids.parcellations import with_parcellations
from shd_bids.bids.recall import recalled
from shd_bids.bids.run import DWIRun, Unusable
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

logger = logging.getLogger(__name__)


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
    unclear = list(ambiguities(images))
    runs, unusable, skipped = [], [Unusable.of(paths[0], [problem]) for paths, problem in unclear], []
    of_several = {path for paths, _ in unclear for path in paths}
    for dataset, path in ((dataset, path) for dataset, path in images if path not in of_several):
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
