"""Record the figures of a benchmark in results/NAME.csv, and compare new ones with them.

    python tests/benchmarks/NAME.py ... --save         # write the figures
    python tests/benchmarks/NAME.py ... --compare      # exit 1 where one is worse than recorded

A figure is identified by row, method and metric, one of time or memory also by the number of threads. Saving replaces it
and leaves all others. ``tables.py`` beside this file prints the tables of the documents from them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "results"
WEIGHTS = ROOT / "shd_bids" / "data" / "shd_bids.safetensors"
ACCURACY, TIME = 0.02, 0.05
"""Relative changes for the worse that are flagged."""


Values = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Method -> region -> metric -> value."""


@dataclass(frozen=True)
class Metric:
    """How a figure is named, printed and compared."""

    label: str
    form: str = "{:.3f}"
    larger_is_better: bool = False
    is_cost: bool = False

    @property
    def tolerance(self) -> float:
        """Relative change for the worse that is flagged."""
        return TIME if self.is_cost else ACCURACY

    @property
    def digit(self) -> float:
        """Value of the last printed digit; smaller changes are rounding."""
        found = re.search(r"\.(\d)f", self.form)
        return 10.0 ** -int(found[1]) if found else 0.0

    def is_worse(self, new: float, old: float) -> bool:
        """Whether a value is worse than the recorded one by more than the tolerance."""
        loss = old - new if self.larger_is_better else new - old
        return loss > max(self.tolerance * abs(old), 1.01 * self.digit)


METRICS = {
    "pr_area": Metric("PR area", larger_is_better=True),
    "f1": Metric("F1", larger_is_better=True),
    "angular_error": Metric("angle (°)", "{:.1f}"),
    "fnr": Metric("missed"),
    "fdr": Metric("false"),
    "narrow_f1": Metric("F1, 20-45°", larger_is_better=True),
    "narrow_missed": Metric("missed, 20-45°"),
    "gm_0.1": Metric("false in GM"),
    "csf_0.1": Metric("false in CSF"),
    "gm_own": Metric("GM, own cutoff"),
    "csf_own": Metric("CSF, own cutoff"),
    "gm": Metric("false in GM"),
    "csf": Metric("false in CSF"),
    "single": Metric("false beside one fibre"),
    "missed": Metric("missed of one fibre"),
    "one_peak": Metric("exactly one peak", "{:.2f}", larger_is_better=True),
    "both_found": Metric("both found", "{:.2f}", larger_is_better=True),
    "exactly_two": Metric("exactly two peaks", "{:.2f}", larger_is_better=True),
    "nearest_along": Metric("nearest single bundle, along (°)", "{:.0f}"),
    "nearest_across": Metric("nearest single bundle, across (°)", "{:.0f}"),
    "found_1": Metric("crossings found from one voxel", "{:.2f}", larger_is_better=True),
    "found_27": Metric("crossings found from 27 voxels", "{:.2f}", larger_is_better=True),
    "three_peaks": Metric("three peaks or more", "{:.2f}"),
    "with_peak": Metric("with a peak", "{:.2f}"),
    "coverage": Metric("axes within the 90 % interval", "{:.2f}", larger_is_better=True),
    "interval": Metric("interval (°)", "{:.1f}"),
    "dispersion": Metric("error of the dispersion (°)", "{:.1f}"),
    "first_error": Metric("largest peak (°)", "{:.1f}"),
    "density_difference": Metric("difference of fibre density (%)", "{:.1f}"),
    "density_spread": Metric("spread of its ratio (%)", "{:.1f}"),
    "exit_code": Metric("exit code", "{:.0f}"),
    "stages": Metric("stages computed", "{:.0f}"),
    "flagged": Metric("outliers flagged", "{:.0f}", larger_is_better=True),
    "falsely_flagged": Metric("others flagged", "{:.0f}"),
    "fod_correlation": Metric("correlation of fODFs", "{:.2f}", larger_is_better=True),
    "same_count": Metric("same number of peaks", "{:.2f}", larger_is_better=True),
    "rmse": Metric("error (%)", "{:.2f}"),
    "rmse_median": Metric("median (%)", "{:.2f}"),
    "voxel": Metric("voxels rotated"),
    "grid": Metric("grid rotated"),
    "both": Metric("both rotated"),
    "difference": Metric("difference", "{:.0e}"),
    "valid": Metric("valid (%)", "{:.1f}", larger_is_better=True),
    "invalid": Metric("invalid (%)", "{:.1f}"),
    "bundles": Metric("bundles", "{:.0f}", larger_is_better=True),
    "overlap": Metric("overlap (%)", "{:.1f}", larger_is_better=True),
    "overreach": Metric("overreach (%)", "{:.1f}"),
    "through_fluid": Metric("through fluid (%)", "{:.1f}"),
    "ends_in_white": Metric("ends in white matter (%)", "{:.1f}"),
    "symmetry": Metric("left against right", "{:.2f}", larger_is_better=True),
    "lines_per_second": Metric("streamlines a second", "{:.0f}", larger_is_better=True, is_cost=True),
    "lost": Metric("fibres lost"),
    "invented": Metric("fibres invented a voxel"),
    "coherence": Metric("coherence", larger_is_better=True),
    "correlation": Metric("correlation", larger_is_better=True),
    "true_correlation": Metric("correlation, true pairs", larger_is_better=True),
    "false_share": Metric("false strength"),
    "false_pairs": Metric("false pairs", "{:.0f}"),
    "speedup": Metric("times faster", "{:.1f}x", larger_is_better=True, is_cost=True),
    "saving": Metric("times less memory", "{:.1f}x", larger_is_better=True, is_cost=True),
    "time_share": Metric("share of the time", "{:.2f}", is_cost=True),
    "memory_share": Metric("share of the memory", is_cost=True),
    "dice_none": Metric("not rotated", "{:.2f}", larger_is_better=True),
    "dice_voxel": Metric("voxels rotated", "{:.2f}", larger_is_better=True),
    "dice_grid": Metric("grid rotated", "{:.2f}", larger_is_better=True),
    "dice_independent": Metric("both, independently", "{:.2f}", larger_is_better=True),
    "dice_joint": Metric("both as one", "{:.2f}", larger_is_better=True),
    "peak_change": Metric("change of the largest peak (°)", "{:.4f}"),
    "count_change": Metric("change of the number of peaks (%)", "{:.2f}"),
    "voxels_changed": Metric("voxels with another number (%)", "{:.2f}"),
    "fod_difference": Metric("difference of the fODFs (%)", "{:.3f}"),
    "pr_area_change": Metric("change of the PR area", "{:.4f}"),
    "training_seconds": Metric("training (s)", "{:.0f} s", is_cost=True),
    "seconds": Metric("time (s)", "{:.0f} s", is_cost=True),
    "peak_gb": Metric("peak memory (GB)", "{:.1f} GB", is_cost=True),
}


