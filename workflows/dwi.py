"""One diffusion series, from its files to its derivatives."""

from collections.abc import Mapping, Sequence
from typing import Any

import nipype.pipeline.engine as pe

from shd_bids.bids.run import DWIRun
from shd_bids.bids.stages import StagePlan
from shd_bids.interfaces.base import options_input
from shd_bids.interfaces.gradients import PrepareGradients, RequireOrientation
from shd_bids.settings import Settings
from shd_bids.workflows.kept import init_kept_fod_wf, init_kept_wf, kept_node
from shd_bids.workflows.outputs import init_connectome_derivatives_wf, init_derivatives_wf, init_qc_wf
from shd_bids.workflows.report import init_gradient_figures_wf
from shd_bids.workflows.resources import image_gb
from shd_bids.workflows.stages import BUILDERS, Fields

__all__ = ["init_dwi_wf", "init_response_only_wf"]

Facts = list[tuple[pe.Node | pe.Workflow, str]]
"""Where the facts of each stage come from, in the order of the stages: node or workflow, and output."""


def init_dwi_wf(*, run: DWIRun, settings: Settings, plan: StagePlan, name: str) -> pe.Workflow:
    """Build the graph of one series, as far as ``--level`` asks.

    Workflow Graph
        gradients -> gradient_figures_wf -> orientation -> response_wf -> fod_wf -> peaks_wf
                                                                          fod_wf -> tractography_wf
        tractography_wf, peaks_wf -> weights_wf -> conversion_wf, connectome_wf
        and from every stage to its sink and its figures, so that what is done is kept when a later stage fails;
        a series with wrong directions stops after the figure that shows them; a stage that an earlier call left is
        there with its files alone

    Parameters
    ----------
    run : DWIRun
        Files of the series.
    settings : Settings
        Options of the call.
    plan : StagePlan
        Which stages are computed.
    name : str
        Of the workflow.
    """
    workflow = pe.Workflow(name=name)
    facts: Facts = []
    for stage in plan.digests:
        if stage == "gradients":
            facts.append(_add_mask(workflow, run=run, settings=settings, plan=plan))
        elif stage in plan.kept:
            facts.append(_add_kept(workflow, stage, plan))
        else:
            facts.append(_add_stage(workflow, stage, run=run, settings=settings, plan=plan, facts=facts))
    qc_wf = init_qc_wf(run=run, output_dir=settings.output_dir, n_facts=len(facts))
    _connect_facts(workflow, facts, qc_wf)
    return workflow


def init_response_only_wf(*, run: DWIRun, settings: Settings, name: str) -> pe.Workflow:
    """Build the graph of one series that keeps nothing in the data set but the figures of its gradients.

    Workflow Graph
        gradients -> gradient_figures_wf -> orientation -> response_wf

    Parameters are those of `init_dwi_wf`; everything is computed.
    """
    workflow = pe.Workflow(name=name)
    _add_gradients(workflow, run=run, settings=settings)
    stage = BUILDERS["response"](run, settings)
    _connect(workflow, stage.reads, stage.workflow)
    return workflow


def _add_mask(workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan) -> tuple[pe.Node, str]:
    """Add gradients and mask, with the sink of what passes the gate; return where the facts of the stage come from."""
    if kept := plan.kept.get("gradients"):
        workflow.add_nodes([kept_node(kept, "gradients"), kept_node(kept, "orientation")])
        return workflow.get_node("gradients"), "facts_file"
    _add_gradients(workflow, run=run, settings=settings)
    saved = {"gradients": [("mask_file", "mask"), ("b0_file", "b0"), ("facts_file", "facts_1")]}
    saved |= {"orientation": [("gradients_file", "gradients")]}
    keys = ("mask", "gradients", "b0")
    _connect(workflow, saved, _sink("gradients", keys, run=run, settings=settings, plan=plan, n_facts=1))
    return workflow.get_node("gradients"), "facts_file"


