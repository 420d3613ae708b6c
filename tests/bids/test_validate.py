import shutil
import sys
from pathlib import Path

import pytest

from shd_bids.bids import validate
from tests.bids_trees import raw_dataset

HAS_VALIDATOR = shutil.which(validate.PROGRAM) or (Path(sys.executable).parent / validate.PROGRAM).exists()


@pytest.mark.skipif(not HAS_VALIDATOR, reason="bids-validator-deno is not installed")
def test_only_asked_subjects_are_judged(tmp_path):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_dwi")
    (root / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    (root / "sub-02" / "dwi" / "sub-02_bad.txt").write_text("x")
    (root / "sub-02" / "dwi" / "sub-02_dwi.bvec").unlink()
    assert validate.validate_dataset(root, ["01"]) == ()
    lines = validate.validate_dataset(root, ["02"])
    assert any(line.startswith("NOT_INCLUDED: sub-02/dwi/sub-02_bad.txt") for line in lines)
    assert any(line.startswith("DWI_MISSING_BVEC") for line in lines)


def test_absent_or_broken_validators_stop_nothing(tmp_path, monkeypatch):
    root = raw_dataset(tmp_path / "raw")
    monkeypatch.setattr(validate, "PROGRAM", "no-such-program")
    assert validate.validate_dataset(root, ["01"]) == ()
    monkeypatch.setattr(validate, "PROGRAM", "false")
    assert validate.validate_dataset(root, ["01"]) == ()


def test_equal_errors_are_told_once():
    issues = [{"code": "A", "severity": "error", "location": f"/f{i}"} for i in range(3)]
    issues += [
        {"code": "B", "severity": "warning"},
        {"code": "C", "subCode": "x", "severity": "error", "location": "/g"},
    ]
    assert validate._summary(issues) == ["A: f0 and 2 more", "C x: g"]


@pytest.mark.skipif(not HAS_VALIDATOR, reason="bids-validator-deno is not installed")
def test_links_that_lead_back_end_the_validation_all_the_same(tmp_path, monkeypatch):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi")
    for link in ("loop", "sub-01/loop", "sub-01/dwi/loop"):
        (root / link).symlink_to(root)
    (root / "sub-01" / "itself").symlink_to(root / "sub-01" / "itself")
    monkeypatch.setattr(validate, "TIME_LIMIT", 30)
    lines = validate.validate_dataset(root, ["01"])
    assert lines and not any("/loop/" in line for line in lines)  # what links to nothing is told
