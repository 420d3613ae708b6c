"""Fibre orientation distributions for BIDS data sets by equivariant spatio-hemispherical deconvolution."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shd_bids.api import Tractogram, find_peaks, track
    from shd_bids.fod.fit import fit_fod
    from shd_bids.fod.fod import FOD
    from shd_bids.fod.weights import load_weights
    from shd_bids.gradients.frames import fsl_to_world
    from shd_bids.gradients.table import gradient_table
    from shd_bids.options import PeakOptions, Runtime, TrackingOptions
    from shd_bids.response.estimate import estimate_responses
    from shd_bids.scan import Scan

__version__ = "0.1.0"

__all__ = [
    "FOD",
    "PeakOptions",
    "Runtime",
    "Scan",
    "TrackingOptions",
    "Tractogram",
    "estimate_responses",
    "find_peaks",
    "fit_fod",
    "fsl_to_world",
    "gradient_table",
    "load_weights",
    "track",
]

_HOMES = {
    "FOD": "fod.fod",
    "PeakOptions": "options",
    "Runtime": "options",
    "Scan": "scan",
    "TrackingOptions": "options",
    "Tractogram": "api",
    "estimate_responses": "response.estimate",
    "find_peaks": "api",
    "fit_fod": "fod.fit",
    "fsl_to_world": "gradients.frames",
    "gradient_table": "gradients.table",
    "load_weights": "fod.weights",
    "track": "api",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is asked for: the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the names that the package offers, imported or not."""
    return sorted({*globals(), *__all__})
