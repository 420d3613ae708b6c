"""Fibre orientation distributions of one series, and their peaks."""

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.interfaces.base import options_input, runtime_inputs
from shd_bids.interfaces.fod import FitFOD
from shd_bids.interfaces.peaks import FindPeaks
from shd_bids.options import FodOptions, PeakOptions, Runtime
from shd_bids.workflows.resources import Resources

__all__ = ["FOD_MAPS", "PEAK_MAPS", "init_fod_wf", "init_peaks_wf"]

FOD_MAPS = ("wm", "gm", "csf", "vfwm", "vfgm", "vfcsf", "rsquared", "residualstd", "misfit")
PEAK_MAPS = (
    "peaks", "peakamp", "peakafd", "peakdispersion", "peakinterval", "nufo", "afdtotal", "afdmax", "afdsum", "dec",
)  # fmt: skip


def init_fod_wf(*, options: FodOptions, runtime: Runtime, resources: Resources, name: str = "fod_wf") -> pe.Workflow:
    """Fit the fODFs.

    Workflow Graph
        inputnode -> fod -> outputnode

    Parameters
    ----------
    options : FodOptions
    runtime : Runtime
        Its memory is that of the network alone.
    resources : Resources

    Inputs
    ------
    dwi_file, mask_file, gradients_file, response_files

    Outputs
    -------
    fod_file
        All coefficients, (n, C) in the order of the mask.
    fodrest_file
        Those above the degree of the image.
    precision_file
        How precisely directions are known, see `shd_bids.fod.precision`.
    signal_file
        Measured and predicted signal of a few volumes, for the report.
    wm_file, gm_file, csf_file, vfwm_file, vfgm_file, vfcsf_file, rsquared_file, residualstd_file, misfit_file
        Maps; GM and CSF amplitudes may be absent.
    facts_file
    """
    workflow = pe.Workflow(name=name)
    inputs = ["dwi_file", "mask_file", "gradients_file", "response_files"]
    kept = ["fod_file", "fodrest_file", "precision_file", "signal_file"]
    outputs = [*kept, *(f"{key}_file" for key in FOD_MAPS), "facts_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    interface = FitFOD(**options_input(options), **runtime_inputs(runtime), use_gpu=resources.use_gpu)
    fod = pe.Node(interface, name="fod", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    workflow.connect([
        (inputnode, fod, [(field, field) for field in inputs]),
        (fod, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow


def init_peaks_wf(
    *, options: PeakOptions, runtime: Runtime, resources: Resources, name: str = "peaks_wf"
) -> pe.Workflow:
    """Find the fibre directions.

    Workflow Graph
        inputnode -> peaks -> outputnode

    Parameters
    ----------
    options : PeakOptions
    runtime : Runtime
        Its device is used.
    resources : Resources

    Inputs
    ------
    fod_file, precision_file, mask_file, vfwm_file, vfcsf_file

    Outputs
    -------
    peaks_file, peakamp_file, peakafd_file, peakdispersion_file, peakinterval_file, nufo_file, afdtotal_file, afdmax_file,
    afdsum_file, dec_file, facts_file
    """
    workflow = pe.Workflow(name=name)
    inputs = ["fod_file", "precision_file", "mask_file", "vfwm_file", "vfcsf_file"]
    outputs = [*(f"{key}_file" for key in PEAK_MAPS), "facts_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    interface = FindPeaks(**options_input(options), **runtime_inputs(runtime), use_gpu=resources.use_gpu)
    peaks = pe.Node(interface, name="peaks", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    workflow.connect([
        (inputnode, peaks, [(field, field) for field in inputs]),
        (peaks, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
