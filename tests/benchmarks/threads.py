"""Time folds of a cross-validation on one thread each against all threads for each operation, alone and on a busy machine.

    python tests/benchmarks/threads.py [--threads 2] [--turns 5] [--save] [--compare]

A fold decomposes a kernel by numpy and updates lobe weights by torch, as in the refinement. The busy machine has one more process
that computes all the time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import results
import torch
from engine import take_turns
from results import Figure

from shd_bids.solvers import ISRA, low_rank
from shd_bids.threads import run_on_threads

_N_PIECES, _VOXELS, _VOLUMES, _ATOMS, _UPDATES = 10, 200, 300, 768, 32
_BUSY = "while True: pass"


def main() -> int:
    """Time both ways, and print and record how many times faster the package's is."""
    parser = results.command(__doc__)
    parser.add_argument("--turns", type=int, default=5, help="of which the least time counts")
    options = results.parse(parser)
    one_each, all_for_each = _ways()
    figures = []
    for row, n_busy in (("alone", 0), ("beside a busy process", 1)):
        with _busy(n_busy):
            slow, fast = take_turns(options.turns, all_for_each, one_each)
        print(f"{row:<24} {1e3 * slow:.0f} ms / {1e3 * fast:.0f} ms = {slow / fast:.2f}x", flush=True)
        name = f"{_N_PIECES} folds of {_VOXELS} voxels, {row}"
        figures.append(Figure(name, "one thread each", "speedup", slow / fast, options.threads))
    return results.finish("threads", figures, options)


def _ways() -> tuple[Callable[[], object], Callable[[], object]]:
    rng = np.random.default_rng(0)
    kernel = rng.random((_VOLUMES, _ATOMS))
    signals = torch.as_tensor(rng.random((_N_PIECES, _VOXELS, _VOLUMES)), dtype=torch.float32)

    def fold(piece: int) -> torch.Tensor:
        isra = ISRA.build(low_rank(kernel))
        return isra(torch.ones(_VOXELS, _ATOMS), signals[piece], n_updates=_UPDATES, momentum=True)

    return lambda: run_on_threads(fold, range(_N_PIECES)), lambda: list(map(fold, range(_N_PIECES)))


@contextmanager
def _busy(n_processes: int):
    """Keep processes computing meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
