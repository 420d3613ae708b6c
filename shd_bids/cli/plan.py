"""What a call would do and what it takes, told before it starts."""

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from shd_bids.bids.names import expected_outputs, promised
from shd_bids.bids.run import DWIRun
from shd_bids.bids.stages import StagePlan
from shd_bids.options import LEVELS
from shd_bids.settings import Settings
from shd_bids.workflows.resources import memory_of_the_fit

GB = 1e9
MOST_NAMES = 5  # of series, behind a note
WM_SHARE = 0.35  # of the brain, is seeded
ACCEPTED = 0.7  # share of the seeds that give a streamline
USUAL_LENGTH = 65.0  # mm, of a streamline
FITTED_COEFFICIENTS = 190  # even degrees to 18
COMPRESSED = 0.9  # what gzip leaves of float32 maps

# Seconds of one processor, measured on whole brains; a call records its true times and memory.
START_SECONDS = 14.0  # interpreters, figures, report
STAGE_SECONDS = {
    "gradients": 0.6,
    "response": 2.0,
    "fod": 5.0,
    "peaks": 2.0,
    "tractography": 3.0,
    "weights": 2.0,
    "connectome": 2.0,
}
GRADIENTS_PER_VALUE = 1e-7  # of the image
RESPONSE_PER_VALUE = 1.2e-6  # in the mask
FOD_PER_VOXEL = 6.5e-4
PEAKS_PER_VOXEL = 1.8e-4
TRACKING_PER_VOXEL = 1e-5
TRACKING_PER_POINT = {"det": 5e-6, "prob": 1.2e-5}
WEIGHTS_PER_POINT = 1e-6
CONNECTOME_PER_STREAMLINE = 5e-6  # of a parcellation
STEP_SHARE = 0.5  # of a voxel, where --step-size is auto
ADAPTATION_STEPS = {True: 60, False: 400}  # at most: from given weights, from none
SECONDS_PER_STEP = 4.0
PATCH_EPOCHS, PATCH_BATCH, MOST_PATCH_STEPS = 50, 16, 45_000  # of the published network
SECONDS_PER_PATCH_STEP = 0.8
FOD_PER_PATCH = 1.6e-2  # a voxel each
THREADS_GAIN = 0.9  # exponent: two processors take 0.54 of the time of one
SECONDS_ON_GPU = 0.1  # share of the CPU's time that the network takes on a GPU

BASE_GB = 0.7  # interpreter, torch, tables
PROGRAM_GB = 0.55  # the program itself and two workers, beside the process of a stage
PEAKS_GB = 0.45  # interpreter and torch
TRACKING_GB = 0.25  # batches of streamlines, beside the peaks that the thresholds need
STREAMLINE_BYTES = 60  # lengths, ends, weights
VISIT_BYTES = 6  # a point's share of the file of streamlines and lobes
SEARCH_GB = 0.9  # a thread that searches for peaks; a third of it where fODFs are smooth
SEARCH_VOXELS = 2048  # that a thread takes at once
NETWORK_GB_PER_AREA = 7e-4  # voxels of a cross-section: their number to the power 2/3; tiles fit into less
POINT_BYTES = 12


