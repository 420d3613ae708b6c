"""Stages that an earlier call left in the data set, in place of those that would compute them again."""

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.bids.stages import Kept
from shd_bids.interfaces.fod import RestoreFOD

__all__ = ["init_kept_fod_wf", "init_kept_wf", "kept_node"]


def kept_node(kept: Kept, name: str) -> pe.Node:
    """Return a node whose outputs are the files of a stage and its ``facts_file``."""
    outputs = {**kept.outputs, "facts_file": str(kept.facts_file)}
    node = pe.Node(niu.IdentityInterface(fields=sorted(outputs)), name=name)
    node.inputs.trait_set(**outputs)
    return node


def init_kept_wf(kept: Kept, *, name: str) -> pe.Workflow:
    """Stand for the workflow of a stage.

    Workflow Graph
        outputnode

    Outputs
    -------
    Those of the stage that lie in the data set, and its ``facts_file``.
    """
    workflow = pe.Workflow(name=name)
    workflow.add_nodes([kept_node(kept, "outputnode")])
    return workflow


def init_kept_fod_wf(kept: Kept, *, name: str) -> pe.Workflow:
    """Stand for the fit where later stages need all coefficients.

    Workflow Graph
        inputnode, kept -> restored -> outputnode

    Inputs
    ------
    mask_file

    Outputs
    -------
    Those of the stage that lie in the data set, ``fod_file`` and ``facts_file``.
    """
    workflow = pe.Workflow(name=name)
    source = kept_node(kept, "kept")
    inputnode = pe.Node(niu.IdentityInterface(fields=["mask_file"]), name="inputnode")
    restored = pe.Node(RestoreFOD(), name="restored")
    fields = [*kept.outputs, "facts_file"]
    outputnode = pe.Node(niu.IdentityInterface(fields=[*fields, "fod_file"]), name="outputnode")
    workflow.connect([
        (inputnode, restored, [("mask_file", "mask_file")]),
        (source, restored, [(field, field) for field in ("wm_file", "fodrest_file")]),
        (restored, outputnode, [("fod_file", "fod_file")]),
        (source, outputnode, [(field, field) for field in fields]),
    ])  # fmt: skip
    return workflow
