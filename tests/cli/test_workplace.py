"""Where calls work: one call a series, nothing left of dead calls, nothing taken from live ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shd_bids.cli import workplace
from shd_bids.locks import locked, try_lock
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run

CALL = "20260101-120000_0123456789ab"


def settings(tmp_path, work="out/.work"):
    (tmp_path / "out").mkdir(exist_ok=True)
    return Settings(bids_dir=tmp_path / "raw", output_dir=tmp_path / "out", work_dir=tmp_path / work)


def write_record(out, name, status="running", prefixes=("sub-01",)):
    path = out / "sub-01" / "log" / name / "status.json"
    path.parent.mkdir(parents=True)
    series = {prefix: {"status": status} for prefix in prefixes}
    path.write_text(json.dumps({"status": status, "exit_code": None, "series": series}))
    (path.parent / ".reserve").write_text("x")
    return path


@pytest.mark.parametrize("work", ["out/.work", "elsewhere"])
def test_series_are_locked_where_they_are_written(tmp_path, work):
    with workplace.hold(settings(tmp_path, work), {"sub_01": "sub-01", "sub_02": "sub-02"}):
        for folder in {"out", work} - {"out/.work"}:
            assert try_lock(tmp_path / folder / ".sub_01.lock") is None
            assert try_lock(tmp_path / folder / ".sub_02.lock") is None
    assert not list(tmp_path.rglob("*.lock"))


def test_who_waits_says_so_in_one_line(tmp_path, caplog):
    path = tmp_path / "out" / ".sub_01.lock"
    caplog.set_level("WARNING", logger="shd_bids")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time\nfrom shd_bids.locks import locked\n"
            f"with locked(pathlib.Path({str(path)!r})):\n    print(1, flush=True)\n    time.sleep(1)",
        ],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(workplace.__file__).parents[2])},
    )
    with holder:
        holder.stdout.readline()
        with workplace.hold(settings(tmp_path), {"sub_01": "sub-01"}):
            assert holder.wait(5) == 0
    (record,) = caplog.records
    assert record.getMessage().startswith("sub-01: another call works on it")


def test_records_and_files_of_a_killed_call_are_ended(tmp_path):
    chosen = settings(tmp_path)
    dead = write_record(chosen.output_dir, "a")
    others = write_record(chosen.output_dir, "b", prefixes=("sub-01", "sub-01_acq-x"))
    finished = write_record(chosen.output_dir, "c", status="finished")
    before = others.read_text(), finished.read_text()
    half = chosen.output_dir / "sub-01" / "dwi" / f".{'0' * 32}.sub-01_space-orig_x.nii.gz"
    half.parent.mkdir()
    half.touch()
    with workplace.hold_series(chosen, [dwi_run(tmp_path / "raw")]):
        status = json.loads(dead.read_text())
    assert (status["status"], status["exit_code"]) == ("interrupted", 137)
    assert status["series"]["sub-01"]["status"] == "interrupted"
    assert (others.read_text(), finished.read_text()) == before
    assert not half.exists() and not (dead.parent / ".reserve").exists()


def test_work_folders_are_private_and_go_when_they_are_empty(tmp_path):
    work = tmp_path / "work"
    with workplace.work_folder(work, CALL, ["sub_01_wf"]) as scratch:
        assert scratch.is_dir()
        assert (work / "shd_bids_wf" / "sub_01_wf").is_dir()
        assert (work / "shd_bids_wf").stat().st_mode & 0o777 == 0o700
    assert not work.exists()


def test_only_folders_of_dead_calls_are_removed(tmp_path):
    work = tmp_path / "work"
    dead, live, foreign = work / CALL, work / CALL.replace("2026", "2027"), work / "cache"
    for folder in (dead, live, foreign):
        folder.mkdir(parents=True)
        (folder / "content").touch()
    (dead / workplace.CALL_LOCK).touch()
    (foreign / workplace.CALL_LOCK).touch()
    with locked(live / workplace.CALL_LOCK), workplace.work_folder(work, "x", ["sub_01_wf"]):
        assert not dead.exists()
        assert (live / "content").exists() and (foreign / "content").exists()