def make_plan(
    runs: Sequence[DWIRun],
    settings: Settings,
    *,
    device: str,
    plans: Mapping[str, StagePlan],
    done: Container[str] = (),
) -> dict[str, Any]:
    """Return what would be done, in words and numbers that JSON can hold.

    Parameters
    ----------
    runs : sequence of DWIRun
        Everything that matched.
    settings : Settings
        The call.
    device : str
        Where networks will run: ``cpu`` or ``cuda:0``, with its name.
    plans : mapping
        Which stages of a series are computed, by its key.
    done : container
        Keys of the series that earlier calls finished, so that this one skips them.
    """
    series = [_plan_run(run, settings, device=device, plan=plans[run.key], is_done=run.key in done) for run in runs]
    waiting = [item for item in series if not item["done"]]
    at_once = max(1, min(len(waiting), settings.nprocs // settings.omp_nthreads))
    return {
        "bids_dir": str(settings.bids_dir),
        "output_dir": str(settings.output_dir),
        "work_dir": str(settings.work_dir),
        "level": settings.level,
        "fit": settings.fit,
        "weights": settings.weights,
        "network": settings.network,
        "refinement": settings.refinement,
        "device": device,
        "nprocs": settings.nprocs,
        "memory_limit_gb": settings.mem,
        "series": series,
        "expected": {
            "minutes": round(sum(item["expected"]["minutes"] for item in waiting) / at_once, 1),
            "memory_gb": round(sum(sorted(item["expected"]["memory_gb"] for item in waiting)[-at_once:]), 1),
            "disk_gb": round(sum(item["expected"]["disk_gb"] for item in waiting), 2),
        },
    }


def format_plan(plan: dict[str, Any]) -> str:
    """Return the plan as text for people."""
    lines = [
        f"Input   {plan['bids_dir']}",
        f"Output  {plan['output_dir']}   (work: {plan['work_dir']})",
        f"Level   {plan['level']}, fit {plan['fit']}, device {plan['device']}, {plan['nprocs']} processors, "
        f"{plan['memory_limit_gb']:g} GB",
    ]
    lines += [_line(item) for item in plan["series"]]
    total = plan["expected"]
    return "\n".join([*lines, *_notes(plan["series"]), f"In all: {_cost(total)} (estimates)"])


def _line(item: Mapping[str, Any]) -> str:
    """Return one series with what becomes of each stage and what that takes."""
    image = f"{' x '.join(map(str, item['shape']))}, {' x '.join(f'{size:g}' for size in item['voxel_size'])} mm"
    shells = ", ".join(f"b={shell['b']:.0f}: {shell['volumes']}" for shell in item["shells"])
    if item["done"]:
        return f"{item['series']}: {image}; {shells}; done by an earlier call, skipped"
    by_state = {
        state: [stage for stage, own in item["stages"].items() if own == state] for state in ("reused", "computed")
    }
    stages = ", ".join(f"{state}: {' '.join(names)}" for state, names in by_state.items() if names)
    mask = "given" if item["mask"] else "estimated"
    regions = "".join(f"{one['label']} ({one['regions']} regions of {one['image']}); " for one in item["parcellations"])
    tissues = f"tissues {item['tissues']}; " if item["tissues"] else ""
    return f"{item['series']}: {image}; {shells}; mask {mask}; {tissues}{regions}{stages}; {_cost(item['expected'])}"


def _notes(series: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every note once, with the series that it is about."""
    about: dict[str, list[str]] = {}
    for item in series:
        for note in item["notes"]:
            about.setdefault(note, []).append(item["series"])
    return [
        f"Note    {note} ({', '.join(names[:MOST_NAMES])}{f' and {len(names) - MOST_NAMES} more' if names[MOST_NAMES:] else ''})"
        for note, names in about.items()
    ]


def _plan_run(run: DWIRun, settings: Settings, *, device: str, plan: StagePlan, is_done: bool) -> dict[str, Any]:
    outputs = expected_outputs(Path(), run, **promised(settings))
    gradients = (run.grad_b,) if run.grad_b else (run.bval, run.bvec)
    on_gpu = device.startswith("cuda")
    seconds = _stage_seconds(run, settings, on_gpu=on_gpu)
    seconds = {stage: 0.0 if stage in plan.kept else value for stage, value in seconds.items()}
    return {
        "series": run.prefix,
        "done": is_done,
        "stages": {stage: "reused" if stage in plan.kept or is_done else "computed" for stage in plan.digests},
        "dwi": run.source_uri,
        "shape": list(run.shape),
        "voxel_size": list(run.voxel_size),
        "gradients": [str(path) for path in gradients],
        "shells": [{"b": round(b, 1), "volumes": n} for b, n in run.shells],
        "mask": run.mask_uri or (str(run.mask) if run.mask else None),
        "voxels": _n_voxels(run),
        "parcellations": [
            {"label": one.label, "image": one.uri, "regions": one.n_regions} for one in run.parcellations
        ],
        "tissues": _tissues(run, settings),
        "notes": list(run.notes),
        "expected": {
            "minutes": round((START_SECONDS + sum(seconds.values())) / 60, 1),
            "stage_minutes": {stage: round(value / 60, 1) for stage, value in seconds.items()},
            "memory_gb": round(_memory_gb(run, settings, on_gpu=on_gpu), 1),
            "disk_gb": round(_disk_gb(run, settings), 2),
        },
        "outputs": [path.as_posix() for path in outputs],
    }


def _tissues(run: DWIRun, settings: Settings) -> str | None:
    """Return what ends streamlines, ``None`` where nothing does."""
    if settings.level != "full" or settings.act == "off":
        return None
    return f"{', '.join(run.anatomy_uris)} ({run.anatomy.kind})" if run.anatomy else "of this run"


def _cost(expected: Mapping[str, float]) -> str:
    return f"{expected['minutes']:g} min, {expected['memory_gb']:g} GB memory, {expected['disk_gb']:g} GB disk"


def _n_voxels(run: DWIRun) -> int:
    return run.n_mask or math.prod(run.shape[:3])


def _stage_seconds(run: DWIRun, settings: Settings, *, on_gpu: bool) -> dict[str, float]:
    """Return how long each stage of one series takes."""
    n_voxels, n_volumes = _n_voxels(run), run.shape[3]
    threads = settings.omp_nthreads**THREADS_GAIN
    fod = _fod_seconds(settings, n_voxels)
    tracking = (
        TRACKING_PER_VOXEL * n_voxels
        + _n_seeds(run, settings) * _points(run, settings) * (TRACKING_PER_POINT[settings.tracking_algorithm])
    )
    seconds = {
        "gradients": GRADIENTS_PER_VALUE * math.prod(run.shape),
        "response": 0.0 if run.responses else RESPONSE_PER_VALUE * n_voxels * n_volumes,
        "fod": fod * (SECONDS_ON_GPU if on_gpu else 1 / threads),
        "peaks": PEAKS_PER_VOXEL * n_voxels * (SECONDS_ON_GPU if on_gpu else 1 / threads),
        "tractography": tracking / threads,
    }
    stages = list(seconds)[: 2 + LEVELS.index(settings.level)]
    return {stage: STAGE_SECONDS[stage] + seconds[stage] for stage in stages} | _streamline_seconds(run, settings)


def _streamline_seconds(run: DWIRun, settings: Settings) -> dict[str, float]:
    """Return how long what is made of the streamlines takes."""
    if settings.level != "full":
        return {}
    n, seconds = ACCEPTED * _n_seeds(run, settings), dict[str, float]()
    if settings.streamline_weights == "on":
        seconds["weights"] = STAGE_SECONDS["weights"] + WEIGHTS_PER_POINT * n * _points(run, settings)
    if run.parcellations:
        connected = CONNECTOME_PER_STREAMLINE * n * len(run.parcellations)
        seconds["connectome"] = STAGE_SECONDS["connectome"] + connected
    return seconds


def _fod_seconds(settings: Settings, n_voxels: int) -> float:
    """Return how long a fit takes; a network that is not the conditioned one is taken for the published."""
    is_patch = settings.network != "conditioned"
    applied = (FOD_PER_PATCH if is_patch else FOD_PER_VOXEL) * n_voxels
    if settings.fit != "subject":
        return applied
    steps = ADAPTATION_STEPS[settings.weights != "none"]
    if is_patch:
        steps = min(PATCH_EPOCHS * math.ceil(n_voxels / PATCH_BATCH), MOST_PATCH_STEPS)
    chosen = steps if settings.max_steps is None else settings.max_steps
    return applied + chosen * (SECONDS_PER_PATCH_STEP if is_patch else SECONDS_PER_STEP)


def _n_seeds(run: DWIRun, settings: Settings) -> float:
    """Return how many seeds are tracked; enough streamlines end it early."""
    every = settings.seeds * WM_SHARE * _n_voxels(run)
    return min(every, settings.select / ACCEPTED) if settings.select else every


def _points(run: DWIRun, settings: Settings) -> float:
    """Return the points of a usual streamline."""
    step = settings.step_size or min(run.voxel_size) * STEP_SHARE
    return USUAL_LENGTH / step


def _memory_gb(run: DWIRun, settings: Settings, *, on_gpu: bool) -> float:
    """Return the memory of the program with the largest stage."""
    if settings.level == "response":
        return PROGRAM_GB + BASE_GB + 8 * math.prod(run.shape) / GB
    network, beside = memory_of_the_fit(run, settings, use_gpu=on_gpu)
    needed = [beside + min(network, NETWORK_GB_PER_AREA * _n_voxels(run) ** (2 / 3))]
    if settings.level != "fod":
        search = SEARCH_GB * min(settings.omp_nthreads, _n_voxels(run) / SEARCH_VOXELS)
        needed.append(PEAKS_GB + search + (_tracking_gb(run, settings) if settings.level == "full" else 0.0))
    return PROGRAM_GB + max(needed)


def _tracking_gb(run: DWIRun, settings: Settings) -> float:
    """Return the memory of a batch of streamlines and of what is known of each."""
    return TRACKING_GB + ACCEPTED * _n_seeds(run, settings) * STREAMLINE_BYTES / GB


def _disk_gb(run: DWIRun, settings: Settings) -> float:
    """Return the size of the results, and of what is kept beside them until a series is done.

    On one file system results and work folder share their files.
    """
    n_voxels = _n_voxels(run)
    n_stored = (settings.fod_lmax + 1) * (settings.fod_lmax + 2) // 2
    results = 4 * COMPRESSED * n_voxels * (n_stored + 4 * settings.peak_max + 15)
    results += 4 * n_voxels * (FITTED_COEFFICIENTS - n_stored)  # kept for later calls
    work = 4 * n_voxels * FITTED_COEFFICIENTS
    if settings.level == "full":
        points = ACCEPTED * _n_seeds(run, settings) * _points(run, settings)
        results += points * POINT_BYTES * (1 + len(settings.tractogram_format))  # one for later calls
        work += int(points * VISIT_BYTES) if settings.streamline_weights == "on" else 0
    copies = 1 if _shares_disk(settings.output_dir, settings.work_dir) else 2
    return (copies * results + work) / GB


def _shares_disk(*folders: Path) -> bool:
    """Say whether folders, which need not exist yet, are on one file system."""
    existing = (next(path for path in (folder, *folder.parents) if path.exists()) for folder in folders)
    return len({path.stat().st_dev for path in existing}) == 1
