"""Independent pieces of work side by side, one thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import ParamSpec, TypeVar

import torch
from threadpoolctl import threadpool_limits

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Given = ParamSpec("Given")


def on_one_blas_thread(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Hold the linear algebra of numpy and scipy to one thread while a function runs, which has small matrices only."""
    limited: Callable[Given, Result] = threadpool_limits.wrap(limits=1, user_api="blas")(function)
    return limited


def run_on_threads(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """Return the results of pieces of work in their order, computed on as many threads as torch may use, one for each piece.

    Operations on small arrays are too short to be split among threads: these wait for one another after each, and where
    other processes hold a core, for long (measured: tests/benchmarks/threads.py). That is so of the linear algebra of numpy in
    particular, which has one thread throughout.
    """
    n_threads = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas"):
        if n_threads == 1 or len(pieces) < 2:
            return list(map(work, pieces))
        try:
            with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(_as_here(work), pieces))
        finally:
            torch.set_num_threads(n_threads)


def reporting(
    work: Callable[[Piece], Result], n_pieces: int, progress: Callable[[float], None] | None
) -> Callable[[Piece], Result]:
    """Return what does the work and then tells the share of the pieces that are done, in whatever thread."""
    if progress is None:
        return work
    done = count(1)  # its steps are atomic

    def work_and_report(piece: Piece) -> Result:
        result = work(piece)
        progress(next(done) / n_pieces)
        return result

    return work_and_report


def _as_here(work: Callable[[Piece], Result]) -> Callable[[Piece], Result]:
    """Return what does the work in another thread with or without gradients as in this one."""
    with_gradients, inferring = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work_there(piece: Piece) -> Result:
        with torch.inference_mode(inferring), torch.set_grad_enabled(with_gradients):
            return work(piece)

    return work_there
