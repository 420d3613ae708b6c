"""Fibre orientation distributions: the fit, and its maps as images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import (
    RuntimeInputSpec,
    StageInterface,
    StageOutputSpec,
    log_progress,
    qc_column,
    read_json,
)
from shd_bids.options import FodOptions, Runtime

if TYPE_CHECKING:
    import numpy as np

    from shd_bids.fod.fit import FodResult
    from shd_bids.fod.weights import Weights
    from shd_bids.gradients.table import GradientTable
    from shd_bids.response.response import Responses
    from shd_bids.training.adapt import AdaptationOptions

__all__ = ["FitFOD", "adaptation_options", "chosen_weights", "read_responses"]

logger = logging.getLogger(__name__)


def fit_image(
    *,
    dwi_file: Path,
    mask_file: Path,
    gradients_file: Path,
    response_files: Sequence[Path],
    options: FodOptions,
    runtime: Runtime,
    label: str,
    out_dir: Path,
) -> dict[str, Any]:
    """Fit the fODF of every voxel of a mask and write it with the tissue and quality maps.

    Parameters
    ----------
    dwi_file, mask_file, gradients_file : Path
        4-D image, its mask and the table made by `prepare_gradients`.
    response_files : sequence of Path
        ``<tissue>.txt`` in MRtrix3's text form; a tissue without one is not fitted.
    options : FodOptions
        The image is stored to its degree; all coefficients are kept in ``fod.npy``, (n, C) float32 in the order of the
        mask.
    runtime : Runtime
    label : str
        Names the stage in progress lines.
    out_dir : Path
        Gets the maps, and while the fit runs a checkpoint from which an interrupted one goes on.
    """
    import numpy as np

    from shd_bids.fod.fit import fit_fod
    from shd_bids.gradients.table import GradientTable
    from shd_bids.images import load_mask, load_volume, save_volume, scatter
    from shd_bids.nn.backends.memory import keep_freed_memory
    from shd_bids.sphere.harmonics import l_max_of, n_coefficients

    table = GradientTable.from_dict(read_json(gradients_file))
    reference = load_volume(mask_file)
    mask = load_mask(mask_file, reference)
    responses = read_responses(response_files, table)
    keep_freed_memory()
    result = fit_fod(
        table.take(load_volume(dwi_file).data),  # no name holds it here, so that the fit may let it go
        mask,
        table,
        responses,
        affine=reference.affine,
        fit=options.fit,
        weights=chosen_weights(options.weights),
        device=runtime.device,
        precision=runtime.precision,
        adaptation=adaptation_options(options, seed=runtime.seed),
        memory_gb=runtime.memory_gb,
        checkpoint=out_dir / "checkpoint.pt",
        progress=log_progress(label),
    )
    n_stored = min(n_coefficients(options.fod_lmax), result.wm.shape[1])
    np.save(out_dir / "fod.npy", result.wm.astype(np.float32, copy=False))
    outputs: dict[str, Any] = {"fod_file": str(out_dir / "fod.npy")}
    fitted = [response.tissue for response in responses.tissues if response.tissue != "wm"]
    for name, values in _maps(result, n_stored, fitted=fitted).items():
        path = out_dir / f"{name}.nii.gz"
        save_volume(path, scatter(values, mask), reference.affine, reference_header=reference.header)
        outputs[f"{name}_file"] = str(path)
    for warning in result.info["warnings"]:
        logger.warning("%s: %s", label, warning)
    model = _model_facts(result.info, options, seed=runtime.seed)
    outputs["facts"] = {
        "sidecar": {"model": model, "fod_lmax": l_max_of(n_stored)},
        "info": result.info,
        "notes": result.info["warnings"],
        "shell_residuals": {f"b = {bvalue:.0f}": value for bvalue, value in result.shell_residuals.items()},
        "volume_residuals": result.volume_residuals.tolist(),
        "qc": _qc(result),
    }
    return outputs


def _maps(result: "FodResult", n_stored: int, *, fitted: Sequence[str]) -> dict[str, "np.ndarray"]:
    """Return what is stored as images, by name: fODF, amounts of the fitted isotropic tissues, fractions, quality."""
    fractions = dict(zip(("vfwm", "vfgm", "vfcsf"), result.fractions.T, strict=True))
    quality = {"rsquared": result.r_squared, "residualstd": result.residual_std}
    isotropic = {name: getattr(result, name)[:, None] for name in fitted}  # a fourth axis of one: SH of degree 0
    return {"wm": result.wm[:, :n_stored]} | fractions | quality | isotropic


def chosen_weights(name: str) -> "Weights | None":
    """Load the weights called ``packaged`` or lying at a path; None for ``none``."""
    from shd_bids.fod.weights import load_weights

    return None if name == "none" else load_weights(None if name == "packaged" else Path(name))


def read_responses(files: Sequence[Path], table: "GradientTable") -> "Responses":
    """Read the responses of a series from ``<tissue>.txt``; a tissue without a file is not fitted."""
    from shd_bids.response.mrtrix import parse_response
    from shd_bids.response.response import Responses

    return Responses(
        **{"gm": None, "csf": None}
        | {path.stem: parse_response(path.read_text("utf-8"), path.stem, table.shell_bvalues) for path in files}
    )


def adaptation_options(options: FodOptions, *, seed: int) -> "AdaptationOptions":
    """Return what the options ask of an adaptation."""
    from shd_bids.training.adapt import AdaptationOptions

    return AdaptationOptions(options.lambda_tv, options.tv_penalty, options.max_steps, seed)


def _model_facts(info: dict[str, Any], options: FodOptions, *, seed: int) -> dict[str, Any]:
    """Return ``Model.Parameters`` of the sidecars."""
    parameters = {
        "Fit": info["fit"],
        "Weights": info["weights"],
        "WeightsSHA256": info["weights_sha256"] or "n/a",
        "FittedDegree": info["l_max"],
        "Device": info["device"],
        "RandomSeed": seed,
    }
    adapted = {"TotalVariationWeight": options.lambda_tv, "TotalVariationPenalty": options.tv_penalty}
    return parameters | (adapted if "adaptation" in info else {})


def _qc(result: "FodResult") -> dict[str, Any]:
    """Return the columns on the quality of the fit."""
    import numpy as np

    columns = {
        "fit_r2_median": qc_column(
            float(np.median(result.r_squared)), "Median share of signal variance explained", "1"
        ),
        "snr": qc_column(result.info["snr"], "Signal-to-noise ratio of white matter at b = 0", "1"),
        "device": qc_column(result.info["device"], "Where the network ran"),
    }
    for bvalue, value in result.shell_residuals.items():
        columns[f"fit_residual_std_b{bvalue:.0f}"] = qc_column(
            value, f"Median residual standard deviation at b = {bvalue:.0f} s/mm2, in units of the image"
        )
    if "peak_gpu_mb" in result.info:
        columns["peak_gpu_mb"] = qc_column(result.info["peak_gpu_mb"], "Largest memory used on the GPU", "MB")
    return columns


class _FitFODInputSpec(RuntimeInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="4-D image")
    mask_file = File(exists=True, mandatory=True, desc="mask on its grid")
    gradients_file = File(exists=True, mandatory=True, desc="table made by PrepareGradients")
    response_files = traits.List(File(exists=True), mandatory=True, desc="<tissue>.txt")


class _FitFODOutputSpec(StageOutputSpec):
    fod_file = File(exists=True, desc="all coefficients, (n, C) float32 in the order of the mask")
    wm_file = File(exists=True)
    gm_file = File(exists=True)
    csf_file = File(exists=True)
    vfwm_file = File(exists=True)
    vfgm_file = File(exists=True)
    vfcsf_file = File(exists=True)
    rsquared_file = File(exists=True)
    residualstd_file = File(exists=True)


class FitFOD(StageInterface):
    """fODFs of one series, with tissue and quality maps."""

    input_spec = _FitFODInputSpec
    output_spec = _FitFODOutputSpec
    function = staticmethod(fit_image)
    options_type = FodOptions
    wants = ("label",)
    _can_resume = True  # a killed fit keeps its folder, and goes on from the checkpoint there
