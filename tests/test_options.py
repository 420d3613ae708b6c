from dataclasses import fields
from pathlib import Path

import pytest

from shd_bids.option import option_of
from shd_bids.options import (
    ExecutionOptions,
    FodOptions,
    GradientOptions,
    InputOptions,
    PeakOptions,
    TrackingOptions,
    TractogramOptions,
)

GROUPS = (InputOptions, ExecutionOptions, GradientOptions, FodOptions, PeakOptions, TrackingOptions, TractogramOptions)
DIRS = {"bids_dir": Path("raw"), "output_dir": Path("out")}
OPTIONS = [item for group in GROUPS for item in fields(group)]


@pytest.mark.parametrize("item", OPTIONS, ids=lambda item: item.name)
def test_every_option_has_one_line_of_help_and_a_default_within_its_bounds(item):
    known = option_of(item)
    assert known.help and "\n" not in known.help
    default = item.default if isinstance(item.default, tuple) else (item.default,)
    if known.choices and item.default is not None:
        assert set(default) <= set(known.choices)
    if known.words:
        assert item.default in (*known.words, ())
    for value in (known.sloppy, item.default):
        if known.bounds and value is not None:
            assert known.bounds[0] <= value <= known.bounds[1]


def test_no_two_groups_share_a_name():
    names = [item.name for item in OPTIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("group", "wrong", "told"),
    [
        (FodOptions, {"fod_lmax": 7}, "even degree"),
        (InputOptions, {**DIRS, "responses": (Path("group"), Path("/wm.txt"))}, "found group and files"),
        (FodOptions, {"lambda_tv": -1}, "--lambda-tv: found -1, expected 0 to 1e"),
        (PeakOptions, {"peak_max": 0}, "--peak-max: found 0, expected 1 to 20"),
        (TrackingOptions, {"min_length": 50.0, "max_length": 20.0}, "no streamline could pass"),
        (TrackingOptions, {"tracking_algorithm": "fact"}, "found 'fact', expected one of det, prob"),
        (TractogramOptions, {"connectome_map": ("fa",)}, "--connectome-map: found 'fa', expected one of afdtotal"),
        (ExecutionOptions, {"device": "tpu"}, "expected auto, cpu, cuda"),
    ],
)
def test_a_group_checks_itself(group, wrong, told):
    with pytest.raises(ValueError, match=told):
        group(**wrong)
