"""Ratings: read as the pages save them, the newest of each reader, contradictions told."""

import pytest

from shd_bids.errors import InputError
from shd_bids.study.ratings import CONFLICT, counted, find_ratings, read_ratings, verdicts

HEAD = "series\trating\tcomment\trater\trated"


def write(path, *rows, head=HEAD):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_the_newest_rating_of_each_reader_counts(tmp_path):
    old = write(tmp_path / "desc-anna_ratings.tsv", "sub-01\tpass\tn/a\tanna\t2026-01-01T10:00:00Z")
    new = write(tmp_path / "b.tsv", 'sub-01\tdoubt\tnoisy, but "usable"\tanna\t2026-01-02T10:00:00Z')
    found, notes = verdicts(read_ratings([new, old]), ["sub-01", "sub-02"])
    (opinion,) = found["sub-01"].opinions
    assert str(opinion) == 'doubt (anna): noisy, but "usable"'
    assert (found["sub-01"].rating, found["sub-02"].rating, notes) == ("doubt", "", [])
    assert counted(found) == {"pass": 0, "doubt": 1, "fail": 0, CONFLICT: 0, "": 1}


def test_readers_that_differ_are_told(tmp_path):
    table = write(
        tmp_path / "a.tsv", "sub-01\tpass\tn/a\tanna\t1", "sub-01\tfail\tdark band\tben\t2", "sub-02\tpass\t\tben\t2"
    )
    found, notes = verdicts(read_ratings([table]), ["sub-01", "sub-02"])
    assert (found["sub-01"].rating, found["sub-02"].rating) == (CONFLICT, "pass")
    assert notes == ["sub-01: readers differ: pass (anna); fail (ben): dark band"]


def test_ratings_of_another_study_are_told(tmp_path):
    found, notes = verdicts(read_ratings([write(tmp_path / "a.tsv", "sub-9\tpass\t\t\t")]), ["sub-01"])
    assert (
        found["sub-01"].rating == "" and "1 ratings are of series that are not in the study, such as sub-9" in notes[0]
    )


def test_tables_beside_the_page_are_found(tmp_path):
    beside = write(tmp_path / "desc-anna_ratings.tsv")
    given = write(tmp_path / "elsewhere.tsv")
    assert find_ratings(tmp_path, [given, beside]) == [beside, given]


@pytest.mark.parametrize(
    ("row", "head", "told"),
    [
        ("sub-01\tgood\t\t\t", HEAD, r"a\.tsv, line 2: found 'good', expected pass, doubt, fail"),
        ("sub-01\tpass", "name\tgrade", r"a\.tsv: no column series and rating"),
        ("", "", "no column series and rating"),
    ],
)
def test_a_table_of_something_else_is_one_line(tmp_path, row, head, told):
    with pytest.raises(InputError, match=told) as caught:
        read_ratings([write(tmp_path / "a.tsv", row, head=head)])
    assert len(caught.value.problems) == 1
