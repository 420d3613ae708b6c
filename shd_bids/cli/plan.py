"""What a call would do and what it takes, told before it starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shd_bids.bids.collect import DWIRun
from shd_bids.bids.names import expected_outputs
from shd_bids.settings import Settings

GB = 1e9
BRAIN_SHARE = 0.3  # of the field of view, where no mask is given
FITTED_COEFFICIENTS = 190  # even degrees to 18

# Orders of magnitude from whole brains on two CPU cores; a call records its true times and memory.
SECONDS_PER_VOXEL = {"response": 1e-4, "fod": 5e-3, "peaks": 2e-4, "full": 2e-3}
SECONDS_ON_GPU = 0.1  # share of the CPU's time that the network takes on a GPU
SUBJECT_SECONDS = 600.0  # a fit to one image stops by itself after this long, or after --max-steps
SECONDS_PER_STEP = 1.0
BASE_GB = 1.2  # interpreter, torch, tables
NETWORK_GB_PER_VOXEL = 4.5e-4  # of a tile; tiles shrink until they fit into --mem
STREAMLINE_BYTES = 60 * 12  # points of a usual streamline at half a voxel, three float32 each


def make_plan(
    runs: Sequence[DWIRun], settings: Settings, *, device: str, is_done: Mapping[str, bool]
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
    is_done : mapping
        Key of a series -> whether an earlier call finished it, so that this one skips it.
    """
    series = [_plan_run(run, settings, device=device, is_done=is_done[run.key]) for run in runs]
    waiting = [item for item in series if not item["done"]]
    return {
        "bids_dir": str(settings.bids_dir),
        "output_dir": str(settings.output_dir),
        "work_dir": str(settings.work_dir),
        "level": settings.level,
        "fit": settings.fit,
        "device": device,
        "nprocs": settings.nprocs,
        "memory_limit_gb": settings.mem,
        "series": series,
        "expected": {
            "memory_gb": max((item["expected"]["memory_gb"] for item in waiting), default=0),
            "minutes": round(sum(item["expected"]["minutes"] for item in waiting), 1),
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
    for item in plan["series"]:
        expected = item["expected"]
        lines += [
            "",
            f"{item['series']}" + ("   (done by an earlier call, skipped)" if item["done"] else ""),
            f"  image   {item['dwi']}  {' x '.join(map(str, item['shape']))}",
            f"  table   {', '.join(item['gradients'])}  shells "
            + ", ".join(f"b={shell['b']:.0f}: {shell['volumes']}" for shell in item["shells"]),
            f"  mask    {item['mask'] or 'estimated from the b=0 image'}  ({item['voxels']} voxels)",
            *(f"  note    {note}" for note in item["notes"]),
            f"  expect  {_cost(expected)}",
            "  writes",
            *(f"    {name}" for name in item["outputs"]),
        ]
    total = plan["expected"]
    lines += [
        "",
        f"In all: {_cost(total)} (estimates)",
    ]
    return "\n".join(lines)


def _plan_run(run: DWIRun, settings: Settings, *, device: str, is_done: bool) -> dict[str, Any]:
    outputs = expected_outputs(
        Path(), run, level=settings.level, method=settings.tracking_algorithm, formats=settings.tractogram_format
    )
    gradients = (run.grad_b,) if run.grad_b else (run.bval, run.bvec)
    return {
        "series": run.prefix,
        "done": is_done,
        "dwi": run.source_uri,
        "shape": list(run.shape),
        "gradients": [str(path) for path in gradients],
        "shells": [{"b": round(b, 1), "volumes": n} for b, n in run.shells],
        "mask": run.mask_uri or (str(run.mask) if run.mask else None),
        "voxels": _n_voxels(run),
        "notes": list(run.notes),
        "expected": _expected(run, settings, on_gpu=device.startswith("cuda")),
        "outputs": [path.as_posix() for path in outputs],
    }


def _cost(expected: Mapping[str, float]) -> str:
    return f"{expected['minutes']:g} min, {expected['memory_gb']:g} GB memory, {expected['disk_gb']:g} GB disk"


def _n_voxels(run: DWIRun) -> int:
    x, y, z, _ = run.shape
    return run.n_mask or round(BRAIN_SHARE * x * y * z)


def _expected(run: DWIRun, settings: Settings, *, on_gpu: bool) -> dict[str, float]:
    """Return minutes, GB of memory and GB of disk that one series takes, roughly."""
    n_voxels, n_volumes = _n_voxels(run), run.shape[3]
    n_grid = run.shape[0] * run.shape[1] * run.shape[2]
    stages = list(SECONDS_PER_VOXEL)[: list(SECONDS_PER_VOXEL).index(settings.level) + 1]
    seconds = {stage: SECONDS_PER_VOXEL[stage] * n_voxels for stage in stages}
    if "fod" in seconds:
        if settings.fit == "subject":
            steps = settings.max_steps
            seconds["fod"] += SUBJECT_SECONDS if steps is None else steps * SECONDS_PER_STEP
        seconds["fod"] *= SECONDS_ON_GPU if on_gpu else 1.0
    signal, fitted = 4 * n_grid * n_volumes, 4 * n_voxels * FITTED_COEFFICIENTS
    memory = BASE_GB + (2 * signal + 3 * fitted) / GB
    if "fod" in seconds:
        memory = max(memory, min(settings.mem, memory + NETWORK_GB_PER_VOXEL * n_voxels))
    n_stored = (settings.fod_lmax + 1) * (settings.fod_lmax + 2) // 2
    streamlines = (
        (settings.select or settings.seeds * n_voxels // 3) * STREAMLINE_BYTES * len(settings.tractogram_format)
    )
    stored = 4 * n_voxels * (n_stored + 4 * settings.peak_max + 15)
    work = 2 * stored + fitted + streamlines
    return {
        "minutes": round(sum(seconds.values()) / 60 + 0.5, 1),
        "memory_gb": round(memory, 1),
        "disk_gb": round((stored + streamlines + work) / GB, 2),
    }
