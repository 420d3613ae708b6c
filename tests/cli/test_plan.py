"""Costs that are told before a call, against measured ones."""

import pytest

from shd_bids.cli.plan import make_plan
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run


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
    told = make_plan([run], settings, device="cpu", is_done={run.key: False})["expected"]["memory_gb"]
    assert measured <= told <= 1.5 * measured
