"""Gradient tables: shells, repairs, refusals, and the table as a value."""

import itertools
import json

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.errors import GradientError
from shd_bids.gradients.table import GradientTable, gradient_table


def shells_of(bvals, rng) -> list[tuple[float, int]]:
    table = gradient_table(np.array(bvals, float), simulation.uniform_directions(rng, len(bvals), n_steps=5))
    return [(round(shell.bvalue), len(shell.indices)) for shell in table.shells]


def test_bvalues_in_another_unit_are_refused(rng):
    with pytest.raises(GradientError, match="b-values up to 1e\\+06, expected s/mm²"):
        gradient_table(np.r_[0.0, np.full(12, 1e6)], rng.normal(size=(13, 3)))


def test_b_values_around_a_nominal_shell_stay_together(rng):
    """The published code rounds to multiples of 200 and parts 1495 from 1505."""
    nominal = [0, *([1495, 1505] * 10), *([695, 705] * 5)]
    assert shells_of(nominal, rng) == [(0, 1), (700, 10), (1500, 20)]


def test_b0_is_what_lies_at_or_below_the_threshold(rng):
    assert shells_of([0, 5, 45, 50, *[1000] * 10], rng) == [(0, 4), (1000, 10)]
    assert shells_of([0, 5, 45, *[51] * 6, *[1000] * 10], rng) == [(0, 3), (51, 6), (1000, 10)]


def test_shells_part_where_b_jumps_by_more_than_the_tolerance(rng):
    assert shells_of([0, *[1000] * 6, *[1080] * 6], rng) == [(0, 1), (1040, 12)]
    assert shells_of([0, *[1000] * 6, *[1081] * 6], rng) == [(0, 1), (1000, 6), (1081, 6)]


def test_true_b_values_are_kept(rng):
    bvals = np.array([0.0, *rng.normal(2000, 10, 20)])
    table = gradient_table(bvals, simulation.uniform_directions(rng, 21))
    np.testing.assert_array_equal(table.bvals, bvals)
    assert table.shell_bvalues == pytest.approx([0, bvals[1:].mean()])


def test_q_space_grid_is_refused(rng):
    grid = np.array([p for p in itertools.product(range(-4, 5), repeat=3) if 0 < np.dot(p, p) <= 16], float)
    bvals = np.array([0, *(400 * (grid**2).sum(1))])
    with pytest.raises(GradientError, match="do not form shells"):
        gradient_table(bvals, np.concatenate([[[0, 0, 1]], grid]))


@pytest.mark.parametrize("bvals", [np.linspace(100, 3000, 60), np.arange(1, 26).repeat(6) * 76.0])
def test_b_values_that_chain_together_are_no_shell(bvals, rng):
    with pytest.raises(GradientError, match=r"do not form shells: they run on from .*q-space grids"):
        gradient_table(np.r_[0, bvals], simulation.uniform_directions(rng, len(bvals) + 1, n_steps=5))


def test_a_shell_may_scatter_by_a_share_of_its_b_value(rng):
    assert shells_of([0, *np.linspace(9800, 10200, 30)], rng) == [(0, 1), (10000, 30)]


def test_lengths_in_clear_groups_carry_the_b_value(rng):
    """One nominal b; the true ones are b times the square of the length."""
    directions = simulation.uniform_directions(rng, 90, n_steps=5)
    scale = np.sqrt(np.repeat([0.5, 1.0], [30, 60]))[:, None] * rng.uniform(0.998, 1.002, (90, 1))
    bvals = np.r_[0, np.full(90, 2000.0)]
    table = gradient_table(bvals, np.concatenate([np.zeros((1, 3)), directions * scale]))
    assert [(round(s.bvalue, -1), len(s.indices)) for s in table.shells] == [(0, 1), (1000, 30), (2000, 60)]
    assert any("as MRtrix3 does (0.707 at b = 2000: " in note for note in table.notes)
    np.testing.assert_allclose(table.directions[1:], directions)


def test_lengths_that_repeat_the_b_values_do_not_change_them(rng):
    bvals = np.r_[0, np.repeat([1000.0, 2000.0], 20)]
    directions = simulation.uniform_directions(rng, 41, n_steps=5) * np.sqrt(bvals / 2000)[:, None]
    np.testing.assert_array_equal(gradient_table(bvals, directions).bvals, bvals)


