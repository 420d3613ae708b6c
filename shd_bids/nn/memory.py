"""What the C library does with memory that the process frees, which decides how fast large tensors come and go."""

import contextlib
import ctypes
import resource
from pathlib import Path


def keep_freed_memory() -> None:
    """Keep freed memory in this process instead of handing it back to the system, where the C library is glibc.

    Each training step takes and frees tensors of tens to hundreds of MB; handing them back costs a page fault per 4 kB to
    get them again, measured at more than half of a step (tests/benchmarks/README.md). Call it once in a process whose work is
    the network.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: nothing to tune
        return
    for parameter, value in ((-4, 0), (-1, -1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        tune(parameter, value)


def hand_back_freed_memory(above: int) -> None:
    """Hand back freed memory to the system, where the C library is glibc, if this process takes more than so many bytes.

    Blocks that are freed and taken in other sizes leave gaps between them, which :func:`keep_freed_memory` would keep.
    """
    if 0 < above < resident_bytes():
        with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to hand back
            ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Give the memory that this process takes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
