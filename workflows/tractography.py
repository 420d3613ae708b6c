"""Streamlines of one series."""

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.interfaces.base import options_input, runtime_inputs
from shd_bids.interfaces.tractography import TrackStreamlines
from shd_bids.options import Runtime, TrackingOptions
from shd_bids.workflows.resources import Resources

__all__ = ["init_tractography_wf"]


def init_tractography_wf(
    *, options: TrackingOptions, runtime: Runtime, resources: Resources, name: str = "tractography_wf"
) -> pe.Workflow:
    """Track streamlines through the fODFs.

    Workflow Graph
        inputnode -> tractography -> outputnode

    Parameters
    ----------
    options : TrackingOptions
    runtime : Runtime
        Its seed is used.
    resources : Resources

    Inputs
    ------
    fod_file, mask_file, vfwm_file, vfgm_file, vfcsf_file, peaks_file, peakafd_file

    Outputs
    -------
    tractogram_files, weights_file, tdi_file, preview_file, facts_file
    """
    workflow = pe.Workflow(name=name)
    inputs = ["fod_file", "mask_file", "vfwm_file", "vfgm_file", "vfcsf_file", "peaks_file", "peakafd_file"]
    outputs = ["tractogram_files", "weights_file", "tdi_file", "preview_file", "facts_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    interface = TrackStreamlines(**options_input(options), **runtime_inputs(runtime))
    tractography = pe.Node(interface, name="tractography", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    workflow.connect([
        (inputnode, tractography, [(field, field) for field in inputs]),
        (tractography, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
