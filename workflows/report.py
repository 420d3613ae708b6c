"""Figures of the report, drawn beside each stage, so that they are there also when a later stage fails."""

from collections.abc import Mapping
from pathlib import Path

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.bids.run import DWIRun
from shd_bids.interfaces.report import (
    DrawConnectome,
    DrawFOD,
    DrawFODView,
    DrawGradients,
    DrawMask,
    DrawPeaks,
    DrawPeaksView,
    DrawResidual,
    DrawResponse,
    DrawStreamlines,
    DrawTDI,
    DrawThumbnail,
    DrawTissue,
    DrawTracksView,
    DrawTraining,
    FigureInterface,
)
from shd_bids.interfaces.sinks import SaveFigures

__all__ = [
    "init_connectome_figures_wf",
    "init_fod_figures_wf",
    "init_gradient_figures_wf",
    "init_peaks_figures_wf",
    "init_response_figures_wf",
    "init_tractography_figures_wf",
]

MEMORY_GB = 0.7  # measured: the largest figure of a 2 mm brain


def init_gradient_figures_wf(*, run: DWIRun, output_dir: Path, name: str = "gradient_figures_wf") -> pe.Workflow:
    """Draw the gradient table with its check, and the mask.

    Workflow Graph
        inputnode -> draw_gradients, draw_mask -> ds_figures -> outputnode

    Inputs
    ------
    gradients_file, facts_file, b0_file, mask_file
    orientation_file
        Table of the check, kept beside its figure.

    Outputs
    -------
    shown_files
        Where the figures and the table are in the data set.
    """
    figures = {"gradients": DrawGradients(), "mask": DrawMask()}
    workflow = _init_figures_wf(
        figures, run=run, output_dir=output_dir, name=name, kept={"orientation": "orientation_file"}
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["shown_files"]), name="outputnode")
    workflow.connect([(workflow.get_node("ds_figures"), outputnode, [("out_files", "shown_files")])])
    return workflow


def init_response_figures_wf(
    *, run: DWIRun, output_dir: Path, is_estimated: bool, name: str = "response_figures_wf"
) -> pe.Workflow:
    """Draw the responses.

    Workflow Graph
        inputnode -> draw_response -> ds_figures

    Inputs
    ------
    gradients_file, facts_file, b0_file, mask_file, and voxels_file where they were estimated
    """
    leave_out = () if is_estimated else ("voxels_file",)
    figures = {"response": DrawResponse()}
    return _init_figures_wf(figures, run=run, output_dir=output_dir, name=name, leave_out=leave_out)


def init_fod_figures_wf(
    *, run: DWIRun, output_dir: Path, is_adapted: bool, name: str = "fod_figures_wf"
) -> pe.Workflow:
    """Draw the fODFs, large and small, the tissues, the residual, and the training where there was one.

    Workflow Graph
        inputnode -> draw_fodf, draw_thumbnail, draw_tissue, draw_residual, draw_fodview, draw_training -> ds_figures

    Inputs
    ------
    fod_file, signal_file, mask_file, b0_file, facts_file, vfwm_file, vfgm_file, vfcsf_file, rsquared_file,
    residualstd_file, misfit_file
    """
    figures: dict[str, FigureInterface] = {"fodf": DrawFOD(), "thumbnail": DrawThumbnail()}
    figures |= {"tissue": DrawTissue(), "residual": DrawResidual(), "fodview": DrawFODView()}
    if is_adapted:
        figures["training"] = DrawTraining()
    return _init_figures_wf(figures, run=run, output_dir=output_dir, name=name)


def init_peaks_figures_wf(*, run: DWIRun, output_dir: Path, name: str = "peaks_figures_wf") -> pe.Workflow:
    """Draw the peaks.

    Workflow Graph
        inputnode -> draw_peaks, draw_peaksview -> ds_figures

    Inputs
    ------
    peaks_file, dec_file, nufo_file, afdtotal_file, mask_file, b0_file
    """
    return _init_figures_wf(
        {"peaks": DrawPeaks(), "peaksview": DrawPeaksView()}, run=run, output_dir=output_dir, name=name
    )


def init_tractography_figures_wf(
    *, run: DWIRun, output_dir: Path, name: str = "tractography_figures_wf"
) -> pe.Workflow:
    """Draw the streamlines and their density.

    Workflow Graph
        inputnode -> draw_tractogram, draw_tdi, draw_tracksview -> ds_figures

    Inputs
    ------
    preview_file, tdi_file, mask_file, b0_file
    """
    figures = {"tractogram": DrawStreamlines(), "tdi": DrawTDI(), "tracksview": DrawTracksView()}
    return _init_figures_wf(figures, run=run, output_dir=output_dir, name=name)


def init_connectome_figures_wf(*, run: DWIRun, output_dir: Path, name: str = "connectome_figures_wf") -> pe.Workflow:
    """Draw the connectomes.

    Workflow Graph
        inputnode -> draw_connectome -> ds_figures

    Inputs
    ------
    matrices_file
    """
    return _init_figures_wf({"connectome": DrawConnectome()}, run=run, output_dir=output_dir, name=name)


def _init_figures_wf(
    figures: Mapping[str, FigureInterface],
    *,
    run: DWIRun,
    output_dir: Path,
    name: str,
    leave_out: tuple[str, ...] = (),
    kept: Mapping[str, str] | None = None,
) -> pe.Workflow:
    """Connect each figure to the files it is drawn from, all of which the input node offers, and to one sink.

    Files in ``kept``, by their ``desc`` label, go to the sink as they are.
    """
    workflow, kept = pe.Workflow(name=name), kept or {}
    needed = {desc: _file_inputs(figure, leave_out) for desc, figure in figures.items()}
    fields = sorted({field for inputs in (*needed.values(), kept.values()) for field in inputs})
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    ds_figures = pe.Node(SaveFigures(run=run, output_dir=str(output_dir)), name="ds_figures")
    for desc, figure in figures.items():
        node = pe.Node(figure, name=f"draw_{desc}", mem_gb=MEMORY_GB)
        workflow.connect([
            (inputnode, node, [(field, field) for field in needed[desc]]),
            (node, ds_figures, [("figure_file", desc)]),
        ])  # fmt: skip
    for desc, field in kept.items():
        workflow.connect([(inputnode, ds_figures, [(field, desc)])])
    return workflow


def _file_inputs(figure: FigureInterface, leave_out: tuple[str, ...]) -> list[str]:
    names = figure.inputs.copyable_trait_names()
    return [name for name in names if name.endswith("_file") and name not in leave_out]
