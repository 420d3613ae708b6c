"""One diffusion series, from its files to its derivatives."""

from dataclasses import replace
from typing import Any

import nipype.pipeline.engine as pe

from shd_bids.bids.run import DWIRun
from shd_bids.bids.stages import StagePlan
from shd_bids.interfaces.base import options_input
from shd_bids.interfaces.gradients import PrepareGradients, RequireOrientation
from shd_bids.options import LEVELS
from shd_bids.response import TISSUES
from shd_bids.settings import Settings
from shd_bids.workflows.fod import FOD_MAPS, PEAK_MAPS, init_fod_wf, init_peaks_wf
from shd_bids.workflows.kept import init_kept_fod_wf, init_kept_wf, kept_node
from shd_bids.workflows.outputs import init_connectome_derivatives_wf, init_derivatives_wf, init_qc_wf
from shd_bids.workflows.report import (
    init_connectome_figures_wf,
    init_fod_figures_wf,
    init_gradient_figures_wf,
    init_peaks_figures_wf,
    init_response_figures_wf,
    init_tractography_figures_wf,
)
from shd_bids.workflows.resources import Resources, fod_resources, image_gb, may_use_gpu
from shd_bids.workflows.response import init_response_wf
from shd_bids.workflows.tractography import (
    init_connectome_wf,
    init_conversion_wf,
    init_tractography_wf,
    init_weights_wf,
)

__all__ = ["init_dwi_wf", "init_response_only_wf"]

WEIGHTS_GB = 2.0  # of ten million streamlines, whose visits are read from a file part by part
CONNECTOME_GB = 3.0  # of ten million streamlines and a thousand regions


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
    stages = [_add_mask, _add_response]
    stages += [_add_fod, _add_peaks, _add_tractography][: LEVELS.index(settings.level)]
    stages += [adds for name, adds in _OF_STREAMLINES.items() if name in plan.digests]
    facts: list[tuple[Any, str]] = []
    for add_stage in stages:
        facts.append(add_stage(workflow, run=run, settings=settings, plan=plan, facts=facts))
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
    _estimate_response(workflow, run=run, settings=settings)
    return workflow


def _add_mask(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Node, str]:
    """Add gradients and mask, with the sink of what passes the gate; return where the facts of the stage come from."""
    if kept := plan.kept.get("gradients"):
        workflow.add_nodes([kept_node(kept, "gradients"), kept_node(kept, "orientation")])
        return workflow.get_node("gradients"), "facts_file"
    _add_gradients(workflow, run=run, settings=settings)
    gradients, orientation = workflow.get_node("gradients"), workflow.get_node("orientation")
    gradients_derivatives_wf = init_derivatives_wf(
        **_sink(run, settings, plan, "gradients"), keys=("mask", "gradients", "b0"), n_facts=1
    )
    workflow.connect([
        (gradients, gradients_derivatives_wf, [
            ("mask_file", "inputnode.mask"), ("b0_file", "inputnode.b0"), ("facts_file", "inputnode.facts_1"),
        ]),
        (orientation, gradients_derivatives_wf, [("gradients_file", "inputnode.gradients")]),
    ])  # fmt: skip
    return gradients, "facts_file"


def _add_gradients(workflow: pe.Workflow, *, run: DWIRun, settings: Settings) -> None:
    """Add the gradients, their figures, and the gate that wrong directions do not pass."""
    gradients = pe.Node(_gradients(run, settings), name="gradients", mem_gb=0.5 + 3 * image_gb(run))
    gradient_figures_wf = init_gradient_figures_wf(run=run, output_dir=settings.output_dir)
    orientation = pe.Node(RequireOrientation(), name="orientation")
    drawn = ("gradients_file", "facts_file", "b0_file", "mask_file", "orientation_file")
    workflow.connect([
        (gradients, gradient_figures_wf, _same(*drawn)),
        (gradients, orientation, [(field, field) for field in ("gradients_file", "facts_file")]),
        (gradient_figures_wf, orientation, [("outputnode.shown_files", "shown_files")]),
    ])  # fmt: skip


