"""Independent pieces of work side by side, one thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def run_on_threads(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """Return the results of pieces of work in their order, computed on as many threads as torch may use, one for each piece.

    Operations on small arrays are too short to be split among threads: these wait for one another after each, and where
    other processes hold a core, for long (measured: tests/benchmarks/threads.py).
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1 or len(pieces) < 2:
        return list(map(work, pieces))
    try:
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            return list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(n_threads)
