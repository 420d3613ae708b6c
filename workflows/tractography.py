"""Streamlines of one series."""

from collections.abc import Sequence

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.interfaces.tractography import TrackStreamlines

__all__ = ["init_tractography_wf"]


def init_tractography_wf(
    *,
    algorithm: str,
    seeds: int,
    select: int,
    step_size: float | None,
    max_angle: float,
    min_length: float,
    max_length: float,
    formats: Sequence[str],
    seed: int,
    n_procs: int,
    mem_gb: float,
    name: str = "tractography_wf",
) -> pe.Workflow:
    """Track streamlines through the fODFs.

    Workflow Graph
        inputnode -> tractography -> outputnode

    Parameters
    ----------
    algorithm, seeds, select, step_size, max_angle, min_length, max_length, formats, seed
        As in `shd_bids.interfaces.tractography.track_image`.
    n_procs, mem_gb : int, float
        What the stage may use.

    Inputs
    ------
    fod_file, mask_file, vfwm_file

    Outputs
    -------
    tractogram_files, tdi_file, preview_file, facts_file
    """
    workflow = pe.Workflow(name=name)
    inputs = ["fod_file", "mask_file", "vfwm_file"]
    outputs = ["tractogram_files", "tdi_file", "preview_file", "facts_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    interface = TrackStreamlines(
        algorithm=algorithm,
        seeds=seeds,
        select=select,
        max_angle=max_angle,
        min_length=min_length,
        max_length=max_length,
        formats=list(formats),
        seed=seed,
    )
    if step_size is not None:
        interface.inputs.step_size = step_size
    tractography = pe.Node(interface, name="tractography", n_procs=n_procs, mem_gb=mem_gb)
    workflow.connect([
        (inputnode, tractography, [(field, field) for field in inputs]),
        (tractography, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
