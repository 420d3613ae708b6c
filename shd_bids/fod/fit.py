"""From a scan to its fODFs: the input of the network, the network, the refinement by the data, and how well it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from shd_bids.fod.fod import FOD, FitFacts
from shd_bids.fod.inputs.inputs import make_inputs
from shd_bids.fod.network import apply_network
from shd_bids.fod.precision import direction_precision, saddle_prominence
from shd_bids.fod.quality import domain_warnings, fit_warnings, measure_quality
from shd_bids.fod.refinement.refine import refine_fod
from shd_bids.fod.refinement.scale import match_b0
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.nn.device import describe_device
from shd_bids.options import Runtime
from shd_bids.scan import Scan
from shd_bids.threads import on_one_blas_thread

_BY_DEFAULT = Runtime()
_NETWORK_SHARE, _REFINEMENT_SHARE = 0.68, 0.29  # of the time; the rest measures the quality
_FITTED = _NETWORK_SHARE + _REFINEMENT_SHARE


@on_one_blas_thread
def fit_fod(
    scan: Scan,
    weights: Weights | None = None,
    *,
    runtime: Runtime = _BY_DEFAULT,
    refine: bool | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> FOD:
    """Estimate the fODF of every voxel of a scan.

    Parameters
    ----------
    scan : Scan
    weights : Weights, optional
        As trained, or adapted to the scan or to its cohort; None takes those of the package.
    runtime : Runtime
    refine : bool, optional
        Whether the data refine the answer of the network; otherwise its signal at b=0 is matched, as published. None
        leaves it to the weights.
    progress : callable, optional
        Called with ``"fod"`` and the share done, from the first input of the network to the last refined voxel.

    Raises
    ------
    DeviceError
        When CUDA, or an arithmetic, is asked for and absent.
    WeightsError
        When the weights are of another protocol.
    """
    weights = load_weights() if weights is None else weights
    refine = weights.is_refined if refine is None else refine
    shown = scan if weights.input_volumes is None else scan.select(weights.input_volumes.choose(scan.gradients))
    inputs = make_inputs(shown, weights.inputs, nside=weights.config.nside)
    network_share = _NETWORK_SHARE if refine else _FITTED
    fod, compute = apply_network(
        weights, inputs, shown, runtime=runtime, progress=_part_of(progress, 0.0, network_share)
    )
    if refine:
        fod, n_updates = refine_fod(
            fod,
            scan,
            weights.refinement,
            rounds=compute.rounds_decomposition,
            progress=_part_of(progress, network_share, _FITTED),
        )
    else:
        fod, n_updates = match_b0(fod, scan), 0
    explained = float(np.hypot(scan.sigma, weights.refinement.model_error * scan.scale))
    quality = measure_quality(fod, scan, error=explained, most_misfit=weights.domain.most_misfit)
    warnings = domain_warnings(scan.gradients, weights.domain, snr=scan.snr) if weights.is_general else []
    warnings += fit_warnings(quality)
    facts = FitFacts(
        method=weights.method,
        weights=weights.name,
        weights_sha256=weights.sha256,
        device=describe_device(compute.device),
        precision=compute.precision,
        l_max=fod.l_max,
        noise_sigma=scan.sigma,
        snr=scan.snr,
        correction_updates=n_updates,
        prominence=saddle_prominence(scan.gradients, weights.precision),
        warnings=tuple(warnings),
        peak_gpu_mb=_peak_gpu_mb(compute.device),
    )
    errors = direction_precision(scan, weights.precision)
    return replace(fod, quality=quality, facts=facts, direction_errors=errors)


def _peak_gpu_mb(device: torch.device) -> int | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None


def _part_of(
    progress: Callable[[str, float], None] | None, first: float, last: float
) -> Callable[[float], None] | None:
    """Return what reports the share of a step as its part of the whole."""
    return (lambda share: progress("fod", first + (last - first) * share)) if progress else None
