"""Processes that never outlive the one they work for, their threads and their memory."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil

__all__ = ["die_with_parent", "end_after", "end_all", "peak_memory_mb", "thread_environment"]

_OF_TORCH = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OF_NUMPY = ("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")  # and scipy; their matrices are too small to be split

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it ends (Linux; elsewhere nothing happens)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_after(wait: Callable[[], object]) -> None:
    """End this process and all below it as soon as ``wait``, called in a thread, returns.

    The kernel tells only of the direct parent; a worker of a pool is started by a server that outlives the program.
    """
    threading.Thread(target=_end_after, args=(wait,), daemon=True).start()


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    end_all(1)


def end_all(code: int) -> NoReturn:
    """End this process and all below it at once."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(code)


def thread_environment(n_threads: int) -> dict[str, str]:
    """Return the environment variables that hold torch to ``n_threads`` threads, and numpy and scipy to one each time."""
    return dict.fromkeys(_OF_TORCH, str(n_threads)) | dict.fromkeys(_OF_NUMPY, "1")


def peak_memory_mb() -> int:
    """Return the most memory that this process has taken so far, MB.

    Linux counts to the usage that `resource` tells also the process that started this one, as large as it was then.
    """
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
