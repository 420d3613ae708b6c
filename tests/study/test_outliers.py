"""Who stands out: those that were moved, on their bad side, in groups that are large enough, and hardly anyone else."""

import numpy as np
import pytest

from shd_bids.study.outliers import FEWEST, find_outliers, limit, out_of_range


def group(n, rng, **moved):
    """Values of n series of two columns, some of them moved: ``snr=(number, value)``."""
    values = {
        f"sub-{i:02d}": {"snr": 25 + 2 * rng.normal(), "response_wm_b0": 900 + 40 * rng.normal()} for i in range(n)
    }
    for column, (number, value) in moved.items():
        values[f"sub-{number:02d}"][column] = value
    return values


def found(values, groups=None):
    flags, small = find_outliers(values, groups or {"all": list(values)})
    return {name: [str(flag) for flag in own] for name, own in flags.items() if own}, small


@pytest.mark.parametrize("n", [8, 30, 200])
def test_what_was_moved_is_found_and_nothing_else(n):
    values = group(n, np.random.default_rng(2), snr=(3, 4.0), response_wm_b0=(5, 1530.0))
    assert found(values) == ({"sub-03": ["snr:low"], "sub-05": ["response_wm_b0:high"]}, [])


def test_a_better_number_is_no_doubt_but_either_side_of_a_response_is():
    values = group(20, np.random.default_rng(2), snr=(3, 80.0), response_wm_b0=(5, 300.0))
    assert found(values)[0] == {"sub-05": ["response_wm_b0:low"]}


def test_series_are_compared_within_their_group():
    rng = np.random.default_rng(4)
    one, two = group(10, rng), {f"other-{name}": own for name, own in group(10, rng).items()}
    for own in two.values():
        own["response_wm_b0"] *= 1.7
    values = one | two
    assert found(values, {"A": list(one), "B": list(two)})[0] == {}
    values["sub-04"]["response_wm_b0"] *= 1.7
    assert found(values, {"A": list(one), "B": list(two)})[0] == {"sub-04": ["response_wm_b0:high"]}


def test_a_small_group_is_told_and_has_no_outliers():
    values = group(FEWEST - 1, np.random.default_rng(0), snr=(1, 1.0))
    assert found(values) == ({}, ["all"])


def test_a_series_that_failed_counts_for_nothing():
    values = group(FEWEST, np.random.default_rng(0), snr=(1, 1.0))
    values["sub-00"] = {}
    assert found(values) == ({}, ["all"])


def test_equal_values_make_no_outlier_of_a_small_difference():
    values = {f"sub-{i}": {"n_volumes": 100.0, "fit_r2_median": 0.9} for i in range(10)}
    values["sub-3"] = {"n_volumes": 98.0, "fit_r2_median": 0.89}
    assert found(values)[0] == {}
    values["sub-3"]["n_volumes"] = 60.0
    assert found(values)[0] == {"sub-3": ["n_volumes:low"]}


@pytest.mark.parametrize("n", [6, 10, 20, 60])
def test_few_groups_of_normal_values_have_an_outlier(n):
    """At most 2 % of all, at any size."""
    values = np.random.default_rng(1).normal(size=(4000, n))
    centre = np.median(values, axis=1, keepdims=True)
    spread = 1.4826 * np.median(abs(values - centre), axis=1, keepdims=True)
    assert np.mean((abs(values - centre) / spread).max(axis=1) > limit(n)) < 0.02


def test_what_no_brain_has_is_told_for_every_series():
    flags = out_of_range({"snr": 4.0, "mask_volume_ml": 3.0, "gradient_flip_suggested": "flip x", "nufo_mean": None})
    assert sorted(map(str, flags)) == ["gradient_flip_suggested:wrong", "mask_volume_ml:low", "snr:low"]
    assert out_of_range({"snr": 25.0, "mask_volume_ml": 1400.0, "gradient_flip_suggested": None}) == []