def _estimate_response(workflow: pe.Workflow, *, run: DWIRun, settings: Settings) -> pe.Workflow:
    """Add the responses alone and return their workflow."""
    gradients, orientation = workflow.get_node("gradients"), workflow.get_node("orientation")
    response_wf = init_response_wf(responses=run.responses, resources=Resources(mem_gb=0.5 + 2 * image_gb(run)))
    workflow.connect([(orientation, response_wf, _same("gradients_file"))])
    if not run.responses:
        response_wf.inputs.inputnode.dwi_file = str(run.dwi)
        workflow.connect([(gradients, response_wf, _same("mask_file"))])
    return response_wf


def _add_response(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add responses, their figures and their sink; return where the facts of the stage come from."""
    if kept := plan.kept.get("response"):
        return _add_kept(workflow, init_kept_wf(kept, name="response_wf"))
    keep: dict[str, Any] = {"run": run, "output_dir": settings.output_dir}
    gradients = workflow.get_node("gradients")
    response_wf = _estimate_response(workflow, run=run, settings=settings)
    response_figures_wf = init_response_figures_wf(**keep, is_estimated=not run.responses)
    keys = (*(f"{tissue}_response" for tissue in TISSUES), "responses")
    response_derivatives_wf = init_derivatives_wf(**_sink(run, settings, plan, "response"), keys=keys, n_facts=2)
    drawn = [("outputnode.facts_file", "inputnode.facts_file")]
    if not run.responses:
        drawn.append(("outputnode.voxels_file", "inputnode.voxels_file"))
    workflow.connect([
        (gradients, response_figures_wf, _same("gradients_file", "b0_file", "mask_file")),
        (response_wf, response_figures_wf, drawn),
        (response_wf, response_derivatives_wf, [
            (f"outputnode.{tissue}_file", f"inputnode.{tissue}_response") for tissue in TISSUES
        ]),
        (response_wf, response_derivatives_wf, [("outputnode.response_files", "inputnode.responses")]),
    ])  # fmt: skip
    produced = (response_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], response_derivatives_wf)
    return produced


def _add_fod(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add the fit, its figures and its sink."""
    if kept := plan.kept.get("fod"):
        if not {"peaks", "tractography"} & set(plan.computed):
            return _add_kept(workflow, init_kept_wf(kept, name="fod_wf"))
        kept_wf = init_kept_fod_wf(kept, name="fod_wf")
        workflow.connect([(workflow.get_node("gradients"), kept_wf, _same("mask_file"))])
        return kept_wf, "outputnode.facts_file"
    keep: dict[str, Any] = {"run": run, "output_dir": settings.output_dir}
    gradients, response_wf = workflow.get_node("gradients"), workflow.get_node("response_wf")
    resources, network_gb = fod_resources(run, settings)
    fod_wf = init_fod_wf(
        options=settings.fod, runtime=replace(settings.runtime, memory_gb=network_gb), resources=resources
    )
    fod_wf.inputs.inputnode.dwi_file = str(run.dwi)
    fod_figures_wf = init_fod_figures_wf(**keep, is_adapted=settings.fit == "subject")
    keys = (*FOD_MAPS, "fodrest", "precision")
    fod_derivatives_wf = init_derivatives_wf(**_sink(run, settings, plan, "fod"), keys=keys, n_facts=3)
    fractions, quality = ("vfwm_file", "vfgm_file", "vfcsf_file"), ("rsquared_file", "residualstd_file", "misfit_file")
    drawn = ("fod_file", "signal_file", "facts_file", *fractions, *quality)
    workflow.connect([
        (gradients, fod_wf, _same("mask_file", "gradients_file")),
        (response_wf, fod_wf, _through("response_files")),
        (gradients, fod_figures_wf, _same("mask_file", "b0_file")),
        (fod_wf, fod_figures_wf, _through(*drawn)),
        (fod_wf, fod_derivatives_wf, _maps(keys)),
    ])  # fmt: skip
    produced = (fod_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], fod_derivatives_wf)
    return produced


