"""The graph of the group level: every series as far as its responses, then one adaptation to all."""

from collections.abc import Sequence
from pathlib import Path

import nipype.pipeline.engine as pe
from nipype.interfaces import utility as niu

from shd_bids.bids.run import DWIRun
from shd_bids.interfaces.base import options_input, runtime_inputs
from shd_bids.interfaces.cohort import AdaptToCohort
from shd_bids.settings import Settings
from shd_bids.workflows.base import WORKFLOW_NAME, name_stages, run_folder, run_name
from shd_bids.workflows.dwi import init_response_only_wf
from shd_bids.workflows.resources import may_use_gpu, memory_beside_network

__all__ = ["COHORT", "cohort_folder", "init_group_wf"]

COHORT = "cohort"
NETWORK_GB = 2.5  # gradients of one crop


def init_group_wf(runs: Sequence[DWIRun], settings: Settings) -> pe.Workflow:
    """Build the graph of the group level.

    Workflow Graph
        one ``init_response_only_wf`` per series -> cohort_wf

    Parameters
    ----------
    runs : sequence of DWIRun
        From `shd_bids.bids.collect.collect_runs`.
    settings : Settings
        With ``work_dir`` set.
    """
    workflow = pe.Workflow(name=WORKFLOW_NAME, base_dir=str(settings.work_dir))
    cohort_wf = pe.Workflow(name=f"{COHORT}_wf")
    interface = AdaptToCohort(
        dwi_files={run.prefix: str(run.dwi) for run in runs},
        **options_input(settings.fod),
        **runtime_inputs(settings.runtime),
        n_processes=settings.cohort_processes,
        use_gpu=may_use_gpu(settings.device),
    )
    mem_gb = min(settings.mem, NETWORK_GB + max(map(memory_beside_network, runs)))
    cohort = pe.Node(interface, name=COHORT, n_procs=settings.omp_nthreads, mem_gb=mem_gb)
    joined = {
        name: pe.Node(niu.Merge(len(runs)), name=f"all_{name}")
        for name in ("mask_files", "gradients_files", "wm_responses")
    }
    cohort_wf.connect([(node, cohort, [("out", name)]) for name, node in joined.items()])
    name_stages(cohort_wf, series=COHORT, run_dir=cohort_folder(settings.work_dir))
    for number, run in enumerate(runs, start=1):
        run_wf = init_response_only_wf(run=run, settings=settings, name=run_name(run))
        workflow.connect([
            (run_wf, cohort_wf, [
                ("gradients.mask_file", f"all_mask_files.in{number}"),
                ("orientation.gradients_file", f"all_gradients_files.in{number}"),
                ("response_wf.outputnode.wm_file", f"all_wm_responses.in{number}"),
            ]),
        ])  # fmt: skip
        name_stages(run_wf, series=run.prefix, run_dir=run_folder(settings.work_dir, run))
    return workflow


def cohort_folder(work_dir: Path) -> Path:
    """Return the work folder of the adaptation, with its failure, its facts, and the weights in the folder of its node."""
    return work_dir / WORKFLOW_NAME / f"{COHORT}_wf"
