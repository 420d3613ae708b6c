"""Volumes against their shell and their table: what is dropped, what is told, and what stops."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.errors import GradientError
from shd_bids.gradients.table import gradient_table
from shd_bids.gradients.volumes import check_volumes

MASK = np.ones((12, 12, 12), bool)


@pytest.fixture
def table(rng):
    return simulation.make_gradients(rng, {1000.0: 15, 2000.0: 15}, n_b0=6)


@pytest.fixture
def signal(rng, table):
    """Tissue of different brightness, diffusivity and direction, with noise, shape (12, 12, 12, 36)."""
    brightness, diffusivity = rng.uniform(400, 1200, (12, 12, 12, 1)), rng.uniform(0.3e-3, 0.8e-3, (12, 12, 12, 1))
    fibres = rng.normal(size=(12, 12, 12, 3))
    along = (fibres @ table.directions.T / np.linalg.norm(fibres, axis=-1, keepdims=True)) ** 2
    attenuation = np.exp(-table.bvals * (diffusivity + 0.5e-3 * along))
    return brightness * attenuation + rng.normal(0, 15, (12, 12, 12, table.n_volumes))


def of_shell(table, number, count):
    return table.shells[number].indices[:count]


def test_volumes_that_fit_leave_the_table_as_it_is(signal, table):
    assert check_volumes(signal, MASK, table).to_dict() == table.to_dict()


@pytest.mark.parametrize("shell", [0, 1, 2])
@pytest.mark.parametrize("part", [slice(None), slice(6), slice(1)])
def test_few_empty_volumes_are_named_and_dropped(signal, table, shell, part):
    (row,) = of_shell(table, shell, 1)
    signal[:, :, part, row] = 0
    kept = check_volumes(signal, MASK, table)
    assert kept.source_volumes.tolist() == np.delete(np.arange(36), row).tolist()
    assert kept.n_source_volumes == 36
    assert f"1 of 36 volumes dropped: volume {row} is empty" in kept.notes[-1]
    np.testing.assert_array_equal(kept.bvals, np.delete(table.bvals, row))


@pytest.mark.parametrize(("shell", "count"), [(1, 8), (0, 3), (0, 6)])
def test_many_empty_volumes_stop(signal, table, shell, count):
    signal[..., of_shell(table, shell, count)] = 0
    with pytest.raises(GradientError, match=f"{count} of .* volumes do not fit their shell .*is empty"):
        check_volumes(signal, MASK, table)


def test_a_volume_of_noise_or_of_another_level_is_dropped(signal, table, rng):
    noisy, loud = of_shell(table, 2, 2)
    signal[..., noisy] = rng.permutation(signal[..., noisy].ravel()).reshape(MASK.shape)
    signal[..., loud] *= 1.5
    kept = check_volumes(signal, MASK, table)
    assert set(range(36)) - set(kept.source_volumes) == {noisy, loud}
    assert "does not resemble its shell" in kept.notes[-1]


def test_an_exchanged_pair_is_named(signal, table):
    b0, weighted = table.b0_indices[2], table.shells[2].indices[4]
    signal[..., [b0, weighted]] = signal[..., [weighted, b0]]
    kept = check_volumes(signal, MASK, table)
    assert set(range(36)) - set(kept.source_volumes) == {b0, weighted}
    assert "look exchanged" in kept.notes[-1]


def test_weighted_volumes_brighter_than_b0_stop(signal, table):
    signal[..., table.bvals > 0] *= 3
    with pytest.raises(GradientError, match="times as bright as those of b=0"):
        check_volumes(signal, MASK, table)


def test_two_levels_of_b0_are_told(signal, table):
    second = np.r_[table.b0_indices[3:], table.shells[1].indices[7:], table.shells[2].indices[7:]]
    signal[..., second] *= 1.6
    kept = check_volumes(signal, MASK, table)
    assert kept.n_volumes == 36
    first, *others = kept.notes
    assert first.startswith("the volumes of b = 0 s/mm² have two levels")
    assert "(volume 0, 1, 2)" in first
    assert all("two levels" in note for note in others)


def test_noise_and_a_mask_over_air_are_told(table, rng):
    air = np.abs(rng.normal(0, 20, (12, 12, 12, 36)))
    notes = " ".join(check_volumes(air, MASK, table).notes)
    assert "hardly darker" in notes
    assert "no more than noise" in notes


def test_a_signal_that_falls_faster_than_water_is_told(signal, table):
    signal[..., table.bvals > 0] *= 0.01
    assert any("less than free water keeps" in note for note in check_volumes(signal, MASK, table).notes)


def test_shells_with_each_others_labels_stop(signal, table):
    low, high = table.shells[1].bvalue, table.shells[2].bvalue
    bvals = np.where(table.bvals == low, high, np.where(table.bvals == high, low, table.bvals))
    exchanged = gradient_table(bvals, table.directions)
    with pytest.raises(GradientError, match=r"b = 2000 .* times as bright as those of b = 1000"):
        check_volumes(signal, MASK, exchanged)


@pytest.mark.parametrize(("factor", "words"), [(10, "more than living tissue keeps"), (0.1, "less than free water")])
def test_b_values_of_another_unit_are_told(signal, table, factor, words):
    notes = check_volumes(signal, MASK, gradient_table(factor * table.bvals, table.directions)).notes
    assert any(words in note and "another unit" in note for note in notes)


def test_values_far_above_all_others_are_told(signal, table):
    signal[3, 3, 3, 7] *= 1000
    assert "1 value inside the mask above" in " ".join(check_volumes(signal, MASK, table).notes)


def test_a_mirrored_volume_of_a_small_shell_is_dropped(rng):
    """Ten directions are too few to judge one of them by the model of the others."""
    table = simulation.make_gradients(rng, {1000.0: 10}, n_b0=2)
    x, y, z = np.indices((12, 12, 12))
    brightness = 400 + 60.0 * x + 20 * (y > 4) * z
    attenuation = np.exp(-table.bvals * (0.5e-3 + 0.5e-3 * (table.directions @ [0.6, 0.8, 0]) ** 2))
    signal = brightness[..., None] * attenuation + rng.normal(0, 15, (12, 12, 12, 12))
    row = table.shells[1].indices[3]
    signal[..., row] = signal[::-1, :, :, row]
    kept = check_volumes(signal, MASK, table)
    assert row not in kept.source_volumes
    assert f"volume {row} does not resemble its shell" in " ".join(kept.notes)
