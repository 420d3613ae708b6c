"""The table and the page of a study: complete, offline, within its size, and safe against what comes from outside."""

import csv
import json
import re

import numpy as np
import pytest

from shd_bids.study.page import write_page
from shd_bids.study.ratings import Opinion
from shd_bids.study.series import Series, read_series
from shd_bids.study.study import assess, write_table
from tests.report.test_html import Page

EVIL = '<script>alert("1")</script>'


@pytest.fixture
def study(derivatives):
    """Ten series, the last failed, the second noisy, one of them rated by two readers."""
    runs = [derivatives.run(sub=f"{number:02d}") for number in range(10)]
    rng = np.random.default_rng(5)
    for run in runs[:-1]:
        derivatives.finish(run, snr=round(25 + rng.normal(), 2))
    derivatives.finish(runs[1], snr=3.5)
    derivatives.record(runs[-1], "20260101-000000_a", "failed", stage="gradients", message=f"flipped {EVIL}")
    series, columns = read_series(
        derivatives.out, runs, groups={run.key: "protocol1" for run in runs}, participants={"00": {"site": EVIL}}
    )
    opinions = [Opinion("sub-00", "pass", "", "anna", "1"), Opinion("sub-00", "fail", EVIL, "ben", "2")]
    return assess(series, columns, opinions), derivatives.out


def test_the_table_has_every_series_and_its_dictionary_every_column(study):
    found, out = study
    path = write_table(found, out)
    rows = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
    columns = json.loads(path.with_suffix(".json").read_text())
    assert [row["series"] for row in rows] == [f"sub-{number:02d}" for number in range(10)]
    assert list(columns) == list(rows[0])
    assert (rows[1]["outlier_in"], rows[1]["out_of_range"]) == ("snr:low", "snr:low")
    assert {row["outlier_in"] for row in [*rows[:1], *rows[2:]]} == {"n/a"}
    assert (rows[9]["status"], rows[9]["stage"], rows[9]["snr"]) == ("failed", "gradients", "n/a")
    assert rows[0]["rating"] == "conflict"
    assert columns["snr"]["ExpectedRange"] == [12, None]
    assert (columns["snr"]["Better"], columns["snr"]["Units"]) == ("higher", "1")


def test_the_page_shows_all_and_links_to_every_report_and_to_what_failed(study):
    found, out = study
    page = Page(write_page(found, out, title=EVIL).read_text("utf-8"))
    rows = page.values("tr", "data-name")
    assert rows == [f"sub-{number:02d}" for number in range(10)]
    links = [link for link in page.values("a", "href") if link.startswith("sub-")]
    assert links == [f"sub-{number:02d}.html" for number in range(9)] and all((out / link).is_file() for link in links)
    for told in (
        "9 finished",
        "1 not finished",
        "failed at Gradients and mask",
        "Signal-to-noise low",
        "readers differ",
    ):
        assert told in " ".join(page.text.split()), told


def test_nothing_from_outside_becomes_code_and_nothing_is_asked_from_the_network(study):
    found, out = study
    path = write_page(found, out, title=EVIL)
    text = path.read_text("utf-8")
    page = Page(text)
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert len(scripts) == 1 and "alert(" not in re.sub("<[^>]*>", "", text.partition("<script")[2])
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base"}
    assert all(source.startswith("data:") for source in page.values("img", "src"))
    assert not [attrs for _, attrs in page.tags if "style" in attrs]  # the policy would refuse it
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy


def test_every_picture_has_words_and_every_control_a_name(study):
    found, out = study
    page = Page(write_page(found, out, title="T").read_text("utf-8"))
    assert all(page.values("img", "alt")) and len(page.values("img", "alt")) == 9
    labels = [label for label in page.values("svg", "aria-label")]
    assert any("9 series, median 2" in label and "1 outliers" in label for label in labels)
    assert {attrs.get("scope") for tag, attrs in page.tags if tag == "th"} == {"col", "row"}


@pytest.mark.slow
def test_five_hundred_series_stay_below_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    picture = tmp_path / "thumbnail.webp"
    picture.write_bytes(rng.bytes(6000))  # the pictures of brains have 2 to 4 kB
    names = [*("snr", "fit_r2_median", "mask_volume_ml", "nufo_mean"), *(f"column_{number}" for number in range(40))]
    series = [
        Series(
            f"sub-{number:03d}",
            f"{number:03d}",
            "finished",
            group=f"protocol{number % 2}",
            values=dict(zip(names, rng.random(len(names)).tolist(), strict=True)),
            report="sub.html",
            thumbnail=picture,
        )
        for number in range(500)
    ]
    found = assess(series, {name: {"Description": name} for name in names}, [])
    assert write_page(found, tmp_path, title="many").stat().st_size < 10e6


def test_an_empty_study_has_a_page_too(tmp_path):
    found = assess([], {}, [])
    assert "0 series" in " ".join(Page(write_page(found, tmp_path, title="none").read_text("utf-8")).text.split())
    assert write_table(found, tmp_path).read_text().startswith("series\t")
