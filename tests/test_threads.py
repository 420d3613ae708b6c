"""Pieces of work side by side: their order, their threads, their errors."""

import threading

import pytest
import torch
from threadpoolctl import threadpool_info

from shd_bids.threads import on_one_blas_thread, run_on_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_results_keep_the_order_of_the_pieces_whichever_ends_first(two_threads):
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_done.wait(20)  # would never end if the pieces ran one after another
        if number == 1:
            second_done.set()
        return number**2

    assert run_on_threads(work, range(5)) == [0, 1, 4, 9, 16]


def test_each_piece_has_one_thread_and_those_after_have_all(two_threads):
    before = blas_threads()
    found = run_on_threads(lambda _: (torch.get_num_threads(), blas_threads()), range(4))
    assert found == [(1, {1})] * 4
    assert torch.get_num_threads() == 2 and blas_threads() == before


def test_a_single_piece_has_all_threads(two_threads):
    assert run_on_threads(lambda _: torch.get_num_threads(), [0]) == [2]


def test_the_error_of_a_piece_is_raised_and_the_threads_are_given_back(two_threads):
    def work(number: int) -> None:
        if number == 3:
            raise ValueError("piece 3")

    with pytest.raises(ValueError, match="piece 3"):
        run_on_threads(work, range(6))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_pieces_compute_gradients_where_the_caller_does(two_threads, mode):
    def state(_: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        assert run_on_threads(state, range(3)) == [state(0)] * 3


def test_linear_algebra_has_one_thread_for_as_long_as_the_function_runs():
    before = blas_threads()

    @on_one_blas_thread
    def found(number: int) -> tuple[int, set[int]]:
        """Return what is given."""
        return number, blas_threads()

    assert found(3) == (3, {1})
    assert blas_threads() == before and found.__doc__ == "Return what is given."
