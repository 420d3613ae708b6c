"""Whole calls of the app in tests, and what is asked of their results."""

from pathlib import Path

import numpy as np

from shd_bids.cli.main import main

MAPS = "dwi/sub-01_space-orig_model-shdtv_param-{}_dwimap.nii.gz"
PEAKS = MAPS.format("peaks")


def call(raw: Path, out: Path, *options: str, level: str = "peaks") -> int:
    """Run the app in this process with few resources, and return its exit code."""
    return _call(raw, out, "participant", "--skip-bids-validation", "--level", level, *options)


def call_group(raw: Path, out: Path, *options: str) -> int:
    """Run the group level likewise."""
    return _call(raw, out, "group", *options)


def call_cohort(raw: Path, out: Path, *options: str) -> int:
    """Adapt the weights likewise."""
    return call_group(raw, out, "--fit", "cohort", *options)


def _call(raw: Path, out: Path, level: str, *options: str) -> int:
    resources = ["--nprocs", "1", "--mem", "4GB", "--device", "cpu", "-w", str(out.parent / "work")]
    return main([str(raw), str(out), level, *resources, *options])


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the angles between axes, shape (..., 3), in degrees, 90 where there is none."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.abs(np.sum(a * b, axis=-1)) / np.where(length > 0, length, np.inf)
    return np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))
