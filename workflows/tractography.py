"""Streamlines of one series, their weights and connectomes."""

from collections.abc import Sequence

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.bids.parcellations import Parcellation
from shd_bids.interfaces.base import options_input, runtime_inputs
from shd_bids.interfaces.connectome import ConnectRegions
from shd_bids.interfaces.tractography import ConvertTractogram, TrackStreamlines, anatomy_inputs
from shd_bids.interfaces.weights import WeighStreamlines
from shd_bids.options import Runtime, TrackingOptions, TractogramOptions
from shd_bids.tractography.anatomy import TissueImages
from shd_bids.workflows.resources import Resources

__all__ = ["init_connectome_wf", "init_conversion_wf", "init_tractography_wf", "init_weights_wf"]


def init_tractography_wf(
    *,
    options: TrackingOptions,
    runtime: Runtime,
    anatomy: TissueImages | None,
    resources: Resources,
    name: str = "tractography_wf",
) -> pe.Workflow:
    """Track streamlines through the fODFs.

    Workflow Graph
        inputnode -> tractography -> outputnode

    Parameters
    ----------
    options : TrackingOptions
    runtime : Runtime
        Its seed is used.
    anatomy : TissueImages or None
        Tissues that end streamlines; ``None`` for the fractions.
    resources : Resources

    Inputs
    ------
    fod_file, mask_file, vfwm_file, vfgm_file, vfcsf_file

    Outputs
    -------
    tracks_file, tdi_file, preview_file, facts_file
    """
    inputs = ["fod_file", "mask_file", "vfwm_file", "vfgm_file", "vfcsf_file"]
    outputs = ["tracks_file", "tdi_file", "preview_file", "facts_file"]
    interface = TrackStreamlines(**options_input(options), **runtime_inputs(runtime), **anatomy_inputs(anatomy))
    node = pe.Node(interface, name="tractography", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    return _around(node, inputs=inputs, outputs=outputs, name=name)


def init_weights_wf(*, resources: Resources, name: str = "weights_wf") -> pe.Workflow:
    """Fit a weight for each streamline.

    Workflow Graph
        inputnode -> weights -> outputnode

    Parameters
    ----------
    resources : Resources

    Inputs
    ------
    tracks_file, mask_file, vfwm_file, peaks_file, peakafd_file

    Outputs
    -------
    streamline_weights_file, weighted_tdi_file, facts_file
    """
    inputs = ["tracks_file", "mask_file", "vfwm_file", "peaks_file", "peakafd_file"]
    outputs = ["streamline_weights_file", "weighted_tdi_file", "facts_file"]
    node = pe.Node(WeighStreamlines(), name="weights", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    return _around(node, inputs=inputs, outputs=outputs, name=name)


def init_conversion_wf(
    *, formats: Sequence[str], is_weighted: bool, resources: Resources, name: str = "conversion_wf"
) -> pe.Workflow:
    """Write streamlines in every format.

    Workflow Graph
        inputnode -> conversion -> outputnode

    Parameters
    ----------
    formats : sequence of str
    is_weighted : bool
        Whether the streamlines have weights.
    resources : Resources

    Inputs
    ------
    tracks_file, mask_file, and streamline_weights_file where there are weights

    Outputs
    -------
    tractogram_files, facts_file, and weights_file where there are weights
    """
    outputs = ["tractogram_files", "facts_file", *(["weights_file"] if is_weighted else [])]
    inputs = ["tracks_file", "mask_file", *(["streamline_weights_file"] if is_weighted else [])]
    node = pe.Node(ConvertTractogram(formats=list(formats)), name="conversion", mem_gb=resources.mem_gb)
    return _around(node, inputs=inputs, outputs=outputs, name=name)


def init_connectome_wf(
    *,
    parcellations: Sequence[Parcellation],
    options: TractogramOptions,
    resources: Resources,
    name: str = "connectome_wf",
) -> pe.Workflow:
    """Connect the regions of every parcellation.

    Workflow Graph
        inputnode -> maps -> connectome -> outputnode

    Parameters
    ----------
    parcellations : sequence of Parcellation
    options : TractogramOptions
    resources : Resources

    Inputs
    ------
    tracks_file, one <map>_file for each map, streamline_weights_file and weights_facts_file where there are weights

    Outputs
    -------
    table_files, matrices_file, facts_file
    """
    workflow = pe.Workflow(name=name)
    weights = ["streamline_weights_file", "weights_facts_file"] if options.streamline_weights == "on" else []
    direct = ["tracks_file", *weights]
    chosen = [f"{key}_file" for key in options.connectome_map]
    outputs = ["table_files", "matrices_file", "facts_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=[*direct, *chosen]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    maps = pe.Node(niu.Merge(len(chosen)), name="maps", run_without_submitting=True)
    with_table = [one for one in parcellations if one.table is not None]
    interface = ConnectRegions(
        image_files=[str(one.image) for one in parcellations],
        labels=[one.label for one in parcellations],
        table_files=[str(one.table) for one in with_table],
        table_labels=[one.label for one in with_table],
        map_names=list(options.connectome_map),
        radius=options.connectome_radius,
    )
    connectome = pe.Node(interface, name="connectome", n_procs=resources.n_procs, mem_gb=resources.mem_gb)
    workflow.connect([
        (inputnode, maps, [(field, f"in{number}") for number, field in enumerate(chosen, start=1)]),
        (inputnode, connectome, [(field, field) for field in direct]),
        (maps, connectome, [("out", "map_files")]),
        (connectome, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow


def _around(node: pe.Node, *, inputs: Sequence[str], outputs: Sequence[str], name: str) -> pe.Workflow:
    """Return a workflow of one node."""
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=list(inputs)), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=list(outputs)), name="outputnode")
    workflow.connect([
        (inputnode, node, [(field, field) for field in inputs]),
        (node, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
