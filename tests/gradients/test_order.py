"""The order of volumes against that of their directions: what is told of shells that are in another, and of pairs."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.gradients.order import _Fit, check_order


@pytest.fixture
def table(rng):
    return simulation.make_gradients(rng, {1000.0: 13, 2500.0: 40}, n_b0=2)


@pytest.fixture
def values(rng, table):
    """Signal of fibres in all directions, with noise, shape (3000, N)."""
    fibres = rng.normal(size=(3000, 3))
    along = (fibres @ table.directions.T / np.linalg.norm(fibres, axis=1, keepdims=True)) ** 2
    return np.exp(-table.bvals * (0.2e-3 + 1.5e-3 * along)) + rng.normal(0, 0.05, (3000, table.n_volumes))


def test_the_right_order_passes(values, table):
    assert check_order(values, table) == ({}, [], [])


@pytest.mark.parametrize("shell", [1, 2])
def test_an_exchanged_pair_is_named(values, table, shell):
    directions = table.directions[table.shells[shell].indices]
    partner = np.abs(directions @ directions[3]).argmin()
    first, second = table.shells[shell].indices[[3, partner]]
    values[:, [first, second]] = values[:, [second, first]]
    reasons, problems, doubts = check_order(values, table)
    assert reasons == {first: f"has the direction of volume {second}", second: f"has the direction of volume {first}"}
    assert not problems + doubts


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda rows: rows[::-1], "in reverse"),
        (lambda rows: np.roll(rows, 1), "one volume earlier"),
        (lambda rows: np.roll(rows, -1), "one volume later"),
    ],
)
def test_another_order_of_a_shell_is_named(values, table, change, name):
    rows = table.shells[2].indices
    values[:, rows] = values[:, change(rows)]
    _, problems, _ = check_order(values, table)
    assert len(problems) == 1
    assert f"b = 2500 s/mm² fit the directions of the table taken {name}" in problems[0]


def test_a_shuffled_shell_and_noise_are_doubtful(values, table, rng):
    rows = table.shells[2].indices
    values[:, rows] = values[:, rng.permutation(rows)]
    values[:, table.shells[1].indices] = rng.normal(1, 0.1, (3000, 13))
    reasons, problems, doubts = check_order(values, table)
    assert not reasons
    assert not problems
    assert [f"b = {bvalue}" in doubt for bvalue, doubt in zip((1000, 2500), doubts, strict=True)] == [True, True]


def test_a_volume_that_the_others_do_not_predict_is_named(values, table, rng):
    row = table.shells[2].indices[5]
    values[:, row] = values[rng.permutation(3000), row]
    reasons, problems, doubts = check_order(values, table)
    assert list(reasons) == [row]
    assert "from what the others predict" in reasons[row]
    assert not problems + doubts


def test_what_exchanges_leave_is_what_each_order_leaves(values, table, rng):
    rows = table.shells[1].indices
    fit = _Fit.of(values[:, rows], table.directions[rows])
    order = rng.permutation(13)
    for first, second in ((0, 1), (7, 3), (12, 5)):
        changed = order.copy()
        changed[[first, second]] = order[[second, first]]
        assert fit.with_exchanges(order)[first, second] == pytest.approx(fit.unexplained(changed))
