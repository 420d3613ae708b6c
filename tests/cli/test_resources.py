import os

import psutil
import pytest

from shd_bids.cli import resources
from shd_bids.cli.resources import GB, available_cpus, available_memory


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight CPUs and 64 GB, in no control group of their own."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64 * GB}))
    monkeypatch.setattr(resources, "OWN_GROUPS", resources.Path("/no/such/file"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_affinity_alone(tmp_path):
    assert available_cpus({}, cgroup=tmp_path) == 8
    assert available_memory({}, n_cpus=8, cgroup=tmp_path) == 57.6


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_quota_of_both_kinds_of_control_groups(tmp_path, files, expected):
    for name, text in files.items():
        write(tmp_path / name, text)
    assert available_cpus({}, cgroup=tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": 8 * GB}, 7.2),
        ({"memory.max": "max"}, 57.6),
        ({"memory/memory.limit_in_bytes": 16 * GB}, 14.4),
        ({"memory/memory.limit_in_bytes": 2**63 - 4096}, 57.6),
    ],
)
def test_memory_of_both_kinds_of_control_groups(tmp_path, files, expected):
    for name, text in files.items():
        write(tmp_path / name, text)
    assert available_memory({}, n_cpus=8, cgroup=tmp_path) == expected


def test_groups_of_the_process_and_those_above_them_bind(tmp_path, monkeypatch):
    write(tmp_path / "groups", "4:cpu,cpuacct:/slurm/job_1\n0::/user/app")
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "groups")
    write(tmp_path / "user" / "cpu.max", "200000 100000")
    write(tmp_path / "user" / "app" / "cpu.max", "max 100000")
    assert available_cpus({}, cgroup=tmp_path) == 2
    write(tmp_path / "cpu" / "slurm" / "job_1" / "cpu.cfs_quota_us", "100000")
    write(tmp_path / "cpu" / "slurm" / "job_1" / "cpu.cfs_period_us", "100000")
    assert available_cpus({}, cgroup=tmp_path) == 1


def test_batch_system(tmp_path):
    assert available_cpus({"SLURM_CPUS_PER_TASK": "4"}, cgroup=tmp_path) == 4
    assert available_cpus({"SLURM_CPUS_PER_TASK": "64"}, cgroup=tmp_path) == 8
    assert available_memory({"SLURM_MEM_PER_CPU": "2048"}, n_cpus=4, cgroup=tmp_path) == 7.2
    assert available_memory({"SLURM_MEM_PER_NODE": "0"}, n_cpus=4, cgroup=tmp_path) == 57.6  # 0: all of the node
