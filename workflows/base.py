"""The graph of a whole call: one sub-workflow per diffusion series, independent of one another."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nipype.pipeline.engine as pe

from shd_bids.bids.run import DWIRun
from shd_bids.bids.stages import StagePlan
from shd_bids.interfaces.base import StageInterface
from shd_bids.settings import Settings
from shd_bids.workflows.dwi import init_dwi_wf

__all__ = ["WORKFLOW_NAME", "init_shd_wf", "name_stages", "run_folder", "run_name"]

WORKFLOW_NAME = "shd_bids_wf"


def init_shd_wf(runs: Sequence[DWIRun], settings: Settings, plans: Mapping[str, StagePlan]) -> pe.Workflow:
    """Build the graph of all series.

    Workflow Graph
        one ``init_dwi_wf`` per series, with no edge between them: what fails in one leaves the others alone

    Parameters
    ----------
    runs : sequence of DWIRun
        From `shd_bids.bids.collect.collect_runs`.
    settings : Settings
        With ``work_dir`` set; it goes no further than the builders.
    plans : mapping
        Which stages of each series are computed, by its key.
    """
    workflow = pe.Workflow(name=WORKFLOW_NAME, base_dir=str(settings.work_dir))
    for run in runs:
        plan = plans[run.key]
        run_wf = init_dwi_wf(run=run, settings=settings, plan=plan, name=run_name(run))
        workflow.add_nodes([run_wf])
        name_stages(run_wf, series=run.prefix, run_dir=run_folder(settings.work_dir, run), digests=plan.digests)
    return workflow


def run_name(run: DWIRun) -> str:
    """Return the name of the sub-workflow of a series."""
    return f"{run.key}_wf"


def run_folder(work_dir: Path, run: DWIRun) -> Path:
    """Return the work folder of a series."""
    return work_dir / WORKFLOW_NAME / run_name(run)


def name_stages(workflow: pe.Workflow, *, series: str, run_dir: Path, digests: Mapping[str, str] | None = None) -> None:
    """Tell every stage whose it is, for its messages and its record of failure, and what its result depends on."""
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        if isinstance(node.interface, StageInterface):
            node.inputs.trait_set(series=series, run_dir=str(run_dir), stage=node.name)
            if digests and node.name in digests:
                node.inputs.digest = digests[node.name]
