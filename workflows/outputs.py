"""All sinks: what a series leaves in the derivative data set."""

from collections.abc import Sequence
from pathlib import Path

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.bids.run import DWIRun
from shd_bids.interfaces.sinks import SaveConnectomes, SaveDerivatives, SaveQC

__all__ = ["init_connectome_derivatives_wf", "init_derivatives_wf", "init_qc_wf"]


def init_derivatives_wf(
    *,
    run: DWIRun,
    output_dir: Path,
    keys: Sequence[str],
    n_facts: int,
    sloppy: bool,
    kept_as: tuple[str, str],
    method: str | None = None,
    name: str = "derivatives_wf",
) -> pe.Workflow:
    """Save the files of one stage with their sidecars.

    Workflow Graph
        inputnode -> facts_files -> ds_derivatives

    Parameters
    ----------
    run : DWIRun
        Source.
    output_dir : Path
        Root of the data set.
    keys : sequence of str
        Keys of the table of outputs, and of files that only later stages need.
    n_facts : int
        Number of stages so far.
    sloppy : bool
        Stamp of a quick test.
    kept_as : (str, str)
        Name and digest of the stage, under which later calls use its files again.
    method : str, optional
        Tracking algorithm.

    Inputs
    ------
    <key>
        File, or list of files in several formats.
    facts_1, facts_2, ...
        Facts of the stages so far.
    """
    workflow = pe.Workflow(name=name)
    facts = [f"facts_{number}" for number in range(1, n_facts + 1)]
    inputnode = pe.Node(niu.IdentityInterface(fields=[*keys, *facts]), name="inputnode")
    interface = SaveDerivatives(run=run, output_dir=str(output_dir), sloppy=sloppy, kept_as=kept_as)
    if method is not None:
        interface.inputs.method = method
    facts_files = pe.Node(niu.Merge(n_facts), name="facts_files", run_without_submitting=True)
    ds_derivatives = pe.Node(interface, name="ds_derivatives")
    workflow.connect([
        (inputnode, facts_files, [(field, f"in{number}") for number, field in enumerate(facts, start=1)]),
        (inputnode, ds_derivatives, [(key, key) for key in keys]),
        (facts_files, ds_derivatives, [("out", "facts_files")]),
    ])  # fmt: skip
    return workflow


def init_connectome_derivatives_wf(
    *, run: DWIRun, output_dir: Path, n_facts: int, method: str, format: str, sloppy: bool, name: str
) -> pe.Workflow:
    """Save the connectomes with their sidecars.

    Workflow Graph
        inputnode -> facts_files -> ds_connectomes

    Parameters
    ----------
    run, output_dir, n_facts, sloppy : DWIRun, Path, int and bool
        As in `init_derivatives_wf`.
    method, format : str
        Of the tractogram.

    Inputs
    ------
    table_files, facts_1, facts_2, ...
    """
    workflow = pe.Workflow(name=name)
    facts = [f"facts_{number}" for number in range(1, n_facts + 1)]
    inputnode = pe.Node(niu.IdentityInterface(fields=["table_files", *facts]), name="inputnode")
    facts_files = pe.Node(niu.Merge(n_facts), name="facts_files", run_without_submitting=True)
    interface = SaveConnectomes(run=run, output_dir=str(output_dir), method=method, format=format, sloppy=sloppy)
    ds_connectomes = pe.Node(interface, name="ds_connectomes")
    workflow.connect([
        (inputnode, facts_files, [(field, f"in{number}") for number, field in enumerate(facts, start=1)]),
        (inputnode, ds_connectomes, [("table_files", "table_files")]),
        (facts_files, ds_connectomes, [("out", "facts_files")]),
    ])  # fmt: skip
    return workflow


def init_qc_wf(*, run: DWIRun, output_dir: Path, n_facts: int, name: str = "qc_wf") -> pe.Workflow:
    """Save the table of quality numbers.

    Workflow Graph
        inputnode -> facts_files -> ds_qc

    Parameters
    ----------
    run : DWIRun
        Source.
    output_dir : Path
        Root of the data set.
    n_facts : int
        Number of stages.

    Inputs
    ------
    facts_1, facts_2, ...
    """
    workflow = pe.Workflow(name=name)
    facts = [f"facts_{number}" for number in range(1, n_facts + 1)]
    inputnode = pe.Node(niu.IdentityInterface(fields=facts), name="inputnode")
    facts_files = pe.Node(niu.Merge(n_facts), name="facts_files", run_without_submitting=True)
    ds_qc = pe.Node(SaveQC(run=run, output_dir=str(output_dir)), name="ds_qc")
    workflow.connect([
        (inputnode, facts_files, [(field, f"in{number}") for number, field in enumerate(facts, start=1)]),
        (facts_files, ds_qc, [("out", "facts_files")]),
    ])  # fmt: skip
    return workflow
