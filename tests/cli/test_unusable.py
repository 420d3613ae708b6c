"""A series that cannot be processed is told and recorded, and holds up none of the others."""

import json

import pytest

from tests.bids_trees import raw_dataset, write_dwi, write_mask
from tests.cli.calls import call, errors

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture
def raw(tmp_path):
    """Two subjects, the second with two series of which one lacks its b-values, and a third with nothing usable."""
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_acq-a_dwi", "sub-02_acq-b_dwi", "sub-03_dwi")
    for name in ("sub-01", "sub-02_acq-a", "sub-02_acq-b", "sub-03"):
        write_mask(root, f"{name}_desc-brain_mask")
    for name in ("sub-02/dwi/sub-02_acq-b", "sub-03/dwi/sub-03"):
        (root / f"{name}_dwi.bval").unlink()
    return root


def states(out):
    found = {}
    for path in sorted(out.glob("sub-*/log/*/status.json")):
        found |= {name: item["status"] for name, item in json.loads(path.read_text())["series"].items()}
    return found


def test_the_others_are_processed_and_the_call_ends_with_1(raw, tmp_path, graph, capsys):
    out = tmp_path / "out"
    assert call(raw, out, "--level", "response") == 1
    told = capsys.readouterr().err.splitlines()
    problems = [line for line in told if "ERROR: " in line]
    assert len(problems) == 2 and "sub-02_acq-b_dwi" in problems[0] and "sub-03_dwi" in problems[1]
    assert told[-1].endswith(" 2 of 4 series done, 2 failed (sub-02_acq-b, sub-03)")
    assert states(out) == {
        "sub-01": "finished",
        "sub-02_acq-a": "finished",
        "sub-02_acq-b": "failed",
        "sub-03": "failed",
    }
    for page in ("sub-02.html", "sub-03.html"):
        assert "no .bval file applies to it" in (out / page).read_text()
    assert "sub-02_acq-a" in (out / "sub-02.html").read_text()
    record = json.loads(next(out.glob("sub-03/log/*/status.json")).read_text())["series"]["sub-03"]
    assert (record["exit_code"], record["stage"]) == (65, "input")


@pytest.mark.slow
def test_a_second_call_ends_likewise_and_mended_files_are_taken_up(raw, tmp_path, graph):
    out = tmp_path / "out"
    call(raw, out, "--level", "response")
    assert call(raw, out, "--level", "response") == 1
    assert len(graph.calls) == 1
    for name in ("sub-02_acq-b_dwi", "sub-03_dwi"):
        write_dwi(raw, name)
    assert call(raw, out, "--level", "response") == 0
    assert set(states(out).values()) == {"finished"}


def test_a_dry_run_tells_it_and_writes_nothing(raw, tmp_path, graph, capsys):
    out = tmp_path / "out"
    assert call(raw, out, "--dry-run") == 1
    assert not out.exists()
    assert len(errors(capsys)) == 2


def test_with_nothing_usable_the_call_ends_with_65(raw, tmp_path, graph):
    out = tmp_path / "out"
    assert call(raw, out, "--participant-label", "03") == 65
    assert not out.exists()
