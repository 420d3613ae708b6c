"""Sharp non-negative estimates: the recursion is that of alternating directions, and its limit least squares."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from shd_bids import solvers
from shd_bids.solvers import ADMM, ISRA, low_rank


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(20, 30)) @ np.diag(rng.uniform(0.2, 2, 30))
    kernel[:, -1] = 0  # a tissue without a response
    truth = np.where(rng.random((7, 30)) < 0.1, rng.uniform(0.2, 1, (7, 30)), 0)
    return kernel, truth @ kernel.T + 0.01 * rng.normal(size=(7, 20))


def test_a_kernel_that_divide_and_conquer_cannot_decompose(problem, monkeypatch):
    def fails(*arguments, **options):
        raise np.linalg.LinAlgError("SVD did not converge")

    usual = low_rank(problem[0])
    monkeypatch.setattr(np.linalg, "svd", fails)
    left, values, right = low_rank(problem[0])
    np.testing.assert_allclose(values, usual.values)
    np.testing.assert_allclose(left * values @ right, problem[0], atol=1e-12)


def test_it_is_textbook_alternating_directions(problem):
    kernel, signal = problem
    penalty, relaxation = 0.3, 1.6
    found = ADMM.build(low_rank(kernel), penalty, dtype=torch.float64)(torch.as_tensor(signal))
    inverse = np.linalg.inv(kernel.T @ kernel + penalty * np.eye(30))
    copy = multipliers = np.zeros((7, 30))
    for _ in range(solvers.ROUNDS):
        free = (signal @ kernel + penalty * (copy - multipliers)) @ inverse
        relaxed = relaxation * free + (1 - relaxation) * copy
        copy, multipliers = (relaxed + multipliers).clip(0), (relaxed + multipliers).clip(None, 0)
    np.testing.assert_allclose(found, copy, atol=1e-10)


def test_its_limit_is_the_non_negative_least_squares_solution(problem, monkeypatch):
    kernel, signal = problem
    monkeypatch.setattr(solvers, "ROUNDS", 3000)
    found = ADMM.build(low_rank(kernel), 0.3, dtype=torch.float64)(torch.as_tensor(signal)).numpy()
    assert found.min() >= 0
    for weights, y in zip(found, signal, strict=True):
        best = nnls(kernel, y)[1]
        assert np.linalg.norm(kernel @ weights - y) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_chunks_do_not_matter(problem, monkeypatch):
    kernel, signal = problem
    sharpen = ADMM.build(low_rank(kernel), 0.3, dtype=torch.float64)
    whole = sharpen(torch.as_tensor(signal))
    monkeypatch.setattr(solvers, "VOXELS_IN_CACHE", 3)
    torch.testing.assert_close(sharpen(torch.as_tensor(signal)), whole)
    assert sharpen(torch.zeros(0, 20, dtype=torch.float64)).shape == (0, 30)


def test_updates_are_multiplicative_ones_and_never_fit_worse(problem):
    kernel, signal = np.abs(problem[0]), np.abs(problem[1])  # responses and magnitudes are positive
    start = np.random.default_rng(1).uniform(0.1, 1, size=(7, 30))
    start[:, 4] = 0
    update = ISRA.build(low_rank(kernel), dtype=torch.float64)
    expected, costs = start.copy(), []
    for times in range(1, 6):
        expected *= (signal @ kernel) / (expected @ kernel.T @ kernel).clip(1e-6)
        found = update(torch.as_tensor(start.copy()), torch.as_tensor(signal), n_updates=times).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
        costs.append(((found @ kernel.T - signal) ** 2).sum(axis=1))
    assert np.all(np.diff(costs, axis=0) <= 0) and np.all(found[:, 4] == 0)


def test_momentum_reaches_the_same_limit_sooner(problem):
    kernel, signal = np.abs(problem[0]), np.abs(problem[1])
    update = ISRA.build(low_rank(kernel), dtype=torch.float64)
    best = np.array([nnls(kernel, y)[1] for y in signal])

    def excess(times, **options):
        weights = update(
            torch.full((7, 30), 0.1, dtype=torch.float64), torch.as_tensor(signal), n_updates=times, **options
        )
        return np.linalg.norm(weights.numpy() @ kernel.T - signal, axis=1) - best

    assert np.all(excess(200, momentum=True) < excess(200)) and np.all(excess(200, momentum=True) >= -1e-12)
    assert np.all(excess(5000, momentum=True) < 0.005)


def test_rounded_maps_give_what_exact_ones_do_but_for_rounding(problem):
    kernel, signal = problem
    rows = torch.as_tensor(signal, dtype=torch.float32)
    exact, rounded = (
        ISRA.build(low_rank(kernel), dtype=dtype)(rows.new_ones(len(rows), kernel.shape[1]), rows, n_updates=20)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    predicted, again = (weights @ torch.as_tensor(kernel.T, dtype=torch.float32) for weights in (exact, rounded))
    assert (again - predicted).norm() < 0.01 * predicted.norm()
