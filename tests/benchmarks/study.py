"""How long a call takes that finds a whole study done: nothing but looking.

    python -m tests.benchmarks.study --n 500 --folder DIR

One simulated series is processed, and its input and outputs are copied to the other participants. Time is that of the
processor, least of three calls; that of the clock is printed beside it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.results import Figure, command, finish, parse
from tests.phantoms import head, write_head

FIRST = "0001"
CALLS = 3


def main() -> int:
    """Make the study where it is not there yet, and time calls on it."""
    parser = command(__doc__)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--folder", type=Path, required=True)
    options = parse(parser)
    raw, out = make_study(options.folder, options.n)
    times = [timed(raw, out, options.n) for _ in range(CALLS)]
    processor, clock = min(times)
    print(f"{options.n} finished series: {processor:.1f} s of the processor, {clock:.1f} s")
    return finish("study", [Figure(f"{options.n} finished series", "second start", "seconds", processor, 1)], options)


def make_study(folder: Path, n: int) -> tuple[Path, Path]:
    """Return input and outputs of a study of ``n`` series that are done."""
    raw, out = folder / "raw", folder / "out"
    if (out / f"sub-{n:04d}").exists():
        return raw, out
    if out.exists():
        raise SystemExit(f"{folder} holds part of a study; remove it")
    write_head(raw, *head(np.random.default_rng(1), size=9, shells={1000.0: 16})[:2], subject=FIRST)
    subprocess.run(words(raw, out), check=True)
    for number in range(2, n + 1):
        copy_subject(raw, f"{number:04d}")
        copy_subject(out, f"{number:04d}")
    return raw, out


def words(raw: Path, out: Path) -> list[str]:
    """Return the call."""
    call = [sys.executable, "-m", "shd_bids", str(raw), str(out), "participant", "--level", "peaks", "--sloppy"]
    return [*call, "--skip-bids-validation", "--nprocs", "1", "--device", "cpu"]


def copy_subject(root: Path, label: str) -> None:
    """Copy all files of the first participant below a folder, with its label changed in names and texts."""
    places = [root / f"sub-{FIRST}", root / ".stages" / f"sub_{FIRST}"]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        target = root / Path(str(path.relative_to(root)).replace(FIRST, label))
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".json", ".html", ".tsv", ".toml"):
            target.write_text(path.read_text("utf-8").replace(FIRST, label), "utf-8")
            shutil.copystat(path, target)
        else:
            os.link(path, target)


def timed(raw: Path, out: Path, n: int) -> tuple[float, float]:
    """Return seconds of the processor and of the clock of a call that must find everything done."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = subprocess.run(words(raw, out), check=True, capture_output=True, text=True, env=os.environ).stderr
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if f"{n} of {n} series done, all by earlier calls" not in told:
        raise RuntimeError(told[-2000:])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock


if __name__ == "__main__":
    sys.exit(main())