def _add_gradients(workflow: pe.Workflow, *, run: DWIRun, settings: Settings) -> None:
    """Add the gradients, their figures, and the gate that wrong directions do not pass."""
    gradients = pe.Node(_gradients(run, settings), name="gradients", mem_gb=0.5 + 3 * image_gb(run))
    gradient_figures_wf = init_gradient_figures_wf(run=run, output_dir=settings.output_dir)
    orientation = pe.Node(RequireOrientation(), name="orientation")
    workflow.connect([
        (gradients, orientation, [(field, field) for field in ("gradients_file", "facts_file")]),
        (gradient_figures_wf, orientation, [("outputnode.shown_files", "shown_files")]),
    ])  # fmt: skip
    drawn = ("gradients_file", "facts_file", "b0_file", "mask_file", "orientation_file")
    _connect(workflow, {"gradients": drawn}, gradient_figures_wf)


def _add_stage(
    workflow: pe.Workflow, name: str, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: Facts
) -> tuple[pe.Workflow, str]:
    """Add a stage with its figures and its sink; return where the facts of the stage come from."""
    stage = BUILDERS[name](run, settings)
    produced = (stage.workflow, "outputnode.facts_file")
    all_facts = [*facts, produced]
    _connect(workflow, stage.reads, stage.workflow)
    if stage.figures is not None:
        _connect(workflow, stage.drawn, stage.figures)
    keys = [key for _, key in stage.saved]
    n_facts = len(all_facts)
    sink_wf = _sink(name, keys, run=run, settings=settings, plan=plan, n_facts=n_facts, method=stage.method)
    _connect(workflow, {stage.workflow.name: stage.saved}, sink_wf)
    _connect_facts(workflow, all_facts, sink_wf)
    return produced


def _add_kept(workflow: pe.Workflow, name: str, plan: StagePlan) -> tuple[pe.Workflow, str]:
    """Add what an earlier call left of a stage; return where its facts are."""
    if name == "fod" and {"peaks", "tractography"} & set(plan.computed):
        kept_wf = init_kept_fod_wf(plan.kept[name], name="fod_wf")
        _connect(workflow, {"gradients": ("mask_file",)}, kept_wf)
    else:
        kept_wf = init_kept_wf(plan.kept[name], name=f"{name}_wf")
        workflow.add_nodes([kept_wf])
    return kept_wf, "outputnode.facts_file"


def _gradients(run: DWIRun, settings: Settings) -> PrepareGradients:
    """Return the first stage with the files of the series."""
    files = {
        "dwi_file": run.dwi,
        "bval_file": run.bval,
        "bvec_file": run.bvec,
        "b_file": run.grad_b,
        "mask_file": run.mask,
    }
    return PrepareGradients(
        mask_origin=run.mask_origin,
        **options_input(settings.gradients),
        **{name: str(path) for name, path in files.items() if path is not None},
    )


def _sink(
    name: str,
    keys: Sequence[str],
    *,
    run: DWIRun,
    settings: Settings,
    plan: StagePlan,
    n_facts: int,
    method: str | None = None,
) -> pe.Workflow:
    """Return what saves the outputs of a stage, for later calls to use again where they can."""
    common: dict[str, Any] = {"run": run, "output_dir": settings.output_dir, "sloppy": settings.sloppy}
    common |= {"n_facts": n_facts, "method": method, "name": f"{name}_derivatives_wf"}
    if name == "connectome":
        return init_connectome_derivatives_wf(**common, format=settings.tractogram_format[0])
    return init_derivatives_wf(**common, keys=keys, kept_as=(name, plan.digests[name]))


def _connect(workflow: pe.Workflow, fields: Mapping[str, Fields], target: pe.Workflow) -> None:
    """Connect outputs of nodes and workflows, by their names, to the inputs of a workflow."""
    for name, connected in fields.items():
        source = workflow.get_node(name)
        outputnode = "outputnode." if isinstance(source, pe.Workflow) else ""
        pairs = [(field, field) if isinstance(field, str) else field for field in connected]
        workflow.connect([(source, target, [(f"{outputnode}{out}", f"inputnode.{into}") for out, into in pairs])])


def _connect_facts(workflow: pe.Workflow, facts: Facts, sink_wf: pe.Workflow) -> None:
    workflow.connect([
        (node, sink_wf, [(field, f"inputnode.facts_{n}")]) for n, (node, field) in enumerate(facts, start=1)
    ])  # fmt: skip
