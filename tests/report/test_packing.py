"""Arrays of the page come back as they were put in, within what their bits hold."""

import numpy as np
import pytest

from shd_bids.report.packing import levels, packed, steps, unpacked


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32"])
def test_arrays_come_back_with_shape_and_type(kind):
    values = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(kind)
    back = unpacked(packed(values))
    assert back.shape == values.shape
    np.testing.assert_array_equal(back, values)


def test_first_axis_runs_fastest():
    flat = unpacked(packed(np.array([[1, 2], [3, 4]], dtype=np.uint8))).ravel(order="F")
    np.testing.assert_array_equal(flat, [1, 3, 2, 4])


def test_types_that_the_script_does_not_know_are_refused():
    with pytest.raises(TypeError, match="float64"):
        packed(np.zeros(3))


def test_levels_keep_values_within_half_a_step_and_zero_for_what_is_absent():
    values = np.array([2.0, 2.5, 4.0, np.nan, 9.0, -1.0])
    coded = levels(values, 2.0, 4.0)
    assert coded[3] == 0
    np.testing.assert_array_equal(coded[[0, 2, 4, 5]], [1, 255, 255, 1])
    assert abs(2.0 + (int(coded[1]) - 1) / 254 * 2.0 - 2.5) <= 0.5 * 2.0 / 254


def test_steps_add_up():
    numbers = np.array([3, 3, 10, 400_000])
    np.testing.assert_array_equal(np.cumsum(unpacked(steps(numbers))), numbers)
