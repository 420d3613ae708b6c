"""The library of the layers' kernel.

Only the standard library is needed, so that ``setup.py`` can ask for `SPECTRAL` before the package is installed.
"""

import ctypes
from pathlib import Path

from shd_bids import compiled

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64

SPECTRAL = compiled.Kernel(
    folder=Path(__file__).parent / "spectral",
    signatures={
        "shd_forward": (_P, _P, _P, _P, _I, _P),
        "shd_analyse": (_P, _P, _I, _P, _L, _L),
        "shd_combine": (_P, _P, _L, _L, _L, _L, _P, _I, _P),
        "shd_backward": (_P, _P, _P, _P, _P, _P, _P),
        "shd_moments": (_L, _I, _P, _P, _P, _I, _I),
        "shd_rectify": (_L, _I, _P, _P, _P, _P, _I, _I),
        "shd_gradient_sums": (_L, _I, _P, _P, _P, _P, _P, _P, _P, _I, _I),
        "shd_rectify_gradient": (_L, _I, _P, _P, _P, _P, _P, _P, _P, _I, _I),
        "shd_box_sum": (_P, _P, _L, _L, _P, _P, _I, _I, _P, _P, ctypes.c_float, _I, _I),
    },
    without="convolutions run in plain PyTorch, about 4 times slower",
)


def library() -> ctypes.CDLL | None:
    """Return the kernel's library, which is looked for once."""
    return compiled.library(SPECTRAL)


def bf16_level() -> int | None:
    """Return the instruction set that multiplies in bfloat16; None where the processor or the library has none."""
    level = -1 if library() is None else library().shd_bf16_level()
    return None if level < 0 else level
