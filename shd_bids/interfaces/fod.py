"""Fibre orientation distributions: the fit, and its maps as images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.errors import DeviceError, WeightsError
from shd_bids.fod.methods import describe_training
from shd_bids.interfaces.base import (
    RuntimeInputSpec,
    StageInputSpec,
    StageInterface,
    StageOutputSpec,
    log_progress,
    qc_column,
    save_maps,
)
from shd_bids.options import FodOptions, Runtime

if TYPE_CHECKING:
    import numpy as np

    from shd_bids.fod.fod import FOD
    from shd_bids.fod.weights import Weights
    from shd_bids.scan import Scan
    from shd_bids.training.adapt import AdaptationOptions, Adapted
    from shd_bids.training.config import NetworkRecipe

__all__ = ["FitFOD", "RestoreFOD", "adaptation_options", "chosen_recipe", "chosen_weights"]

logger = logging.getLogger(__name__)

_COMPUTING = 0.92  # share of the time; the rest writes the maps
_ADAPTING = 0.9  # share of that which an adaptation takes


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
        mask, and those above the degree of the image in ``fodrest.npy``.
    runtime : Runtime
    label : str
        Names the stage in progress lines.
    out_dir : Path
        Gets the maps, and while the fit runs a checkpoint from which an interrupted one goes on.
    """
    import numpy as np

    from shd_bids.images import load_volume
    from shd_bids.scan import read_scan
    from shd_bids.sphere.harmonics import n_coefficients

    weights = chosen_weights(options.weights)
    if weights is None and options.fit != "subject":
        raise WeightsError(f"--fit {options.fit} applies trained weights, but none were given; see --weights")
    scan = read_scan(dwi_file, mask_file, gradients_file, response_files)
    result, info = _fit(
        scan,
        weights,
        options,
        runtime,
        checkpoint=out_dir / "checkpoint.pt",
        progress=log_progress(label, until=_COMPUTING),
    )
    n_stored = min(n_coefficients(options.fod_lmax), result.wm.shape[1])
    wm = result.wm.astype("float32", copy=False)
    files = _save_arrays(out_dir, {"fod": wm, "fodrest": wm[:, n_stored:]})
    np.savez(out_dir / "precision.npz", errors=result.direction_errors, prominence=info["prominence"])
    _save_signal(out_dir / "signal.npz", result, scan)
    fitted = [response.tissue for response in scan.responses.tissues[1:]]
    maps = save_maps(_maps(result, n_stored, fitted=fitted), scan.mask, load_volume(mask_file), out_dir)
    facts = _facts(result, info, n_stored=n_stored, seed=runtime.seed)
    beside = {f"{name}_file": str(out_dir / f"{name}.npz") for name in ("precision", "signal")}
    return maps | files | beside | {"facts": facts}


def _save_arrays(out_dir: Path, arrays: Mapping[str, "np.ndarray"]) -> dict[str, str]:
    """Save arrays; return their files by the names of the outputs."""
    import numpy as np

    for name, values in arrays.items():
        np.save(out_dir / f"{name}.npy", values)
    return {f"{name}_file": str(out_dir / f"{name}.npy") for name in arrays}


def _save_signal(path: Path, result: "FOD", scan: "Scan") -> None:
    """Write measured and predicted signal of the volume of each shell that is explained worst, (volumes, n) float32."""
    import numpy as np

    from shd_bids.fod.quality import predicted_volumes, worst_volumes

    volumes = worst_volumes(result.quality, scan.gradients)
    np.savez(
        path,
        names=np.array([f"b = {scan.gradients.bvals[n]:.0f}, volume {n}" for n in volumes], dtype=str),
        measured=scan.voxels[:, volumes].T.astype(np.float32),
        predicted=predicted_volumes(result, scan, volumes).T.astype(np.float32),
    )


def restore_fod(*, wm_file: Path, fodrest_file: Path, mask_file: Path, out_dir: Path) -> dict[str, Any]:
    """Join the coefficients of an image and those above its degree to ``fod.npy`` of `fit_image`, bit by bit the same."""
    import nibabel as nib
    import numpy as np

    from shd_bids.images import gather, load_mask, load_volume

    mask = load_mask(mask_file, load_volume(mask_file))
    stored = gather(np.asarray(nib.load(wm_file).dataobj, dtype=np.float32), mask)
    np.save(out_dir / "fod.npy", np.concatenate([stored, np.load(fodrest_file)], axis=1))
    return {"fod_file": str(out_dir / "fod.npy"), "facts": {}}