def test_lengths_without_groups_are_refused(protocol, rng):
    lengths = rng.uniform(0.3, 1, (32, 1))
    with pytest.raises(GradientError, match="neither 1 nor in groups"):
        gradient_table(protocol.bvals, protocol.directions * lengths)


def test_b0_directions_are_ignored_and_the_rest_normalised(protocol):
    directions = protocol.directions.copy()
    directions[0] = np.nan
    directions[1] = [1, 0, 0]
    directions[5] *= 1.2
    table = gradient_table(protocol.bvals, directions)
    np.testing.assert_allclose(table.directions, protocol.directions, atol=1e-12)
    np.testing.assert_array_equal(table.bvals, protocol.bvals)
    assert "unit length" in table.notes[0]


def test_a_weighted_volume_without_direction_is_dropped_from_table_and_image(protocol):
    directions = protocol.directions.copy()
    directions[7] = 0
    table = gradient_table(protocol.bvals, directions)
    assert table.n_volumes == 31
    assert table.n_source_volumes == 32
    assert 7 not in table.source_volumes
    assert "volume 7 dropped" in table.notes[0]
    image = np.arange(32.0)[None]
    np.testing.assert_array_equal(table.take(image)[0], np.delete(image[0], 7))
    with pytest.raises(GradientError, match="31 volumes"):
        table.take(image[:, 1:])


def test_many_volumes_without_direction_are_refused(protocol):
    directions = protocol.directions.copy()
    directions[4:6] = 0
    with pytest.raises(GradientError, match="2 of 30 weighted volumes have no direction"):
        gradient_table(protocol.bvals, directions)


def flat(directions):
    """Return unit vectors in the xy plane, zero where they were."""
    plane = directions * [1, 1, 0]
    return plane / np.maximum(np.linalg.norm(plane, axis=1, keepdims=True), 1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, d: (b[2:], d[2:]), "no b=0 volume"),
        (lambda b, d: (np.zeros_like(b), d), "no diffusion weighting"),
        (lambda b, d: (np.where(b > 0, np.nan, b), d), "b-values of 30 volumes .* not finite"),
        (lambda b, d: (np.where(b == 0, -5, b), d), "b-values of 2 volumes .* are negative"),
        (lambda b, d: (b, np.where(d == d[3], np.nan, d)), "directions of volume 3 are not finite"),
        (lambda b, d: (b[:7], d[:7]), "5 different gradient directions, expected at least 6"),
        (lambda b, d: (b, np.where(d.any(1, keepdims=True), d[2], 0)), "1 different gradient direction"),
        (lambda b, d: (b, flat(d)), "cone or plane"),
        (lambda b, d: (b[:-1], d), "expected \\(N,\\) and \\(N, 3\\)"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(protocol, change, message):
    with pytest.raises(GradientError, match=message) as caught:
        gradient_table(*change(protocol.bvals, protocol.directions))
    assert len(caught.value.problems) == 1


def test_json_holds_the_table_without_loss(protocol):
    again = GradientTable.from_dict(json.loads(json.dumps(protocol.to_dict())))
    np.testing.assert_array_equal(again.directions, protocol.directions)
    np.testing.assert_array_equal(again.bvals, protocol.bvals)
    np.testing.assert_array_equal(again.shell_index, protocol.shell_index)
    assert again.to_dict() == protocol.to_dict()


def test_selection_keeps_rows_and_shells(rng):
    table = simulation.make_gradients(rng, {1000.0: 20, 2000.0: 30}, n_b0=3)
    part = table.select(np.r_[0, 1, 3:13, 30:40])
    assert [(s.bvalue, len(s.indices)) for s in part.shells] == [(0, 2), (1000, 10), (2000, 10)]
    np.testing.assert_array_equal(part.directions, table.directions[np.r_[0, 1, 3:13, 30:40]])
    np.testing.assert_array_equal(part.bvals[part.shell_index == 2], 2000)
    np.testing.assert_array_equal(table.select(table.bvals < 1500).bvals, table.bvals[:23])
    with pytest.raises(GradientError, match="no b=0"):
        table.select(np.arange(5, 10))
