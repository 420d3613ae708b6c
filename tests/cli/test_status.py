"""The state of a study, from what calls left."""

import json
import shutil
import subprocess
import sys

import pytest

from shd_bids.cli.status import main, study_status
from shd_bids.locks import locked


def write(out, name, status, call="1", outputs=None, **told):
    """Leave the record of a call on one series."""
    folder = out / name.partition("_")[0] / "log" / call
    folder.mkdir(parents=True)
    item = {"status": status, "exit_code": None, **told}
    record = {"status": status, "run": call, "updated": "2026", "series": {name: item}}
    (folder / "status.json").write_text(json.dumps(record))
    for path, text in (outputs or {}).items():
        (out / path).write_text(text)
    sizes = {path: {"bytes": len(text)} for path, text in (outputs or {}).items()}
    series = {name.replace("-", "_"): {"series": name, "outputs": sizes}}
    (folder / "provenance.json").write_text(json.dumps({"series": series}))


@pytest.fixture
def out(tmp_path):
    """A study in which every state occurs."""
    out = tmp_path / "out"
    write(out, "sub-01", "finished", outputs={"sub-01/a": "abc"})
    write(out, "sub-02", "failed", exit_code=65, stage="gradients", message="found a, expected b")
    write(out, "sub-03", "interrupted", exit_code=143)
    write(out, "sub-04_ses-1", "running")
    return out


def states(out, *participants):
    return {name: item["state"] for name, item in study_status(out, participants)["series"].items()}


def test_every_state_is_told(out):
    expected = {"sub-01": "complete", "sub-02": "failed", "sub-03": "incomplete", "sub-04_ses-1": "incomplete"}
    assert states(out) == expected
    with locked(out / ".sub_04_ses_1.lock"):
        assert states(out, "01", "05") == expected | {"sub-04_ses-1": "running", "sub-05": "incomplete"}
    assert study_status(out)["counts"] == {"complete": 1, "incomplete": 2, "running": 0, "failed": 1}


def test_the_last_call_counts(out):
    write(out, "sub-02", "finished", call="2")
    assert states(out)["sub-02"] == "complete"


def test_a_series_whose_files_are_lost_is_not_complete(out):
    (out / "sub-01" / "a").write_text("ab")
    assert states(out)["sub-01"] == "incomplete"


def test_damaged_records_tell_nothing(out):
    (out / "sub-02" / "log" / "1" / "status.json").write_text('{"series": 1}')
    assert "sub-02" not in states(out)


def test_text_and_json(out, capsys):
    assert main([str(out)]) == 1
    text = capsys.readouterr().out
    assert "sub-02: failed: found a, expected b\n" in text and "sub-01" not in text
    assert text.endswith("1 complete, 2 incomplete, 0 running, 1 failed\n")
    assert main([str(out), "--json"]) == 1
    failed = json.loads(capsys.readouterr().out)["series"]["sub-02"]
    assert failed["exit_code"] == 65 and failed["stage"] == "gradients" and failed["run"] == "1"
    for subject in ("02", "03", "04"):
        shutil.rmtree(out / f"sub-{subject}")
    assert main([str(out)]) == 0


def test_a_folder_that_is_not_there_is_a_wrong_call(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none")])
    assert stop.value.code == 2


def test_it_answers_at_once():
    """Schedulers ask often: nothing that takes seconds to load is loaded."""
    slow = ("torch", "nipype", "bids", "scipy")
    code = f"import sys, shd_bids.cli.status; print([name for name in {slow} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
