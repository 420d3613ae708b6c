"""The group level as a whole: quality is told whatever became of the responses."""

import csv
import json
from dataclasses import replace

import pytest

from shd_bids.bids.names import log_dir
from shd_bids.bids.run import Unusable
from shd_bids.cli.study import run_study
from shd_bids.errors import InputError, NoInputError
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run, raw_dataset
from tests.cli.test_mean import write


@pytest.fixture
def settings(tmp_path):
    raw = raw_dataset(tmp_path / "raw")
    return Settings(bids_dir=raw, output_dir=tmp_path / "out", work_dir=tmp_path / "work", analysis_level="group")


@pytest.fixture
def runs(settings):
    """Two series of one site and one of another; the last failed."""
    found = [
        dwi_run(settings.bids_dir, entities={"sub": subject}, sidecar={"StationName": subject[0]})
        for subject in ("A1", "A2", "B1")
    ]
    for run in found:
        record(run, settings)
    record(found[2], settings, status="failed", stage="gradients", message="x is flipped; see --gradient-check")
    return found


def record(run, settings, **state):
    folder = log_dir(settings.output_dir, run.subject, "20260101-000000_a")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"series": {run.prefix: {"status": "finished"} | state}}
    (folder / "status.json").write_text(json.dumps(content))


def table(settings):
    text = (settings.output_dir / "group_desc-shdtv_qc.tsv").read_text()
    return {row["series"]: row for row in csv.DictReader(text.splitlines(), delimiter="\t")}


def test_what_failed_is_one_line_and_groups_have_the_labels_of_the_responses(runs, settings, caplog):
    caplog.set_level("INFO")
    for run in runs:
        write(run, settings)
    assert run_study(runs, settings, argv=[]) == 0
    assert [row["group"] for row in table(settings).values()] == ["protocol1", "protocol1", "protocol2"]
    assert [line.message for line in caplog.records if line.levelname == "ERROR"] == [
        "sub-B1: failed at gradients: x is flipped; see --gradient-check"
    ]
    assert "2 of 3 series finished" in caplog.text
    assert (settings.output_dir / "group_desc-shdtv_qc.html").is_file()


def test_quality_is_told_where_no_series_has_responses(runs, settings):
    with pytest.raises(NoInputError, match="no responses"):
        run_study(runs, settings, argv=[])
    assert table(settings)["sub-B1"]["status"] == "failed"


def test_traits_of_participants_part_the_groups(runs, settings):
    (settings.bids_dir / "participants.tsv").write_text("participant_id\tsex\nsub-A1\tF\nsub-A2\tM\n")
    for run in runs:
        write(run, settings)
    run_study(runs, replace(settings, group_by=("sex",)), argv=[])
    rows = table(settings)
    assert [row["group"] for row in rows.values()] == ["protocol1, F", "protocol1, M", "protocol2"]
    assert [row["sex"] for row in rows.values()] == ["F", "M", "n/a"]


def test_ratings_are_found_and_bad_ones_stop_the_call_before_it_writes(runs, settings, caplog):
    for run in runs:
        write(run, settings)
    beside = settings.output_dir / "desc-anna_ratings.tsv"
    beside.write_text("series\trating\tcomment\trater\nsub-A1\tfail\tdark\tanna\n")
    given = settings.bids_dir / "ben.tsv"
    given.write_text("series\trating\tcomment\trater\nsub-A1\tpass\t\tben\n")
    run_study(runs, replace(settings, ratings=(given,)), argv=[])
    assert table(settings)["sub-A1"]["rating"] == "conflict"
    assert "sub-A1: readers differ: fail (anna): dark; pass (ben)" in caplog.text
    given.write_text("series\trating\nsub-A1\tgood\n")
    (settings.output_dir / "group_desc-shdtv_qc.tsv").unlink()
    with pytest.raises(InputError, match="found 'good'"):
        run_study(runs, replace(settings, ratings=(given,)), argv=[])
    assert not (settings.output_dir / "group_desc-shdtv_qc.tsv").exists()


def test_a_dry_run_writes_nothing(runs, settings, capsys):
    write(runs[0], settings)
    run_study(runs[:1], replace(settings, dry_run="text"), argv=[])
    assert "protocol1" in capsys.readouterr().out
    assert not list(settings.output_dir.glob("group*"))


def test_a_dry_run_tells_what_will_lack(runs, settings, caplog):
    write(runs[0], settings)
    unusable = Unusable("sub-C1", "C1", None, ("sub-C1_dwi.nii.gz: damaged",))
    assert run_study(runs[:2], replace(settings, dry_run="text"), argv=[], unusable=[unusable]) == 1
    assert "sub-A2: no responses" in caplog.text and "sub-C1_dwi.nii.gz: damaged" in caplog.text
