"""Costs that are told before a call, against measured ones."""

import pytest

from shd_bids.bids.stages import Kept, StagePlan
from shd_bids.cli.plan import format_plan, make_plan
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run

STAGES = ("gradients", "response", "fod", "peaks", "tractography")


@pytest.mark.parametrize(
    ("shape", "n_mask", "measured"),
    [((10, 10, 10, 65), 1000, 1.2), ((22, 22, 22, 122), 10_648, 2.9), ((64, 64, 36, 20), 17_278, 2.1)],
)
def test_memory_is_that_of_the_whole_tree_of_processes(tmp_path, shape, n_mask, measured):
    """Measured as the proportional set size of all processes, GB, with two processors."""
    run = dwi_run(tmp_path, shape=shape, n_mask=n_mask)
    settings = Settings(
        bids_dir=tmp_path, output_dir=tmp_path, work_dir=tmp_path, nprocs=2, omp_nthreads=2, mem=20.0, device="cpu"
    )
    plans = {run.key: StagePlan(dict.fromkeys(STAGES, "x"))}
    told = make_plan([run], settings, device="cpu", plans=plans)["expected"]["memory_gb"]
    assert measured <= told <= 1.5 * measured


def test_stages_that_are_used_again_take_no_time(tmp_path):
    run = dwi_run(tmp_path, n_mask=100_000)
    settings = Settings(bids_dir=tmp_path, output_dir=tmp_path, work_dir=tmp_path, device="cpu")
    kept = dict.fromkeys(STAGES[:3], Kept({}, tmp_path))
    plan = make_plan([run], settings, device="cpu", plans={run.key: StagePlan(dict.fromkeys(STAGES, "x"), kept)})
    minutes = plan["series"][0]["expected"]["stage_minutes"]
    assert [stage for stage in STAGES if not minutes[stage]] == list(STAGES[:3])
    (line,) = [line for line in format_plan(plan).splitlines() if line.startswith("sub-01")]
    assert "reused: gradients response fod, computed: peaks tractography" in line
