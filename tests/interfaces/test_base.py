"""What every stage does around its function: facts, failures, and what its hash depends on."""

import json

import pytest

from shd_bids.errors import InputError
from shd_bids.interfaces import base
from shd_bids.interfaces.base import Failure, log_progress, read_failure, write_failure
from shd_bids.logs import is_line
from tests.interfaces.stage_functions import Double, Fail, Fill, Refuse


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(interface, tmp_path, **inputs):
    (tmp_path / "node").mkdir()
    stage = interface(value=2.0, series="sub-01", stage="double", run_dir=str(tmp_path / "run"), call="1", **inputs)
    return stage.run(cwd=tmp_path / "node")


def test_facts_lie_in_the_node_and_in_the_run(tmp_path):
    result = run(Double, tmp_path, digest="abc")
    facts = json.loads((tmp_path / "run" / "facts" / "double.json").read_text())
    assert facts["digest"] == "abc"
    assert facts == json.loads((tmp_path / "node" / "facts.json").read_text())
    assert facts["stage"] == "double"
    assert facts["seconds"] >= 0
    assert result.outputs.facts_file == str(tmp_path / "node" / "facts.json")
    assert read_failure(tmp_path / "run", "1") is None


def test_own_error_is_recorded_as_the_user_shall_read_it(tmp_path):
    with pytest.raises(InputError):
        run(Refuse, tmp_path)
    assert read_failure(tmp_path / "run", "1") == Failure(
        run="sub-01",
        node="double",
        error="InputError",
        exit_code=65,
        message="value: found 2, expected another\nsecond problem",
        call="1",
    )


def test_unforeseen_error_is_recorded_with_its_type(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(Fail, tmp_path)
    failure = read_failure(tmp_path / "run", "1")
    assert (failure.exit_code, failure.message) == (1, "ZeroDivisionError: nothing left")


def test_first_failure_is_kept(tmp_path):
    first = Failure(run="a", node="b", error="c", exit_code=65, message="cause")
    write_failure(tmp_path, first)
    write_failure(tmp_path, Failure(run="a", node="b", error="c", exit_code=1, message="consequence"))
    assert read_failure(tmp_path, "") == first


def test_hash_depends_on_version_and_values_only():
    def hash_of(**inputs):
        return Double(value=1.0, **inputs).inputs.get_hashval()[1]

    assert hash_of(app_version="1") != hash_of(app_version="2")
    assert hash_of() == hash_of(series="x", stage="y", run_dir="/z", call="c", num_threads=4, use_gpu=True)
    assert Double(value=1.0).inputs.get_hashval()[1] != Double(value=2.0).inputs.get_hashval()[1]


def test_progress_is_told_sparingly_and_with_the_time_left(caplog, monkeypatch):
    clock = iter([0.0, 3.0, 3.1, 12.0, 300.0, 301.0, 302.0])
    monkeypatch.setattr(base.time, "monotonic", lambda: next(clock))
    progress = log_progress("sub-01 fod")
    with caplog.at_level("INFO", logger="shd_bids"):
        for share in (0.0, 0.1, 0.11, 0.25, 0.5, 1.0):
            progress("fit", share)
        progress("maps", 0.99)
    assert [record.shown.share for record in caplog.records] == [0.0, 0.1, 0.25, 0.5, 1.0, 0.99]
    assert [record.getMessage() for record in caplog.records if is_line(record)] == [
        "sub-01 fod: fit [....................]   0 %",
        "sub-01 fod: fit [#####...............]  25 %, 36 s left",
        "sub-01 fod: fit [##########..........]  50 %, 5 min left",
        "sub-01 fod: fit [####################] 100 %",
        "sub-01 fod: maps [###################.]  99 %",
    ]


def test_progress_leaves_room_for_what_follows(caplog):
    progress = log_progress("sub-01 fod", until=0.8)
    with caplog.at_level("INFO", logger="shd_bids"):
        progress("fit", 0.0)
        progress("maps", 1.0)
    assert caplog.records[-1].getMessage() == "sub-01 fod: maps [################....]  80 %"


def test_failures_of_other_calls_count_for_nothing(tmp_path):
    left = Failure(run="a", node="b", error="c", exit_code=1, message="of an orphan", call="killed")
    write_failure(tmp_path, left)
    assert read_failure(tmp_path, "next") is None
    own = Failure(run="a", node="b", error="c", exit_code=65, message="own", call="next")
    write_failure(tmp_path, own)
    assert read_failure(tmp_path, "next") == own


def test_a_failure_is_known_even_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    failure = Failure(run="a", node="b", error="c", exit_code=65, message="cause")
    write_failure(tmp_path / "file" / "run", failure)
    assert read_failure(tmp_path / "file" / "run", "") == failure


def test_a_full_disk_has_its_own_code(tmp_path):
    with pytest.raises(RuntimeError):
        run(Fill, tmp_path)
    failure = read_failure(tmp_path / "run", "1")
    assert failure.exit_code == 73
    assert failure.message == "the disk is full; free some space (RuntimeError: cannot save)"
