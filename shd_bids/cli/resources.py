"""What this process may use of the machine: affinity, control groups and the batch system, not what the host has."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY_SHARE = 0.9  # the rest is for the parent, the file cache and what estimates miss
GB = 1024**3


def available_cpus(environment: Mapping[str, str], *, cgroup: Path = CGROUP) -> int:
    """Return the number of CPUs that this process may keep busy.

    The least of the affinity mask, the quota of the control group (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``) and
    ``SLURM_CPUS_PER_TASK``.

    Parameters
    ----------
    environment : mapping
        Environment variables.
    cgroup : Path
        Where control groups are mounted.
    """
    limits = [float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)]
    for folder in _cgroup_folders(cgroup, "cpu"):
        quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        quota, period = quota or _read(folder / "cpu.cfs_quota_us"), period or _read(folder / "cpu.cfs_period_us")
        if _is_positive(quota) and _is_positive(period):
            limits.append(float(quota) / float(period))
    if _is_positive(asked := environment.get("SLURM_CPUS_PER_TASK", "")):
        limits.append(float(asked))
    return max(1, math.floor(min(limits)))


def available_memory(environment: Mapping[str, str], *, n_cpus: int, cgroup: Path = CGROUP) -> float:
    """Return the memory in GB that this process may fill.

    The least of the machine's memory, the control group's limit (v2 ``memory.max``, v1 ``memory.limit_in_bytes``) and
    ``SLURM_MEM_PER_NODE`` or ``SLURM_MEM_PER_CPU``, times 0.9.
    """
    limits = [psutil.virtual_memory().total / GB]
    for folder in _cgroup_folders(cgroup, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if _is_positive(limit := _read(folder / name)):
                limits.append(float(limit) / GB)
    megabytes = {"SLURM_MEM_PER_NODE": 1, "SLURM_MEM_PER_CPU": n_cpus}
    limits += [
        float(environment[name]) * n / 1024 for name, n in megabytes.items() if _is_positive(environment.get(name, ""))
    ]
    return round(max(1.0, MEMORY_SHARE * min(limits)), 1)


def _cgroup_folders(cgroup: Path, controller: str) -> list[Path]:
    """Return the folders whose limits bind: the mount itself (inside a container) and this process's own groups."""
    folders = [cgroup, cgroup / controller]
    for line in _read(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):
            own = (cgroup if not controllers else cgroup / controller) / path.lstrip("/")
            folders += [own, *(parent for parent in own.parents if cgroup in parent.parents)]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _is_positive(text: str) -> bool:
    return text.isdecimal() and int(text) > 0
