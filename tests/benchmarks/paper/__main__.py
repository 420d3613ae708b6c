"""Run an experiment of the paper; what is done already is not done again.

    python -m tests.benchmarks.paper NAME [--seeds 5] [--scale small|full] [--device cpu] [--minutes M] [--save]

One result a method, row and seed is kept in ``--cache``. ``--minutes`` starts no further one after that time and ends with 75
where some are left; the same call goes on. ``--save`` writes ``tests/benchmarks/results/paper_NAME.csv`` and the figure
``docs/paper/NAME.png`` from all that is there.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import results
import torch

from tests.benchmarks.paper.base import Done, Experiment, Settings
from tests.benchmarks.paper.experiments import EXPERIMENTS
from tests.benchmarks.paper.record import claims, figures, table

CACHE = results.ROOT / "build" / "paper"
FIGURES = results.ROOT / "docs" / "paper"
MORE = 75
"""Exit code where units of work are left."""


def main(words: Sequence[str] | None = None) -> int:
    """Do what is left of an experiment, and record and print it."""
    options = _parser().parse_args(words)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    experiment = EXPERIMENTS[options.name]
    settings = Settings(options.seeds, options.scale, options.device, options.cache)
    left = work(_chosen(experiment.kept(settings), options), options.minutes)
    if options.save:
        _save(experiment, settings, options)
    return MORE if left else 0


def work(units: Sequence[Done], minutes: float) -> int:
    """Do the units of work that have no outcome until the time is over, and return how many are left."""
    began = time.monotonic()
    todo = [item for item in units if not item.is_kept]
    for number, item in enumerate(todo):
        if time.monotonic() - began > 60 * minutes:
            return len(todo) - number
        item.keep(item.unit.run())
        print(f"{item.unit.name} {' '.join(f'{k}={v:.4g}' for k, v in item.values.items())}", flush=True)
    return 0


def _chosen(units: Sequence[Done], options: argparse.Namespace) -> list[Done]:
    names, rows = options.methods, options.rows
    return [d for d in units if (not names or d.unit.method in names) and (not rows or d.unit.row in rows)]


def _save(experiment: Experiment, settings: Settings, options: argparse.Namespace) -> None:
    """Write results and figure of all that is kept, and print the tables."""
    done = [item for item in experiment.kept(settings) if item.is_kept]
    on = torch.cuda.get_device_name() if settings.device == "cuda" else ""
    results.finish(experiment.source, figures(done, settings.scale, threads=options.threads), options, on=on)
    if experiment.draw and done:
        FIGURES.mkdir(parents=True, exist_ok=True)
        experiment.draw(done, FIGURES / f"{experiment.name}.png")
    print(*table(experiment, settings.scale), "", *claims(experiment, settings.scale), sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--threads", type=int, default=1)
    results.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
