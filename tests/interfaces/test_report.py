"""Figures: they travel to other processes, and one that fails stops nothing."""

import pickle

import pytest

from shd_bids.interfaces import report
from shd_bids.interfaces.report import DrawMask
from tests.interfaces.stages import run


@pytest.mark.parametrize("name", [name for name in report.__all__ if name.startswith("Draw")])
def test_figures_travel_to_other_processes(name):
    node = getattr(report, name)(series="sub-01")
    copy = pickle.loads(pickle.dumps(node))
    assert copy.inputs.series == "sub-01"
    assert copy.inputs.copyable_trait_names() == node.inputs.copyable_trait_names()


def test_figure_that_cannot_be_drawn_stops_nothing(prepared, tmp_path, caplog):
    (tmp_path / "empty.nii.gz").touch()
    outputs = run(DrawMask, tmp_path / "draw", b0_file=str(tmp_path / "empty.nii.gz"), mask_file=prepared.mask_file)
    assert not isinstance(outputs.figure_file, str)
    assert "could not be drawn" in caplog.text
