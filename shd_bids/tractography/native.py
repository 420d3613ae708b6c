"""The compiled tracker, which can be asked for before anything heavy is imported."""

import ctypes
from pathlib import Path

from shd_bids.compiled import Kernel, library
from shd_bids.errors import DeviceError

_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
KERNEL = Kernel(
    folder=Path(__file__).parent / "kernel",
    signatures={
        "shd_track": (_P, _P, _P, _P, _P, _P, _L, _L, _I),
        "shd_tracks_counts": (_P, _P),
        "shd_tracks_copy": (_P, _P, _P, _P, _P),
        "shd_tracks_free": (_P,),
    },
    results={"shd_track": _P},
    without="streamlines cannot be tracked",
)


def tracking_library() -> ctypes.CDLL:
    """Return the compiled tracker.

    Raises
    ------
    DeviceError
        If it can neither be loaded nor compiled.
    """
    found = library(KERNEL)
    if found is None:
        raise DeviceError(
            "the compiled tracker is not there and cannot be built; install a wheel of this package or a C++ compiler (g++), "
            "or stop at --level peaks"
        )
    return found
