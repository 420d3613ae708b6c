"""A simulated study of two sites by the whole app, to the end: what is told, used again, flagged, and made equal.

    python -m tests.benchmarks.sites --folder DIR [--only study density] [--size 10] [--save] [--compare]

``study``: the twelve subjects of ``tests/two_sites.py`` to the peaks, the same call again, a call with another peak
threshold, and the group level. ``density``: two subjects of each site by the path in two passes (``--level response``,
``group``, ``--responses group --normalise ...``), and the difference between the sites of the median total fibre density
in white matter, in percent; *own* has responses of each subject. Sites have other protocols, or one whose sidecars do
not tell them apart; the second has a gain of 1.7, or a bias field too. A folder may be
given again: the app goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from shd_bids.simulation.signal import bias_field
from tests import two_sites
from tests.benchmarks import results
from tests.benchmarks.results import Figure
from tests.bids_trees import write_description

MODES = ("off", "global", "bias")
SUBJECTS = ("A1", "A2", "B1", "B2")
MAP = "sub-{0}/dwi/sub-{0}_space-orig_model-shdtv_param-{1}_dwimap.nii.gz"
WHITE = 0.7  # share of the signal
BIAS = 0.25  # of the logarithm
THRESHOLD = ("--peak-relative-threshold", "0.2")


@dataclass(frozen=True)
class Call:
    """What a call of the app returned, took and told; seconds are those of the processor."""

    code: int
    seconds: float
    clock: float
    told: str


def main() -> int:
    """Run the parts asked for, and print and record their figures."""
    options = _options()
    parts = {"study": study, "density": density}
    figures = [figure for name in options.only for figure in parts[name](options)]
    for figure in figures:
        print(f"{figure.row}, {figure.method}: {results.METRICS[figure.metric].label} {figure.value:.4g}", flush=True)
    return results.finish("sites", figures, options)


def study(options: argparse.Namespace) -> list[Figure]:
    """Take the twelve subjects to the peaks and the group level, and return what every call did."""
    raw, out = options.folder / "study" / "raw", options.folder / "study" / "out"
    if not raw.exists():
        two_sites.write_study(raw, size=options.size)
    calls = {"first start": (), "second start": (), "new peak threshold": THRESHOLD}
    figures = []
    for name, words in calls.items():
        computed = stages(raw, out, *words)
        told = participants(raw, out, "peaks", *words)
        print(f"{name}: code {told.code}, {told.clock:.1f} s by the clock, computed {computed}", flush=True)
        print("\n".join(line for line in told.told.splitlines() if "ERROR" in line), flush=True)
        values = {"exit_code": told.code, "stages": sum(computed.values()), "seconds": told.seconds}
        figures += [Figure(name, "app", metric, value, options.threads) for metric, value in values.items()]
    told = app(raw, out, "group", "--group-by", "site")
    print(told.told, flush=True)
    return [*figures, *_flagged(out, options), Figure("group level", "app", "seconds", told.seconds, options.threads)]


def _flagged(out: Path, options: argparse.Namespace) -> list[Figure]:
    """Return how many of the series that were made outliers are flagged, and of the others."""
    lines = (out / "group_desc-shdtv_qc.tsv").read_text("utf-8").splitlines()
    table = list(csv.DictReader(lines, delimiter="\t"))
    found = {row["series"] for row in table if row["outlier_in"] != "n/a"}
    made = {two_sites.NOISY, two_sites.BRIGHT}
    counts = {"flagged": len(found & made), "falsely_flagged": len(found - made)}
    print(*(f"{row['series']}: {row['outlier_in']}" for row in table if row["series"] in found), sep="\n", flush=True)
    return [Figure("2 outliers among 14 series", "app", metric, n, options.threads) for metric, n in counts.items()]


def density(options: argparse.Namespace) -> list[Figure]:
    """Return the difference of fibre density between sites, for each study and way to process it."""
    field = bias_field(np.random.default_rng(3), (options.size,) * 3, BIAS)[..., None]
    cases = {
        f"{protocols}, {harm}": (is_told_apart, factor)
        for protocols, is_told_apart in (("other protocols", True), ("one protocol", False))
        for harm, factor in (("gain 1.7", two_sites.GAINS["B"]), ("gain 1.7 and bias", two_sites.GAINS["B"] * field))
    }
    figures = []
    for number, (row, (is_told_apart, factor)) in enumerate(cases.items()):
        raw = options.folder / f"density{number}" / "raw"
        if not raw.exists():
            _write_sites(raw, factor=factor, is_told_apart=is_told_apart, size=options.size)
        for mode, difference in _differences(raw).items():
            figures.append(Figure(row, mode, "density_difference", difference, options.threads, options.sha))
    return figures


def _write_sites(raw: Path, *, factor: np.ndarray | float, is_told_apart: bool, size: int) -> None:
    """Write two subjects of each site; the signal of the second site is multiplied by a factor."""
    write_description(raw)
    rng = np.random.default_rng(11)
    for subject in SUBJECTS:
        site = subject[0] if is_told_apart else "A"
        clean, table = two_sites.head(two_sites.PROTOCOLS[site], size=size)
        signal = two_sites.noisy(clean, rng, snr=two_sites.SNR) * (factor if subject[0] == "B" else 1.0)
        two_sites.write_scan(raw, f"sub-{subject}", signal, table, site=site if is_told_apart else "")


def _differences(raw: Path) -> dict[str, float]:
    """Return by the way of processing the difference of the median fibre density between sites, in percent."""
    own, out = raw.parent / "own", raw.parent / "out"
    require(participants(raw, own, "fod"))
    white = nib.load(own / MAP.format(SUBJECTS[0], "vfwm")).get_fdata() > WHITE
    found = {"own": difference(own, white)}
    require(participants(raw, out, "response"))
    require(app(raw, out, "group"))
    for mode in MODES:
        require(participants(raw, out, "fod", "--responses", "group", "--normalise", mode))
        found[mode] = difference(out, white)
    return found


def difference(out: Path, white: np.ndarray) -> float:
    """Return how much the median fibre density of the second site differs from that of the first, in percent."""
    medians = {
        name: float(np.median(nib.load(out / MAP.format(name, "wm")).dataobj[..., 0][white])) for name in SUBJECTS
    }
    first, second = (np.mean([value for name, value in medians.items() if name[0] == site]) for site in "AB")
    return 100 * abs(second / first - 1)


def stages(raw: Path, out: Path, *words: str) -> Mapping[str, int]:
    """Return how many series a call would compute, by the name of the stage."""
    plan = json.loads(participants(raw, out, "peaks", *words, "--dry-run=json", keep="stdout").told)
    counts: dict[str, int] = {}
    for item in plan["series"]:
        for stage, state in item["stages"].items():
            counts[stage] = counts.get(stage, 0) + (state == "computed")
    return counts


def participants(raw: Path, out: Path, level: str, *words: str, keep: str = "stderr") -> Call:
    """Call the participant level."""
    return app(raw, out, "participant", "--skip-bids-validation", "--level", level, *words, keep=keep)


def app(raw: Path, out: Path, *words: str, keep: str = "stderr") -> Call:
    """Call the app with one processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call = [sys.executable, "-m", "shd_bids", str(raw), str(out), *words, "--nprocs", "1", "--device", "cpu"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Call(done.returncode, seconds, clock, getattr(done, keep))


def require(call: Call) -> None:
    """Stop where a call did not do all."""
    if call.code:
        raise RuntimeError(call.told[-2000:])


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=("study", "density"), default=["study", "density"])
    parser.add_argument("--size", type=int, default=10, help="of the head, voxels")
    options = results.parse(parser)
    options.sha = results.shipped_weights()
    return options


if __name__ == "__main__":
    sys.exit(main())
