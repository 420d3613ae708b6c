"""What is known of each series: its newest record, its numbers, and those of the stages before a failure."""

import pytest

from shd_bids.errors import InputError
from shd_bids.study.series import by_group, read_participants, read_series


def read(derivatives, *runs):
    series, columns = read_series(
        derivatives.out, runs, groups={run.key: "protocol1" for run in runs}, participants={"01": {"site": "A"}}
    )
    return series, columns


def test_a_finished_series_has_its_numbers_report_and_picture(derivatives):
    run = derivatives.run(sub="01")
    derivatives.finish(run, snr=23.5, mask_volume_ml="n/a")
    (found,), columns = read(derivatives, run)
    assert (found.status, found.reason, found.report, found.group) == ("finished", "", "sub-01.html", "protocol1")
    assert found.values == {"snr": 23.5, "mask_volume_ml": None, "device": "cpu"}
    assert found.traits == {"site": "A"} and found.thumbnail.is_file()
    assert columns["snr"]["Units"] == "1" and "series" not in columns
    assert by_group([found]) == {"protocol1": ["sub-01"]}


def test_the_newest_record_decides(derivatives):
    run = derivatives.run(sub="01")
    derivatives.finish(run, "20260101-000000_a")
    derivatives.record(run, "20260102-000000_b", "failed", stage="fod", message="out of memory;\nuse --mem")
    (found,), _ = read(derivatives, run)
    assert (found.status, found.stage, found.reason) == ("failed", "fod", "out of memory; use --mem")
    derivatives.record(run, "20260103-000000_c")
    assert read(derivatives, run)[0][0].status == "finished"


def test_a_failed_series_keeps_the_numbers_of_its_stages(derivatives):
    run = derivatives.run(sub="02")
    stages = {"gradients": {"qc": {"n_volumes": {"value": 30, "Description": "Volumes used", "Units": "1"}}}}
    derivatives.record(run, "20260101-000000_a", "failed", stages, stage="response", message="no CSF")
    (found,), columns = read(derivatives, run)
    assert found.values == {"n_volumes": 30.0} and found.thumbnail is None and found.report == ""
    assert columns == {"n_volumes": {"Description": "Volumes used", "Units": "1"}}


def test_a_series_without_a_record_is_missing_and_damaged_records_are_passed_over(derivatives):
    one, two = derivatives.run(sub="03"), derivatives.run(sub="04")
    derivatives.record(two, "20260101-000000_a")
    for call, text in (("20260102-0_b", "{"), ("20260102-0_c", "[]"), ("20260102-0_d", '{"series": {"sub-04": {}}}')):
        folder = derivatives.out / "sub-04" / "log" / call
        folder.mkdir()
        (folder / "status.json").write_text(text)
    series, _ = read(derivatives, one, two)
    assert [item.status for item in series] == ["missing", "finished"]


def test_columns_of_participants_are_taken_as_asked(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tsite\tsex\nsub-01\tA\tF\nsub-02\t\tM\n")
    assert read_participants(tmp_path, ["site"]) == {"01": {"site": "A"}, "02": {"site": "n/a"}}
    assert read_participants(tmp_path, []) == {}
    with pytest.raises(InputError, match=r"--group-by scanner: .*no such column; it has site, sex"):
        read_participants(tmp_path, ["site", "scanner"])
    with pytest.raises(InputError, match="no such file"):
        read_participants(tmp_path / "nowhere", ["site"])
    (tmp_path / "participants.tsv").write_text("subject\tsite\n01\tA\n")
    with pytest.raises(InputError, match="no column participant_id"):
        read_participants(tmp_path, ["site"])
