"""Stages run in this process, as their own is tested elsewhere and costs a second each."""

from pathlib import Path
from typing import Any

import pytest

from shd_bids.interfaces.base import StageInterface, options_input, runtime_inputs
from shd_bids.interfaces.gradients import PrepareGradients
from shd_bids.options import GradientOptions, Runtime

ON_CPU = runtime_inputs(Runtime(device="cpu", memory_gb=1.0))


def run(interface: type[StageInterface], folder: Path, **inputs: Any) -> Any:
    """Run a stage in a folder and return its outputs."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageInterface, "is_isolated", False)
        return interface(**inputs).run(cwd=folder).outputs


def prepare(dwi_file: Path, folder: Path, *, gradient_check: str = "error", **files: str) -> Any:
    """Run the first stage on a series, with its own gradients and an estimated mask unless told otherwise."""
    stem = str(dwi_file).removesuffix(".nii.gz")
    inputs = {
        "mask_origin": "estimated",
        "dwi_file": str(dwi_file),
        "bval_file": f"{stem}.bval",
        "bvec_file": f"{stem}.bvec",
    }
    options = options_input(GradientOptions(gradient_check=gradient_check))
    return run(PrepareGradients, folder, **inputs | files, **options)
