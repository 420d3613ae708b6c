"""A study of two sites with other protocols and gains: one subject is broken, one has two sessions, one was scanned twice."""

import csv

import pytest

from tests.integration.app import call, call_group
from tests.two_sites import BRIGHT, BROKEN, NOISY, write_study

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("study")]  # one worker, so that the study runs once


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Root of the study after the participant level and the group level, with what they returned and told."""
    root = tmp_path_factory.mktemp("study")
    write_study(root / "raw")
    codes = (
        call(root / "raw", root / "out", level="response"),
        call_group(root / "raw", root / "out", "--group-by", "site"),
    )
    return root, codes


def rows(out):
    text = (out / "group_desc-shdtv_qc.tsv").read_text()
    return {row["series"]: row for row in csv.DictReader(text.splitlines(), delimiter="\t")}


def test_one_command_does_the_rest_of_a_study_with_a_broken_subject(study):
    root, codes = study
    assert codes == (1, 1)
    found = rows(root / "out")
    assert len(found) == 14
    assert {name for name, row in found.items() if row["status"] != "finished"} == {BROKEN}


def test_the_broken_subject_is_one_line_in_the_table_the_page_and_its_report(study):
    out = study[0] / "out"
    reason = rows(out)[BROKEN]["reason"]
    assert f"{BROKEN}_dwi.bvec" in reason and "\n" not in reason
    assert reason in (out / f"{BROKEN}.html").read_text().replace("&#39;", "'")
    assert f'<a href="{BROKEN}.html">' in (out / "group_desc-shdtv_qc.html").read_text()


def test_outliers_are_those_that_were_made(study):
    found = rows(study[0] / "out")
    assert {name for name, row in found.items() if row["outlier_in"] != "n/a"} == {BRIGHT, NOISY}
    assert "response_wm_b0:high" in found[BRIGHT]["outlier_in"]
    assert "response_wm_l2_share_b2500:high" in found[NOISY]["outlier_in"]  # noise makes it look round


def test_protocols_have_sets_of_their_own(study):
    out = study[0] / "out"
    groups = {name: row["group"] for name, row in rows(out).items() if name != BROKEN}
    assert {group: sum(other == group for other in groups.values()) for group in groups.values()} == {
        "protocol1, A": 7,
        "protocol2, B": 6,
    }


def test_a_second_start_computes_nothing_and_tells_the_broken_subject_again(study, capfd):
    root, _ = study
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*.nii.gz")}
    assert call(root / "raw", root / "out", level="response") == 1
    told = capfd.readouterr().err
    assert "13 of 13 series done, all by earlier calls" in told
    assert len([line for line in told.splitlines() if f"{BROKEN}_dwi.bvec" in line]) == 1
    assert {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*.nii.gz")} == before
