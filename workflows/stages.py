"""The stages of a series after its gradients: what each builds, reads, draws and saves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import nipype.pipeline.engine as pe

from shd_bids.bids.run import DWIRun
from shd_bids.response import TISSUES
from shd_bids.settings import Settings
from shd_bids.workflows.fod import FOD_MAPS, PEAK_MAPS, init_fod_wf, init_peaks_wf
from shd_bids.workflows.report import (
    init_connectome_figures_wf,
    init_fod_figures_wf,
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

__all__ = ["BUILDERS", "Fields", "StageGraph"]

WEIGHTS_GB = 2.0  # of ten million streamlines, whose visits are read from a file part by part
CONNECTOME_GB = 3.0  # of ten million streamlines and a thousand regions

Fields = Sequence[str | tuple[str, str]]
"""Outputs that are connected to inputs of the same name, or pairs of an output and an input."""


@dataclass(frozen=True, kw_only=True)
class StageGraph:
    """One stage in the graph of a series.

    Attributes
    ----------
    workflow : Workflow
        What it computes; named after the stage.
    reads : mapping
        Node or workflow of an earlier stage -> what of it the stage reads.
    figures : Workflow, optional
        Draws the stage.
    drawn : mapping
        Node or workflow -> what of it the figures show.
    saved : sequence of (str, str)
        Outputs and the keys under which its sink saves them.
    method : str, optional
        What names of its outputs tell of the tractogram.
    """

    workflow: pe.Workflow
    reads: Mapping[str, Fields]
    figures: pe.Workflow | None = None
    drawn: Mapping[str, Fields] = field(default_factory=dict)
    saved: Sequence[tuple[str, str]]
    method: str | None = None


def _response(run: DWIRun, settings: Settings) -> StageGraph:
    estimated = () if run.responses else ("voxels_file",)
    response_wf = init_response_wf(responses=run.responses, resources=Resources(mem_gb=0.5 + 2 * image_gb(run)))
    if not run.responses:
        response_wf.inputs.inputnode.dwi_file = str(run.dwi)
    return StageGraph(
        workflow=response_wf,
        reads={"orientation": ("gradients_file",), "gradients": () if run.responses else ("mask_file",)},
        figures=init_response_figures_wf(run=run, output_dir=settings.output_dir, is_estimated=not run.responses),
        drawn={"gradients": ("gradients_file", "b0_file", "mask_file"), "response_wf": ("facts_file", *estimated)},
        saved=[*((f"{tissue}_file", f"{tissue}_response") for tissue in TISSUES), ("response_files", "responses")],
    )


def _fod(run: DWIRun, settings: Settings) -> StageGraph:
    resources, network_gb = fod_resources(run, settings)
    runtime = replace(settings.runtime, memory_gb=network_gb)
    fod_wf = init_fod_wf(options=settings.fod, runtime=runtime, resources=resources)
    fod_wf.inputs.inputnode.dwi_file = str(run.dwi)
    fractions, quality = ("vfwm_file", "vfgm_file", "vfcsf_file"), ("rsquared_file", "residualstd_file", "misfit_file")
    return StageGraph(
        workflow=fod_wf,
        reads={"gradients": ("mask_file", "gradients_file"), "response_wf": ("response_files",)},
        figures=init_fod_figures_wf(run=run, output_dir=settings.output_dir, is_adapted=settings.fit == "subject"),
        drawn={
            "gradients": ("mask_file", "b0_file"),
            "fod_wf": ("fod_file", "signal_file", "facts_file", *fractions, *quality),
        },
        saved=_maps(*FOD_MAPS, "fodrest", "precision"),
    )


def _peaks(run: DWIRun, settings: Settings) -> StageGraph:
    resources = Resources(
        n_procs=settings.omp_nthreads, mem_gb=min(2.0, settings.mem), use_gpu=may_use_gpu(settings.device)
    )
    return StageGraph(
        workflow=init_peaks_wf(options=settings.peaks, runtime=settings.runtime, resources=resources),
        reads={
            "gradients": ("mask_file",),
            "fod_wf": ("fod_file", "precision_file", "vfwm_file", "vfcsf_file"),
        },
        figures=init_peaks_figures_wf(run=run, output_dir=settings.output_dir),
        drawn={
            "gradients": ("mask_file", "b0_file"),
            "peaks_wf": ("peaks_file", "dec_file", "nufo_file", "afdtotal_file"),
        },
        saved=_maps(*PEAK_MAPS),
    )


def _tractography(run: DWIRun, settings: Settings) -> StageGraph:
    resources = Resources(n_procs=settings.omp_nthreads, mem_gb=min(4.0, settings.mem))
    return StageGraph(
        workflow=init_tractography_wf(
            options=settings.tracking, runtime=settings.runtime, anatomy=run.anatomy, resources=resources
        ),
        reads={"gradients": ("mask_file",), "fod_wf": ("fod_file", "vfwm_file", "vfgm_file", "vfcsf_file")},
        figures=init_tractography_figures_wf(run=run, output_dir=settings.output_dir),
        drawn={"gradients": ("mask_file", "b0_file"), "tractography_wf": ("preview_file", "tdi_file")},
        saved=_maps("tdi", "tracks"),
        method=settings.tracking_algorithm,
    )


def _weights(run: DWIRun, settings: Settings) -> StageGraph:
    resources = Resources(n_procs=settings.omp_nthreads, mem_gb=min(WEIGHTS_GB, settings.mem))
    return StageGraph(
        workflow=init_weights_wf(resources=resources),
        reads={
            "gradients": ("mask_file",),
            "fod_wf": ("vfwm_file",),
            "peaks_wf": ("peaks_file", "peakafd_file"),
            "tractography_wf": ("tracks_file",),
        },
        saved=_maps("weighted_tdi", "streamline_weights"),
        method=settings.tracking_algorithm,
    )


def _conversion(run: DWIRun, settings: Settings) -> StageGraph:
    is_weighted = settings.streamline_weights == "on"
    conversion_wf = init_conversion_wf(
        formats=settings.tractogram_format,
        is_weighted=is_weighted,
        resources=Resources(mem_gb=min(1.0, settings.mem)),
    )
    reads = {"gradients": ("mask_file",), "tractography_wf": ("tracks_file",)}
    saved = [("tractogram_files", "tractogram")]
    if is_weighted:
        reads["weights_wf"] = ("streamline_weights_file",)
        saved.append(("weights_file", "weights"))
    return StageGraph(workflow=conversion_wf, reads=reads, saved=saved, method=settings.tracking_algorithm)


def _connectome(run: DWIRun, settings: Settings) -> StageGraph:
    resources = Resources(n_procs=settings.omp_nthreads, mem_gb=min(CONNECTOME_GB, settings.mem))
    maps = settings.connectome_map
    reads: dict[str, Fields] = {
        "tractography_wf": ("tracks_file",),
        "fod_wf": [f"{key}_file" for key in maps if key in FOD_MAPS],
        "peaks_wf": [f"{key}_file" for key in maps if key in PEAK_MAPS],
    }
    if settings.streamline_weights == "on":
        reads["weights_wf"] = (("facts_file", "weights_facts_file"), "streamline_weights_file")
    return StageGraph(
        workflow=init_connectome_wf(parcellations=run.parcellations, options=settings.tractogram, resources=resources),
        reads=reads,
        figures=init_connectome_figures_wf(run=run, output_dir=settings.output_dir),
        drawn={"connectome_wf": ("matrices_file",)},
        saved=[("table_files", "table_files")],
        method=settings.tracking_algorithm,
    )


def _maps(*keys: str) -> list[tuple[str, str]]:
    return [(f"{key}_file", key) for key in keys]


BUILDERS: Mapping[str, Callable[[DWIRun, Settings], StageGraph]] = {
    "response": _response,
    "fod": _fod,
    "peaks": _peaks,
    "tractography": _tractography,
    "weights": _weights,
    "conversion": _conversion,
    "connectome": _connectome,
}
"""What builds each stage."""
