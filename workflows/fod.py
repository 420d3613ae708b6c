"""Fibre orientation distributions of one series, and their peaks."""

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.interfaces.fod import FitFOD
from shd_bids.interfaces.peaks import FindPeaks

__all__ = ["FOD_MAPS", "PEAK_MAPS", "init_fod_wf", "init_peaks_wf"]

FOD_MAPS = ("wm", "gm", "csf", "vfwm", "vfgm", "vfcsf", "rsquared", "residualstd")
PEAK_MAPS = ("peaks", "peakamp", "nufo", "afdtotal", "afdmax", "afdsum", "dec")


def init_fod_wf(
    *,
    fit: str,
    weights: str,
    device: str,
    precision: str,
    lambda_tv: float,
    tv_penalty: str,
    max_steps: int | None,
    fod_lmax: int,
    seed: int,
    network_gb: float,
    use_gpu: bool,
    n_procs: int,
    mem_gb: float,
    name: str = "fod_wf",
) -> pe.Workflow:
    """Fit the fODFs.

    Workflow Graph
        inputnode -> fod -> outputnode

    Parameters
    ----------
    fit, weights, device, precision, lambda_tv, tv_penalty, max_steps, fod_lmax, seed
        As in `shd_bids.interfaces.fod.fit_image`.
    network_gb : float
        Memory of the network alone.
    use_gpu : bool
        Whether the scheduler runs one such node at a time.
    n_procs, mem_gb : int, float
        What the stage may use.

    Inputs
    ------
    dwi_file, mask_file, gradients_file
    wm_response, gm_response, csf_response

    Outputs
    -------
    fod_file
        All coefficients, (n, C) in the order of the mask.
    wm_file, gm_file, csf_file, vfwm_file, vfgm_file, vfcsf_file, rsquared_file, residualstd_file
        Maps; GM and CSF amplitudes may be absent.
    facts_file
    """
    workflow = pe.Workflow(name=name)
    tissues = ("wm", "gm", "csf")
    images = ["dwi_file", "mask_file", "gradients_file"]
    outputs = ["fod_file", *(f"{key}_file" for key in FOD_MAPS), "facts_file"]
    inputnode = pe.Node(
        niu.IdentityInterface(fields=[*images, *(f"{tissue}_response" for tissue in tissues)]), name="inputnode"
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    interface = FitFOD(
        fit=fit,
        weights=weights,
        device=device,
        precision=precision,
        lambda_tv=lambda_tv,
        tv_penalty=tv_penalty,
        memory_gb=network_gb,
        fod_lmax=fod_lmax,
        seed=seed,
        use_gpu=use_gpu,
    )
    if max_steps is not None:
        interface.inputs.max_steps = max_steps
    fod = pe.Node(interface, name="fod", n_procs=n_procs, mem_gb=mem_gb)
    workflow.connect([
        (inputnode, fod, [(field, field) for field in images]),
        (inputnode, fod, [(f"{tissue}_response", f"{tissue}_response") for tissue in tissues]),
        (fod, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow


def init_peaks_wf(
    *,
    max_peaks: int,
    relative_threshold: float,
    absolute_threshold: float | None,
    min_separation: float,
    device: str,
    use_gpu: bool,
    n_procs: int,
    mem_gb: float,
    name: str = "peaks_wf",
) -> pe.Workflow:
    """Find the fibre directions.

    Workflow Graph
        inputnode -> peaks -> outputnode

    Parameters
    ----------
    max_peaks, relative_threshold, absolute_threshold, min_separation, device
        As in `shd_bids.interfaces.peaks.find_image_peaks`.
    use_gpu : bool
        Whether the scheduler runs one such node at a time.
    n_procs, mem_gb : int, float
        What the stage may use.

    Inputs
    ------
    fod_file, mask_file, vfwm_file, vfcsf_file

    Outputs
    -------
    peaks_file, peakamp_file, nufo_file, afdtotal_file, afdmax_file, afdsum_file, dec_file, facts_file
    """
    workflow = pe.Workflow(name=name)
    inputs = ["fod_file", "mask_file", "vfwm_file", "vfcsf_file"]
    outputs = [*(f"{key}_file" for key in PEAK_MAPS), "facts_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    interface = FindPeaks(
        max_peaks=max_peaks,
        relative_threshold=relative_threshold,
        min_separation=min_separation,
        device=device,
        use_gpu=use_gpu,
    )
    if absolute_threshold is not None:
        interface.inputs.absolute_threshold = absolute_threshold
    peaks = pe.Node(interface, name="peaks", n_procs=n_procs, mem_gb=mem_gb)
    workflow.connect([
        (inputnode, peaks, [(field, field) for field in inputs]),
        (peaks, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