def _fit(
    scan: "Scan",
    weights: "Weights | None",
    options: FodOptions,
    runtime: Runtime,
    *,
    checkpoint: Path,
    progress: Callable[[str, float], None],
) -> tuple["FOD", dict[str, Any]]:
    """Fit a scan, with weights that are first adapted to it if asked; return also facts."""
    from shd_bids.fod.fit import fit_fod
    from shd_bids.nn.backends.memory import keep_freed_memory
    from shd_bids.training.adapt import adapt

    keep_freed_memory()
    info: dict[str, Any] = {"fit": options.fit}
    done = _ADAPTING if options.fit == "subject" else 0.0
    if options.fit == "subject":
        adapted = _where_it_fits(
            partial(
                adapt,
                [scan],
                weights=weights,
                options=adaptation_options(options, runtime),
                checkpoint=checkpoint,
                progress=lambda what, share: progress(what, _ADAPTING * share),
                recipe=chosen_recipe(options),
            ),
            runtime.device,
        )
        weights = adapted.weights
        info = {"fit": "subject" if adapted.improved else "amortised", "adaptation": adapted.facts}
    refine = weights.is_refined if options.refinement == "auto" else options.refinement == "on"
    fod = fit_fod(
        scan,
        weights,
        runtime=runtime,
        refine=refine,
        progress=lambda what, share: progress(what, done + (1 - done) * share),
    )
    info |= {"is_supervised": weights.is_supervised, "is_refined": refine} | fod.facts.to_dict()
    return _normalised(fod, info, scan, options.normalise)


def _normalised(fod: "FOD", info: dict[str, Any], scan: "Scan", mode: str) -> tuple["FOD", dict[str, Any]]:
    """Normalise the intensities if asked."""
    from shd_bids.fod.normalisation import normalise_fod

    if mode == "off":
        return fod, info
    fod, found = normalise_fod(fod, scan, mode)
    if found is None:
        note = f"--normalise {mode}: not done, it needs two tissues and enough voxels; fibre density stays in its unit"
        return fod, info | {"warnings": [*info["warnings"], note]}
    return fod, info | {"normalisation": found.to_dict()}


def _maps(result: "FOD", n_stored: int, *, fitted: Sequence[str]) -> dict[str, "np.ndarray"]:
    """Return what is stored as images, by name: fODF, amounts of the fitted isotropic tissues, fractions, quality."""
    fractions = dict(zip(("vfwm", "vfgm", "vfcsf"), result.fractions.T, strict=True))
    quality = {"rsquared": result.quality.r_squared, "residualstd": result.quality.residual_std}
    quality["misfit"] = result.quality.misfit
    isotropic = {name: getattr(result, name)[:, None] for name in fitted}  # a fourth axis of one: SH of degree 0
    return {"wm": result.wm[:, :n_stored]} | fractions | quality | isotropic


def chosen_weights(name: str) -> "Weights | None":
    """Load the weights called ``packaged`` or lying at a path; None for ``none``."""
    from shd_bids.fod.weights import load_weights

    return None if name == "none" else load_weights(None if name == "packaged" else Path(name))


def chosen_recipe(options: FodOptions) -> "NetworkRecipe | None":
    """Read the recipe of a network that is trained from nothing; None where weights are given."""
    from shd_bids.training.config import load_network_recipe

    return load_network_recipe(options.network) if options.weights == "none" else None


def adaptation_options(options: FodOptions, runtime: Runtime) -> "AdaptationOptions":
    """Return what the options ask of an adaptation."""
    from shd_bids.training.adapt import AdaptationOptions

    return AdaptationOptions(
        options.lambda_tv, options.tv_penalty, options.max_steps, runtime.seed, precision=runtime.precision
    )


def _where_it_fits(adapt: Callable[..., "Adapted"], device: str) -> "Adapted":
    """Adapt on a device; where a GPU that was not asked for has too little memory, go on with the CPU."""
    import torch

    from shd_bids.nn.device import choose_device

    try:
        return adapt(device=choose_device(device))
    except torch.OutOfMemoryError as error:
        if device != "auto":
            raise DeviceError(
                f"{device} has too little memory to adapt the network; use --device auto or cpu, or --fit amortised"
            ) from error
    # Not in the handler: while it runs, the traceback holds the tensors of what failed.
    torch.cuda.empty_cache()
    logger.warning("the device has too little memory to adapt the network: going on with the CPU")
    return adapt(device=torch.device("cpu"))


def _facts(result: "FOD", info: dict[str, Any], *, n_stored: int, seed: int) -> dict[str, Any]:
    """Return what sidecars, report and table of quality tell of the fit."""
    from shd_bids.sphere.harmonics import l_max_of

    quality = result.quality
    return {
        "sidecar": {"model": _model_facts(info, seed=seed), "fod_lmax": l_max_of(n_stored)},
        "info": info,
        "notes": info["warnings"],
        "shell_residuals": {f"b = {bvalue:.0f}": value for bvalue, value in quality.shell_residuals.items()},
        "volume_residuals": quality.volume_residuals.tolist(),
        "qc": _qc(result) | _normalisation_qc(info),
    }


