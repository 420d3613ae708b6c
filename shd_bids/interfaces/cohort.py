"""Weights adapted to a cohort: many series in, one file of weights out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec, log_progress, read_json
from shd_bids.interfaces.fod import chosen_weights, read_responses

if TYPE_CHECKING:
    from shd_bids.training.adapt import Scan

__all__ = ["AdaptToCohort"]

CROPS = 8
"""Crops taken of each series: 8 of 12^3 voxels and 100 volumes hold 5 MB."""


def adapt_to_images(
    *,
    names: list[str],
    dwi_files: list[Path],
    mask_files: list[Path],
    gradients_files: list[Path],
    wm_responses: list[Path],
    weights: str,
    device: str,
    lambda_tv: float,
    tv_penalty: str,
    max_steps: int | None,
    seed: int,
    label: str,
    out_dir: Path,
) -> dict[str, Any]:
    """Adapt the weights to all series together and write them.

    Parameters
    ----------
    names : list of str
        Of the series, for the record.
    dwi_files, mask_files, gradients_files, wm_responses : list of Path
        One of each for every series; the responses of GM and CSF lie beside that of WM.
    weights : str
        To start from: ``packaged``, ``none`` or a path.
    device : str
    lambda_tv, tv_penalty, max_steps, seed
        As in `shd_bids.training.adapt.AdaptationOptions`.
    label : str
        Names the stage in progress lines.
    out_dir : Path
        Gets ``weights.safetensors``, and while the fit runs a checkpoint from which an interrupted one goes on.
    """
    from shd_bids.fod.fit import choose_device
    from shd_bids.fod.inputs.estimates import CHANNELS
    from shd_bids.fod.weights import save_weights
    from shd_bids.nn.backends.memory import keep_freed_memory
    from shd_bids.training.adapt import AdaptationOptions, adapt

    start = chosen_weights(weights)
    keep_freed_memory()
    files = zip(dwi_files, mask_files, gradients_files, wm_responses, strict=True)
    scans = [_read(*own).thinned(CROPS, seed=seed + number) for number, own in enumerate(files)]
    adapted = adapt(
        scans,
        weights=start,
        device=choose_device(device),
        options=AdaptationOptions(lambda_tv, tv_penalty, max_steps, seed),
        checkpoint=out_dir / "checkpoint.pt",
        progress=log_progress(label),
    )
    facts = adapted.facts | {
        "series": names,
        "start": start.name if start else "none",
        "start_sha256": start.sha256 if start else None,
    }
    told = {name: facts[name] for name in ("series", "start", "start_sha256", "steps", "kept")}
    path = save_weights(
        out_dir / "weights.safetensors",
        adapted.network,
        l_max=adapted.l_max,
        training=(start.training if start else {}) | {"cohort": told},
        channels=start.channels if start else CHANNELS,
    )
    return {"weights_file": str(path), "facts": facts}


def _read(dwi_file: Path, mask_file: Path, gradients_file: Path, wm_response: Path) -> "Scan":
    """Read one series."""
    import numpy as np

    from shd_bids.gradients.noise import estimate_noise
    from shd_bids.gradients.table import GradientTable
    from shd_bids.images import load_mask, load_volume
    from shd_bids.training.adapt import Scan

    table = GradientTable.from_dict(read_json(gradients_file))
    reference = load_volume(mask_file)
    mask = load_mask(mask_file, reference)
    voxels = np.ascontiguousarray(table.take(load_volume(dwi_file).data)[mask], dtype=np.float32)
    files = {tissue: wm_response.with_name(f"{tissue}.txt") for tissue in ("wm", "gm", "csf")}
    responses = read_responses({tissue: path if path.exists() else None for tissue, path in files.items()}, table)
    return Scan(voxels, mask, reference.affine, table, responses, estimate_noise(voxels, table))


class _AdaptToCohortInputSpec(StageInputSpec):
    names = traits.List(traits.Str, mandatory=True, desc="of the series")
    dwi_files = traits.List(File(exists=True), mandatory=True, desc="4-D images")
    mask_files = traits.List(File(exists=True), mandatory=True, desc="masks on their grids")
    gradients_files = traits.List(File(exists=True), mandatory=True, desc="tables made by PrepareGradients")
    wm_responses = traits.List(File(exists=True), mandatory=True, desc="those of other tissues lie beside them")
    weights = traits.Str(mandatory=True, desc="packaged, none, or a path")
    device = traits.Str(mandatory=True, desc="auto, cpu, cuda, cuda:N")
    lambda_tv = traits.Float(mandatory=True)
    tv_penalty = traits.Enum("squared", "absolute", mandatory=True)
    max_steps = traits.Int(desc="chosen by the number of series where absent")
    seed = traits.Int(mandatory=True)


class _AdaptToCohortOutputSpec(StageOutputSpec):
    weights_file = File(exists=True)


class AdaptToCohort(StageInterface):
    """Weights for ``--fit cohort``."""

    input_spec = _AdaptToCohortInputSpec
    output_spec = _AdaptToCohortOutputSpec
    function = staticmethod(adapt_to_images)
    wants = ("label",)
    _can_resume = True  # a killed adaptation keeps its folder, and goes on from the checkpoint there
