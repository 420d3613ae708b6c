"""Streamlines through the true fODF of the simulated head, as the stage leaves them."""

from pathlib import Path
from typing import Any

from shd_bids.interfaces.base import options_input
from shd_bids.interfaces.tractography import TrackStreamlines
from shd_bids.options import TrackingOptions
from tests.interfaces.stages import ON_CPU, run

TRACKED = ("fod_file", "mask_file", "vfwm_file", "vfgm_file", "vfcsf_file")
SHORT = {"min_length": 4.0, "max_length": 100.0}


def track(fod: dict[str, str], folder: Path, **options: Any) -> Any:
    """Run the stage on the outputs of the fit."""
    chosen = TrackingOptions(**{"tracking_algorithm": "det", "seeds": 1, **SHORT, **options})
    files = {name: fod[name] for name in TRACKED}
    return run(TrackStreamlines, folder, **files, **options_input(chosen), **ON_CPU)