def _model_facts(info: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """Return ``Model.Parameters`` of the sidecars."""
    parameters = {
        "Method": info["method"],
        "Training": describe_training(is_supervised=info["is_supervised"], fit=info["fit"]),
        "Refinement": info["is_refined"],
        "Fit": info["fit"],
        "Weights": info["weights"],
        "WeightsSHA256": info["weights_sha256"] or "n/a",
        "FittedDegree": info["l_max"],
        "Device": info["device"],
        "Precision": info["precision"],
        "RandomSeed": seed,
    }
    if normalisation := info.get("normalisation"):
        parameters["Normalisation"] = normalisation
    if adapted := info.get("adaptation"):
        parameters |= {"TotalVariationWeight": adapted["tv_weight"], "TotalVariationPenalty": adapted["tv_penalty"]}
    return parameters


def _qc(result: "FOD") -> dict[str, Any]:
    """Return the columns on the quality of the fit."""
    import numpy as np

    quality, facts = result.quality, result.facts
    columns = {
        "fit_r2_median": qc_column(
            float(np.median(quality.r_squared)), "Median share of signal variance explained", "1"
        ),
        "fit_misfit_share": qc_column(
            float(np.mean(quality.misfit > quality.most_misfit)),
            f"Share of voxels whose residual is over {quality.most_misfit:g} times what noise and responses explain",
            "1",
        ),
        "snr": qc_column(facts.snr, "Signal-to-noise ratio of white matter at b = 0", "1"),
        "device": qc_column(facts.device, "Where the network ran"),
        "precision": qc_column(facts.precision, "Arithmetic of products"),
    }
    for bvalue, value in quality.shell_residuals.items():
        columns[f"fit_residual_std_b{bvalue:.0f}"] = qc_column(
            value, f"Median residual standard deviation at b = {bvalue:.0f} s/mm2, in units of the image"
        )
    if facts.peak_gpu_mb is not None:
        columns["peak_gpu_mb"] = qc_column(facts.peak_gpu_mb, "Largest memory used on the GPU", "MB")
    return columns


def _normalisation_qc(info: dict[str, Any]) -> dict[str, Any]:
    """Return the columns on the normalisation, none where there was none."""
    found = info.get("normalisation")
    if not found:
        return {}
    low, high = found["FieldRange"]
    return {
        "normalisation_factor": qc_column(
            found["Factor"], "What amplitudes were divided by on average, so that tissues add up to one", "1"
        ),
        "bias_field_ratio": qc_column(
            high / low, "Largest over least value of the bias field, without outer percents", "1"
        ),
    }


class _FitFODInputSpec(RuntimeInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="4-D image")
    mask_file = File(exists=True, mandatory=True, desc="mask on its grid")
    gradients_file = File(exists=True, mandatory=True, desc="table made by PrepareGradients")
    response_files = traits.List(File(exists=True), mandatory=True, desc="<tissue>.txt")


class _FitFODOutputSpec(StageOutputSpec):
    fod_file = File(exists=True, desc="all coefficients, (n, C) float32 in the order of the mask")
    fodrest_file = File(exists=True, desc="those that the image does not hold")
    precision_file = File(exists=True, desc="how precisely directions are known, by the dispersion of lobes")
    signal_file = File(exists=True, desc="measured and predicted signal of a few volumes, for the report")
    wm_file = File(exists=True)
    gm_file = File(exists=True)
    csf_file = File(exists=True)
    vfwm_file = File(exists=True)
    vfgm_file = File(exists=True)
    vfcsf_file = File(exists=True)
    rsquared_file = File(exists=True)
    residualstd_file = File(exists=True)
    misfit_file = File(exists=True)


class FitFOD(StageInterface):
    """fODFs of one series, with tissue and quality maps."""

    input_spec = _FitFODInputSpec
    output_spec = _FitFODOutputSpec
    function = staticmethod(fit_image)
    options_type = FodOptions
    wants = ("label",)
    _can_resume = True  # a killed fit keeps its folder, and goes on from the checkpoint there


class _RestoreFODInputSpec(StageInputSpec):
    wm_file = File(exists=True, mandatory=True, desc="image of the coefficients to its degree")
    fodrest_file = File(exists=True, mandatory=True, desc="those above it, in the order of the mask")
    mask_file = File(exists=True, mandatory=True)


class _RestoreFODOutputSpec(StageOutputSpec):
    fod_file = File(exists=True, desc="all coefficients, as FitFOD gives them")


class RestoreFOD(StageInterface):
    """All coefficients of a series that an earlier call fitted."""

    input_spec = _RestoreFODInputSpec
    output_spec = _RestoreFODOutputSpec
    function = staticmethod(restore_fod)
    is_reported = False