def _add_peaks(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add the peaks, their figure and their sink."""
    if kept := plan.kept.get("peaks"):
        return _add_kept(workflow, init_kept_wf(kept, name="peaks_wf"))
    keep: dict[str, Any] = {"run": run, "output_dir": settings.output_dir}
    gradients, fod_wf = workflow.get_node("gradients"), workflow.get_node("fod_wf")
    resources = Resources(
        n_procs=settings.omp_nthreads, mem_gb=min(2.0, settings.mem), use_gpu=may_use_gpu(settings.device)
    )
    peaks_wf = init_peaks_wf(options=settings.peaks, runtime=settings.runtime, resources=resources)
    peaks_figures_wf = init_peaks_figures_wf(**keep)
    peaks_derivatives_wf = init_derivatives_wf(**_sink(run, settings, plan, "peaks"), keys=PEAK_MAPS, n_facts=4)
    workflow.connect([
        (gradients, peaks_wf, _same("mask_file")),
        (fod_wf, peaks_wf, _through("fod_file", "precision_file", "vfwm_file", "vfcsf_file")),
        (gradients, peaks_figures_wf, _same("mask_file", "b0_file")),
        (peaks_wf, peaks_figures_wf, _through("peaks_file", "dec_file", "nufo_file", "afdtotal_file")),
        (peaks_wf, peaks_derivatives_wf, _maps(PEAK_MAPS)),
    ])  # fmt: skip
    produced = (peaks_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], peaks_derivatives_wf)
    return produced


def _add_tractography(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add the streamlines, their figures and their sink."""
    if kept := plan.kept.get("tractography"):
        return _add_kept(workflow, init_kept_wf(kept, name="tractography_wf"))
    gradients, fod_wf = workflow.get_node("gradients"), workflow.get_node("fod_wf")
    resources = Resources(n_procs=settings.omp_nthreads, mem_gb=min(4.0, settings.mem))
    tractography_wf = init_tractography_wf(
        options=settings.tracking, runtime=settings.runtime, anatomy=run.anatomy, resources=resources
    )
    tractography_figures_wf = init_tractography_figures_wf(run=run, output_dir=settings.output_dir)
    keys = ("tdi", "tracks")
    tractography_derivatives_wf = init_derivatives_wf(
        **_sink(run, settings, plan, "tractography"), keys=keys, n_facts=5, **_tractogram(settings)
    )
    workflow.connect([
        (gradients, tractography_wf, _same("mask_file")),
        (fod_wf, tractography_wf, _through("fod_file", "vfwm_file", "vfgm_file", "vfcsf_file")),
        (gradients, tractography_figures_wf, _same("mask_file", "b0_file")),
        (tractography_wf, tractography_figures_wf, _through("preview_file", "tdi_file")),
        (tractography_wf, tractography_derivatives_wf, _maps(keys)),
    ])  # fmt: skip
    produced = (tractography_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], tractography_derivatives_wf)
    return produced


def _add_weights(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add the weights of the streamlines and their sink."""
    if kept := plan.kept.get("weights"):
        return _add_kept(workflow, init_kept_wf(kept, name="weights_wf"))
    gradients, fod_wf, peaks_wf = (workflow.get_node(part) for part in ("gradients", "fod_wf", "peaks_wf"))
    resources = Resources(n_procs=settings.omp_nthreads, mem_gb=min(WEIGHTS_GB, settings.mem))
    weights_wf = init_weights_wf(resources=resources)
    keys = ("weighted_tdi", "streamline_weights")
    weights_derivatives_wf = init_derivatives_wf(
        **_sink(run, settings, plan, "weights"), keys=keys, n_facts=6, **_tractogram(settings)
    )
    workflow.connect([
        (gradients, weights_wf, _same("mask_file")),
        (fod_wf, weights_wf, _through("vfwm_file")),
        (peaks_wf, weights_wf, _through("peaks_file", "peakafd_file")),
        (workflow.get_node("tractography_wf"), weights_wf, _through("tracks_file")),
        (weights_wf, weights_derivatives_wf, _maps(keys)),
    ])  # fmt: skip
    produced = (weights_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], weights_derivatives_wf)
    return produced


def _add_conversion(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add the tractogram in every format, with its sink."""
    if kept := plan.kept.get("conversion"):
        return _add_kept(workflow, init_kept_wf(kept, name="conversion_wf"))
    conversion_wf = init_conversion_wf(
        formats=settings.tractogram_format,
        is_weighted=_is_weighted(settings),
        resources=Resources(mem_gb=min(1.0, settings.mem)),
    )
    conversion_derivatives_wf = init_derivatives_wf(
        **_sink(run, settings, plan, "conversion"),
        keys=("tractogram", *(("weights",) if _is_weighted(settings) else ())),
        n_facts=len(facts) + 1,
        **_tractogram(settings),
    )
    saved = [("outputnode.tractogram_files", "inputnode.tractogram")]
    if _is_weighted(settings):
        saved.append(("outputnode.weights_file", "inputnode.weights"))
        workflow.connect([(workflow.get_node("weights_wf"), conversion_wf, _through("streamline_weights_file"))])
    workflow.connect([
        (workflow.get_node("gradients"), conversion_wf, _same("mask_file")),
        (workflow.get_node("tractography_wf"), conversion_wf, _through("tracks_file")),
        (conversion_wf, conversion_derivatives_wf, saved),
    ])  # fmt: skip
    produced = (conversion_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], conversion_derivatives_wf)
    return produced