@dataclass(frozen=True)
class Figure:
    """One measured value; ``weights_sha`` is empty where no network weights are involved."""

    row: str
    method: str
    metric: str
    value: float
    threads: int
    weights_sha: str = ""


@dataclass(frozen=True)
class Record:
    """One line of a results file."""

    date: str
    commit: str
    weights_sha: str
    machine: str
    threads: int
    row: str
    method: str
    metric: str
    value: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What identifies the figure."""
        return self.row, self.method, self.metric, self.threads if METRICS[self.metric].is_cost else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--save`` and ``--compare`` to a benchmark."""
    parser.add_argument("--save", action="store_true", help="write the figures to results/ beside this script")
    parser.add_argument("--compare", action="store_true", help="exit 1 where a figure is worse than the recorded one")


def command(description: str, *, threads: int = 1) -> argparse.ArgumentParser:
    """Return the parser of a benchmark of methods, with what all of them take; `parse` reads it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--threads", type=int, default=threads)
    add_options(parser)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, and let torch and MRtrix3 use as many threads as it says."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["MRTRIX_NTHREADS"] = str(options.threads)
    return options


def finish(name: str, figures: Iterable[Figure], options: argparse.Namespace, *, on: str = "") -> int:
    """Compare and save the figures of a benchmark as its options ask, and return the exit code.

    ``on`` names the device where it is not the processor.
    """
    new = [Record(date.today().isoformat(), commit(), machine=on or machine(), **asdict(figure)) for figure in figures]
    worse = compare(new, read(name)) if options.compare else []
    if options.compare:
        print("", *worse, f"{len(worse)} of {len(new)} figures are worse than recorded", sep="\n")
    if options.save:
        print(save(name, new))
    return 1 if worse else 0


def compare(new: Sequence[Record], recorded: Sequence[Record]) -> list[str]:
    """Describe each figure that is worse than the recorded one; times and memory of another machine are left out."""
    known = {record.key: record for record in recorded}
    pairs = [(record, known[record.key]) for record in new if record.key in known]
    return [
        f"WORSE {a.row}, {a.method}, {METRICS[a.metric].label}: {a.value:.4g}, recorded {b.value:.4g} ({b.commit})"
        for a, b in pairs
        if METRICS[a.metric].is_worse(a.value, b.value) and (a.machine == b.machine or not METRICS[a.metric].is_cost)
    ]


def read(name: str) -> list[Record]:
    """Return the recorded figures of a benchmark, none where it has no file."""
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return [Record(**{**line, "threads": int(line["threads"]), "value": float(line["value"])}) for line in lines]


def save(name: str, new: Sequence[Record]) -> Path:
    """Replace the recorded figures that were measured again, append those that are new, and return the file."""
    return write(name, list({record.key: record for record in [*read(name), *new]}.values()))


def write(name: str, records: Sequence[Record]) -> Path:
    """Write the figures of a benchmark and return the file."""
    path = FOLDER / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) | {"value": f"{record.value:.5g}"} for record in records)
    return path


def commit() -> str:
    """Return the short hash of the checked-out commit, with ``+`` where files differ from it, empty without git."""
    answers = [
        subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return answers[0].stdout.strip() + ("+" if answers[1].stdout else "")


def machine() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def shipped_weights() -> str:
    """Return the first twelve digits of the SHA-256 of the shipped weights."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]
