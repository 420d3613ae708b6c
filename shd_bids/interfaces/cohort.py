"""Weights adapted to a cohort: many series in, one file of weights out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import RuntimeInputSpec, StageInterface, StageOutputSpec, log_progress
from shd_bids.interfaces.fod import adaptation_options, chosen_recipe, chosen_weights
from shd_bids.interfaces.isolation import LogSetup, die_with_parent
from shd_bids.options import FodOptions, Runtime
from shd_bids.response import TISSUES

if TYPE_CHECKING:
    import torch

    from shd_bids.scan import Scan
    from shd_bids.training.adapt import Adapted

__all__ = ["AdaptToCohort"]

CROPS = 8
"""Crops taken of each series: 8 of 12^3 voxels and 100 volumes hold 5 MB."""


@dataclass(frozen=True)
class CohortFiles:
    """What a cohort is adapted to.

    Attributes
    ----------
    dwi_files : mapping
        Name of each series -> its image.
    mask_files, gradients_files, wm_responses : list of Path
        One of each for every series, in the same order; the responses of GM and CSF lie beside that of WM.
    """

    dwi_files: Mapping[str, str]
    mask_files: list[Path]
    gradients_files: list[Path]
    wm_responses: list[Path]


def adapt_to_images(
    *, files: CohortFiles, options: FodOptions, runtime: Runtime, n_processes: int, label: str, out_dir: Path
) -> dict[str, Any]:
    """Adapt the weights to all series together and write them.

    Parameters
    ----------
    files : CohortFiles
    options : FodOptions
        Its weights are those to start from; without any its network is trained from nothing.
    runtime : Runtime
        Its device and seed are used.
    n_processes : int
        That train together, on CUDA with a GPU each.
    label : str
        Names the stage in progress lines.
    out_dir : Path
        Gets ``weights.safetensors``, and while the fit runs a checkpoint from which an interrupted one goes on.
    """
    from shd_bids.fod.weights import save_weights
    from shd_bids.nn.distributed import run_together

    call = {"files": files, "options": options, "runtime": runtime, "label": label}
    call |= {"checkpoint": out_dir / "checkpoint.pt", "log_setup": LogSetup.of_this_process()}
    adapted = run_together(_adapt, call, n_processes=n_processes, device=runtime.device)
    start = chosen_weights(options.weights)
    facts = adapted.facts | {
        "series": list(files.dwi_files),
        "start": start.name if start else "none",
        "start_sha256": start.sha256 if start else None,
        "processes": n_processes,
    }
    told = {name: facts[name] for name in ("series", "start", "start_sha256", "steps", "kept")}
    found = replace(adapted.weights, training=adapted.weights.training | {"cohort": told})
    path = save_weights(out_dir / "weights.safetensors", found)
    return {"weights_file": str(path), "facts": facts}


def _adapt(
    *,
    files: CohortFiles,
    options: FodOptions,
    runtime: Runtime,
    label: str,
    checkpoint: Path,
    log_setup: LogSetup,
    device: "torch.device",
) -> "Adapted":
    """Adapt the weights, in this process or as one of a group, whose first tells the progress."""
    from shd_bids.nn import distributed
    from shd_bids.nn.backends.memory import keep_freed_memory
    from shd_bids.training.adapt import adapt

    if distributed.n_processes() > 1:
        die_with_parent()
        log_setup.apply()
    keep_freed_memory()
    paths = zip(
        map(Path, files.dwi_files.values()), files.mask_files, files.gradients_files, files.wm_responses, strict=True
    )
    return adapt(
        [_crops(*of_scan, seed=runtime.seed + number) for number, of_scan in enumerate(paths)],
        weights=chosen_weights(options.weights),
        device=device,
        options=adaptation_options(options, runtime),
        checkpoint=checkpoint,
        progress=log_progress(label) if distributed.rank() == 0 else lambda what, share: None,
        recipe=chosen_recipe(options),
    )


def _crops(dwi_file: Path, mask_file: Path, gradients_file: Path, wm_response: Path, *, seed: int) -> "Scan":
    """Read a few crops of one series, so that many series fit into memory."""
    from shd_bids.scan import read_scan
    from shd_bids.training.measured import CROP

    scan = read_scan(dwi_file, mask_file, gradients_file, _responses_beside(wm_response))
    return scan.thinned(CROPS, side=CROP, seed=seed)


def _responses_beside(wm_response: Path) -> list[Path]:
    """Return the responses of the tissues that lie beside that of white matter."""
    files = [wm_response.with_name(f"{tissue}.txt") for tissue in TISSUES]
    return [path for path in files if path.exists()]


class _AdaptToCohortInputSpec(RuntimeInputSpec):
    dwi_files = traits.Dict(mandatory=True, desc="name of each series -> its 4-D image")
    mask_files = traits.List(File(exists=True), mandatory=True, desc="masks on their grids")
    gradients_files = traits.List(File(exists=True), mandatory=True, desc="tables made by PrepareGradients")
    wm_responses = traits.List(File(exists=True), mandatory=True, desc="those of other tissues lie beside them")
    n_processes = traits.Int(1, usedefault=True, desc="that train together")


class _AdaptToCohortOutputSpec(StageOutputSpec):
    weights_file = File(exists=True)


class AdaptToCohort(StageInterface):
    """Weights for ``--fit cohort``."""

    input_spec = _AdaptToCohortInputSpec
    output_spec = _AdaptToCohortOutputSpec
    function = staticmethod(adapt_to_images)
    options_type = FodOptions
    files_type = CohortFiles
    wants = ("label",)
    _can_resume = True  # a killed adaptation keeps its folder, and goes on from the checkpoint there