def _add_connectomes(
    workflow: pe.Workflow, *, run: DWIRun, settings: Settings, plan: StagePlan, facts: list
) -> tuple[pe.Workflow, str]:
    """Add the connectomes of every parcellation, their figure and their sink."""
    keep: dict[str, Any] = {"run": run, "output_dir": settings.output_dir}
    resources = Resources(n_procs=settings.omp_nthreads, mem_gb=min(CONNECTOME_GB, settings.mem))
    connectome_wf = init_connectome_wf(
        parcellations=run.parcellations, options=settings.tractogram, resources=resources
    )
    connectome_figures_wf = init_connectome_figures_wf(**keep)
    connectome_derivatives_wf = init_connectome_derivatives_wf(
        **keep,
        n_facts=len(facts) + 1,
        format=settings.tractogram_format[0],
        sloppy=settings.sloppy,
        name="connectome_derivatives_wf",
        **_tractogram(settings),
    )
    for key in settings.connectome_map:
        stage = workflow.get_node("fod_wf" if key in FOD_MAPS else "peaks_wf")
        workflow.connect([(stage, connectome_wf, _through(f"{key}_file"))])
    if _is_weighted(settings):
        weights_wf = workflow.get_node("weights_wf")
        weights = [("outputnode.facts_file", "inputnode.weights_facts_file"), *_through("streamline_weights_file")]
        workflow.connect([(weights_wf, connectome_wf, weights)])
    workflow.connect([
        (workflow.get_node("tractography_wf"), connectome_wf, _through("tracks_file")),
        (connectome_wf, connectome_figures_wf, _through("matrices_file")),
        (connectome_wf, connectome_derivatives_wf, _through("table_files")),
    ])  # fmt: skip
    produced = (connectome_wf, "outputnode.facts_file")
    _connect_facts(workflow, [*facts, produced], connectome_derivatives_wf)
    return produced


_OF_STREAMLINES = {"weights": _add_weights, "conversion": _add_conversion, "connectome": _add_connectomes}
"""What is made of the streamlines, by the name of the stage."""


def _is_weighted(settings: Settings) -> bool:
    return settings.streamline_weights == "on"


def _tractogram(settings: Settings) -> dict[str, Any]:
    """Return what names of outputs tell of the tractogram."""
    return {"method": settings.tracking_algorithm}


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


def _add_kept(workflow: pe.Workflow, kept_wf: pe.Workflow) -> tuple[pe.Workflow, str]:
    """Add what an earlier call left of a stage; return where its facts are."""
    workflow.add_nodes([kept_wf])
    return kept_wf, "outputnode.facts_file"


def _sink(run: DWIRun, settings: Settings, plan: StagePlan, stage: str) -> dict[str, Any]:
    """Return what all sinks of a series share, and name and digest of their stage."""
    return {
        "run": run,
        "output_dir": settings.output_dir,
        "sloppy": settings.sloppy,
        "kept_as": (stage, plan.digests[stage]),
        "name": f"{stage}_derivatives_wf",
    }


def _connect_facts(workflow: pe.Workflow, facts: list, sink_wf: pe.Workflow) -> None:
    workflow.connect([
        (node, sink_wf, [(field, f"inputnode.facts_{n}")]) for n, (node, field) in enumerate(facts, start=1)
    ])  # fmt: skip


def _same(*fields: str) -> list[tuple[str, str]]:
    """Connect outputs of a node to the inputs of the same name of a workflow."""
    return [(field, f"inputnode.{field}") for field in fields]


def _through(*fields: str) -> list[tuple[str, str]]:
    """Connect outputs of a workflow to the inputs of the same name of another."""
    return [(f"outputnode.{field}", f"inputnode.{field}") for field in fields]


def _maps(keys: tuple[str, ...]) -> list[tuple[str, str]]:
    """Connect the maps of a stage to their sink."""
    return [(f"outputnode.{key}_file", f"inputnode.{key}") for key in keys]
