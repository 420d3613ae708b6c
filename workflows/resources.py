"""What stages may use of the machine: processors, memory and GPU."""

import math
from dataclasses import dataclass
from pathlib import Path

from shd_bids.bids.run import DWIRun
from shd_bids.settings import Settings

__all__ = ["Resources", "fod_resources", "image_gb", "may_use_gpu", "memory_beside_network", "memory_of_the_fit"]

BASE_GB = 0.7  # torch and what it loads
NETWORK_GB = 2.7  # a brain at 2 mm in one or two tiles; with less, more of the tiles are halos
LEAST_GB = 1.5  # the smallest tile
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Windows' subsystem for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one node may use.

    Attributes
    ----------
    n_procs : int
        Processors.
    mem_gb : float
        Memory of the whole process.
    use_gpu : bool
        Whether the scheduler runs one such node at a time.
    """

    n_procs: int = 1
    mem_gb: float = 0.2
    use_gpu: bool = False


def fod_resources(run: DWIRun, settings: Settings) -> tuple[Resources, float]:
    """Return what the fit of a series may use, and how much of the memory is the network's."""
    use_gpu = may_use_gpu(settings.device)
    network_gb, beside = memory_of_the_fit(run, settings, use_gpu=use_gpu)
    return Resources(n_procs=settings.omp_nthreads, mem_gb=network_gb + beside, use_gpu=use_gpu), network_gb


def memory_of_the_fit(run: DWIRun, settings: Settings, *, use_gpu: bool) -> tuple[float, float]:
    """Return the GB that the network may take, and those that the fit needs beside it."""
    # as many fits run at once as fit into the processors, and share the memory
    share = settings.mem * min(1.0, settings.omp_nthreads / settings.nprocs)
    beside = memory_beside_network(run)
    return max(LEAST_GB, share - beside if use_gpu else min(share - beside, NETWORK_GB)), beside


def memory_beside_network(run: DWIRun) -> float:
    """Return the GB that a fit needs for the image, its voxels in the mask, and the coefficients."""
    return BASE_GB + 3 * image_gb(run)


def image_gb(run: DWIRun) -> float:
    """Return the size of the image in memory, as float32."""
    return math.prod(run.shape) * 4e-9


def may_use_gpu(device: str) -> bool:
    """Whether networks may run on a GPU: one is asked for, or there is a driver; torch is not asked."""
    return device.startswith("cuda") or (device == "auto" and any(driver.exists() for driver in DRIVERS))
