"""What the C library does with memory that the process frees, which decides how fast large tensors come and go."""

import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

TAKEN_AHEAD = 64 << 20
"""Bytes that the C library takes beyond what is asked for, once it keeps what is freed."""


def keep_freed_memory() -> None:
    """Keep freed memory in this process instead of handing it back to the system, where the C library is glibc.

    Each training step takes and frees tensors of tens to hundreds of MB, as does each part of a peak search; handing them back
    costs a page fault per 4 kB to get them again, measured at more than half of a step (tests/benchmarks/README.md). Call it
    once in a process whose work this is.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: nothing to tune
        return
    for parameter, value in ((-4, 0), (-1, -1), (-2, TAKEN_AHEAD)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        tune(parameter, value)


def lasting_zeros(shape: Sequence[int]) -> Tensor:
    """Return zeros, float32, in pages of their own that are all there from the start, where the system is Linux.

    For large tensors that stay: among those that come and go they would leave gaps. A page that is read before it is written
    costs an interruption of all threads when it is, and pages that come one by one cost more than all at once.
    """
    size = 4 * math.prod(shape)
    if not size or not hasattr(mmap, "MAP_POPULATE"):
        return torch.zeros(*shape)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    return torch.frombuffer(pages, dtype=torch.float32).view(*shape)
