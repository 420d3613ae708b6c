import errno
import os

import pytest

from shd_bids.bids.stages import Kept, StagePlan
from shd_bids.cli.record import exit_code, read_facts, take_facts
from shd_bids.files import write_json
from shd_bids.settings import Settings
from tests.bids_trees import raw_dataset, write_dwi
from tests.cli.calls import call, errors, records

pytestmark = pytest.mark.usefixtures("surroundings")


def test_all_done(raw, out, graph):
    assert call(raw, out, "--seeds", "3") == 0
    for subject, status in records(out).items():
        assert (status["status"], status["exit_code"]) == ("finished", 0)
        assert status["series"] == {subject: {"status": "finished"}}
        assert (out / f"{subject}.html").stat().st_size > 1000
    provenance = records(out, "provenance.json")["sub-01"]
    series = provenance["series"]["sub_01"]
    assert provenance["command"].startswith("shd_bids ")
    assert provenance["peak_memory_mb"] == 123
    assert set(series["inputs"]) >= {"bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"}
    assert all(len(output["sha256"]) == 64 for output in series["outputs"].values())
    assert not (out / ".work").exists()
    folder = next(out.glob("sub-01/log/*"))
    assert "2 series on" in (folder / "shd_bids.log").read_text()
    assert Settings.from_toml((folder / "shd_bids.toml").read_text()).seeds == 3


def test_a_promised_file_that_is_missing_is_a_failure(raw, out, graph, capsys):
    graph.forgotten["sub_02"] = 1
    assert call(raw, out) == 1
    (told,) = errors(capsys)
    assert told.startswith("sub-02: 1 of ")
    assert records(out)["sub-02"]["status"] == "failed"


@pytest.mark.slow
def test_files_of_earlier_calls_that_no_longer_belong_to_the_others_are_told(raw, out, graph, capsys):
    assert call(raw, out) == 0
    assert call(raw, out, "--level", "peaks") == 0
    assert "lie beside the new ones" not in capsys.readouterr().err
    assert call(raw, out, "--level", "peaks", "--fod-lmax", "8") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "lie beside the new ones" in line]
    assert [line.split("WARNING: ")[1].split(":")[0] for line in told] == ["sub-01", "sub-02"]
    assert "tractogram" in told[0]
    outdated = records(out, "provenance.json")["sub-01"]["series"]["sub_01"]["outdated"]
    assert all("peaks" not in name for name in outdated) and all((out / name).is_file() for name in outdated)


def test_a_report_that_fails_is_not_success(raw, out, graph, monkeypatch):
    monkeypatch.setattr("shd_bids.report.html.write_report", lambda *args: 1 / 0)
    assert call(raw, out) == 1
    assert records(out)["sub-01"]["status"] == "failed"
    assert records(out)["sub-01"]["series"]["sub-01"]["status"] == "finished"


def test_records_are_written_as_far_as_they_fit(raw, out, graph, monkeypatch, capsys):
    def full(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "provenance.json")

    monkeypatch.setattr("shd_bids.cli.record.Record.write_provenance", full)
    assert call(raw, out) == 73
    assert len(errors(capsys)) == 1
    assert {status["status"] for status in records(out).values()} == {"finished"}
    assert not list(out.glob("sub-*/log/*/.reserve"))


def test_an_internal_error_is_recorded(raw, out, graph):
    graph.stop = ZeroDivisionError("x")
    assert call(raw, out) == 70
    assert records(out)["sub-01"]["exit_code"] == 70
    assert "ZeroDivisionError" in records(out)["sub-01"]["series"]["sub-01"]["message"]


@pytest.mark.parametrize(
    ("series", "n_skipped", "expected"),
    [
        ({}, 2, 0),
        ({"a": {"status": "finished"}}, 0, 0),
        ({"a": {"status": "failed", "exit_code": 65}}, 0, 65),
        ({"a": {"status": "failed", "exit_code": 65}}, 1, 1),
        ({"a": {"status": "failed", "exit_code": 65}, "b": {"status": "finished"}}, 0, 1),
        ({"a": {"status": "failed", "exit_code": 65}, "b": {"status": "failed", "exit_code": 1}}, 0, 1),
    ],
)
def test_exit_code(series, n_skipped, expected):
    assert exit_code(series, n_skipped=n_skipped) == expected


@pytest.mark.slow
def test_more_than_one_series_of_a_session_share_a_page(tmp_path, out, graph):
    root = raw_dataset(tmp_path / "raw", "sub-01_acq-a_dwi", "sub-01_acq-b_dwi")
    graph.fail("sub_01_acq_b", 65)
    assert call(root, out) == 1
    graph.failures.clear()
    assert call(root, out) == 0
    assert [len(runs) for runs, _ in graph.calls] == [2, 1]
    page = (out / "sub-01.html").read_text()
    assert "acq-a" in page
    assert "acq-b" in page
    write_dwi(root, "sub-01_acq-c_dwi")
    assert call(root, out) == 0
    assert len(list(out.glob("sub-01/log/*"))) == 3


@pytest.mark.slow
def test_a_call_for_one_series_leaves_the_others_on_the_page(tmp_path, out, graph):
    root = raw_dataset(tmp_path / "raw", "sub-01_acq-a_dwi", "sub-01_acq-b_dwi", "sub-01_ses-1_acq-c_dwi")
    assert call(root, out) == 0
    asked = tmp_path / "filter.json"
    asked.write_text('{"dwi": {"acquisition": "b"}}')
    assert call(root, out, "--bids-filter-file", str(asked), "--overwrite") == 0
    page = (out / "sub-01.html").read_text()
    assert "run-sub-01_acq-a" in page and "run-sub-01_acq-b" in page and "acq-c" not in page
    (root / "sub-01" / "dwi" / "sub-01_acq-b_dwi.bval").unlink()
    write_dwi(root, "sub-02_dwi")
    asked.write_text('{"dwi": {"acquisition": [null, "b"]}}')
    assert call(root, out, "--bids-filter-file", str(asked)) == 1
    page = (out / "sub-01.html").read_text()
    assert "run-sub-01_acq-a" in page and "no .bval file applies to it" in page


def test_facts_of_other_settings_are_forgotten(tmp_path):
    """Those of an earlier call that failed lie in the work folder of the series."""
    left = {"gradients": "a", "response": "b", "fod": "of another degree", "peaks": "c", "tractography": None}
    for stage, digest in left.items():
        write_json(tmp_path / "facts" / f"{stage}.json", {"stage": stage, "digest": digest})
    write_json(tmp_path / "kept.json", {"stage": "gradients", "from": "the data set"})
    plan = StagePlan({"gradients": "a", "response": "b", "fod": "d"}, {"gradients": Kept({}, tmp_path / "kept.json")})
    take_facts(tmp_path, plan)
    found = read_facts(tmp_path)
    assert set(found) == {"gradients", "response"} and found["gradients"]["from"] == "the data set"
