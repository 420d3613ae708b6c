"""Response functions of one series."""

from collections.abc import Sequence
from pathlib import Path

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.interfaces.response import EstimateResponses, ReadResponses
from shd_bids.workflows.resources import Resources

__all__ = ["init_response_wf"]

OUTPUTS = ["wm_file", "gm_file", "csf_file", "response_files", "facts_file"]


def init_response_wf(*, responses: Sequence[Path], resources: Resources, name: str = "response_wf") -> pe.Workflow:
    """Estimate the responses from the image, or take the given ones.

    Workflow Graph
        inputnode -> response -> outputnode

    Parameters
    ----------
    responses : sequence of Path
        Files of WM, GM, CSF; empty to estimate.
    resources : Resources

    Inputs
    ------
    dwi_file, mask_file, gradients_file

    Outputs
    -------
    wm_file, gm_file, csf_file
        Responses; GM and CSF may be absent.
    response_files
        List of them.
    voxels_file
        Voxels they were measured in; absent when they were given.
    facts_file
    """
    workflow = pe.Workflow(name=name)
    fields = ["gradients_file"] if responses else ["dwi_file", "mask_file", "gradients_file"]
    outputs = OUTPUTS if responses else [*OUTPUTS, "voxels_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    if responses:
        interface = ReadResponses(response_files=[str(path.absolute()) for path in responses])
    else:
        interface = EstimateResponses()
    response = pe.Node(interface, name="response", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    workflow.connect([
        (inputnode, response, [(field, field) for field in fields]),
        (response, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
