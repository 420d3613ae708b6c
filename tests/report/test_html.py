"""The page: complete, escaped, offline, and there after a failure too."""

import re
from html.parser import HTMLParser

import pytest

from shd_bids.report.html import SECTIONS, Problem, RunReport, Status, write_report
from shd_bids.report.methods import REFERENCES, methods_text

VOID = {"meta", "img", "br", "link"}
PREFIX = "sub-01_acq-x"


def column(value):
    return {"value": value}


@pytest.fixture
def facts():
    """Facts as the stages write them."""
    return {
        "gradients": {
            "shells": [{"bvalue": 0.0, "n_volumes": 3}, {"bvalue": 1000.0, "n_volumes": 32}],
            "sidecar": {"mask_origin": "estimated"},
            "notes": ["no mask was given"],
            "orientation_check": {"is_given_best": True, "is_conclusive": True, "message": "the directions fit"},
            "qc": {f"voxel_size_{axis}": column(2.5) for axis in "xyz"} | {"mask_volume_ml": column(1432.4)},
            "seconds": 4.0,
            "peak_memory_mb": 700,
        },
        "response": {"fitted_tissues": ["wm", "csf"], "seconds": 2.0, "peak_memory_mb": 800},
        "fod": {
            "info": {"device": "cpu", "fit": "amortised", "weights": "w", "weights_sha256": "0123456789abcdef" * 4},
            "sidecar": {"fod_lmax": 12},
            "notes": ["signal-to-noise ratio 3"],
            "qc": {"fit_r2_median": column(0.934), "snr": column(21.0)},
            "seconds": 130.0,
            "peak_memory_mb": 3100,
        },
        "peaks": {"sidecar": {"peaks": {"PeakMinimumSeparation": 25.0}}, "seconds": 9.0, "peak_memory_mb": 1500},
        "tractography": {
            "sidecar": {
                "tractography": {
                    "StreamlinePropagation": {"Algorithm": {"Name": "ptt"}, "StepSize": 0.5, "AnglePerStep": 45.0},
                    "StreamlineReconstructionDensity": {"AcceptedStreamlines": 12345},
                }
            },
            "qc": {"n_streamlines": column(12345), "streamline_length_median": column(61.0)},
            "seconds": 40.0,
            "peak_memory_mb": 900,
        },
    }


@pytest.fixture
def output_dir(tmp_path):
    folder = tmp_path / "sub-01" / "figures"
    folder.mkdir(parents=True)
    for section in SECTIONS:
        (folder / f"{PREFIX}_desc-{section.desc}_dwi.png").write_bytes(b"png")
    return tmp_path


class Page(HTMLParser):
    """Collect tags and text, and refuse tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, tag, name):
        return [attrs[name] for found, attrs in self.tags if found == tag and name in attrs]


def page(output_dir, runs, status=None, session=None):
    path = write_report(output_dir, "01", session, runs, status or Status("ok"))
    return Page(path.read_text(encoding="utf-8"))


def test_all_figures_and_main_facts_are_there(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts)])
    links = found.values("img", "src")
    assert links == [f"sub-01/figures/{PREFIX}_desc-{section.desc}_dwi.png" for section in SECTIONS]
    assert all((output_dir / link).is_file() for link in links)
    for told in (
        "1 run finished",
        "35 volumes: 3 at b = 0 and 32 at b = 1000 s/mm²",
        "2.5 × 2.5 × 2.5 mm",
        "1,432 ml",
        "WM and CSF",
        "0123456789ab",
        "median R² 0.934",
        "12,345, median length 61 mm",
        "3.1 GB",
        "3 min",
        "2 warnings",
        "signal-to-noise ratio 3",
    ):
        assert told in found.text, told


def test_links_inside_the_page_have_their_targets(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts)])
    anchors = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    inner = [link[1:] for link in found.values("a", "href") if link.startswith("#")]
    assert inner
    assert set(inner) <= anchors


def test_navigation_finds_its_targets_after_a_failure(tmp_path):
    found = page(tmp_path, [RunReport(PREFIX, {}, {}, Problem("", "no b=0 volume; add one"))], Status("failed"))
    anchors = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    assert {link[1:] for link in found.values("a", "href") if link.startswith("#")} <= anchors


def test_nothing_is_asked_from_the_network(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts)])
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "base"}
    asked = found.values("img", "src") + found.values("img", "srcset")
    assert not [link for link in asked if "//" in link]
    style = (output_dir / "sub-01.html").read_text(encoding="utf-8")
    assert "@import" not in style
    assert "url(" not in style


def test_failed_run_says_where_and_what_to_do_before_all_else(output_dir, facts):
    for section in SECTIONS[2:]:
        (output_dir / "sub-01" / "figures" / f"{PREFIX}_desc-{section.desc}_dwi.png").unlink()
    problem = Problem("response", "3 voxels found, expected 30; give --mask")
    run = RunReport(PREFIX, {"gradients": facts["gradients"]}, {}, problem)
    found = page(output_dir, [run], Status("failed"))
    place = [
        found.text.index(text) for text in ("failed at: Responses", "give --mask", "Summary", "Gradient directions")
    ]
    assert place[0] < place[1] < found.text.index("35 volumes") < place[3]
    assert "Not made" in found.text
    assert len(found.values("img", "src")) == 2


def test_one_failure_among_several_runs_is_counted(output_dir, facts):
    runs = [RunReport(PREFIX, facts), RunReport("sub-01_acq-y", {}, {}, Problem("fod", "out of memory; use --mem"))]
    found = page(output_dir, runs, Status("failed"))
    assert "1 of 2 runs failed" in found.text
    assert "sub-01_acq-y failed at: fODF" in found.text


def test_interrupted_run_is_not_called_failed(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts, {}, Problem("", "stopped by SIGTERM"))], Status("interrupted"))
    assert "Interrupted before the end" in found.text
    assert found.text.count("stopped by SIGTERM") == 1
    assert "failed at" not in found.text


def test_page_of_a_good_subject_when_another_failed(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts)], Status("failed"))
    assert "1 run finished" in found.text
    assert "Another subject or session" in found.text


@pytest.mark.parametrize("state", ["ok", "failed", "interrupted"])
def test_page_without_any_run(tmp_path, state):
    found = page(tmp_path, [], Status(state, "stopped by SIGTERM"))
    assert "stopped by SIGTERM" in found.text


def test_everything_from_outside_is_escaped(tmp_path, facts):
    evil = '<script>alert("1")</script>'
    facts["gradients"]["notes"] = [evil]
    facts["gradients"]["orientation_check"]["message"] = evil
    facts["fod"]["info"] |= {"device": evil, "fit": evil, "weights": evil, "weights_sha256": evil}
    facts["response"]["fitted_tissues"] = [evil]
    facts["tractography"]["sidecar"]["tractography"]["StreamlinePropagation"]["Algorithm"]["Name"] = evil
    run = RunReport(f'x"{evil}', facts, {"fit": evil}, Problem(evil, evil), [evil])
    status = Status("failed", evil, True, evil, evil, {evil: evil})
    found = page(tmp_path, [run, run], status, session=None)
    assert not [tag for tag, _ in found.tags if tag == "script"]


def test_odd_facts_do_not_stop_the_page(tmp_path):
    """After a crash files may hold less than was promised."""
    facts = {
        "gradients": {},
        "response": {"fitted_tissues": []},
        "fod": {"info": {}},
        "peaks": {},
        "tractography": {"qc": None},
    }
    assert PREFIX in page(tmp_path, [RunReport(PREFIX, facts)]).text


def test_sloppy_results_are_marked(output_dir, facts):
    assert "Do not use these results" in page(output_dir, [RunReport(PREFIX, facts)], Status("ok", is_sloppy=True)).text


def test_kept_weights_are_told(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts, {"fit": "subject"})])
    assert "amortised (kept: --fit subject was not better)" in found.text


def test_session_has_its_own_page(tmp_path):
    assert write_report(tmp_path, "01", "a", [], Status("ok")) == tmp_path / "sub-01_ses-a.html"


def test_methods_cite_each_listed_reference_once_in_order(facts):
    text = methods_text([RunReport(PREFIX, facts)])
    body, _, references = text.partition("<ol")
    numbers = [int(number) for group in re.findall(r"\[([\d, ]+)\]", body) for number in group.split(",")]
    assert list(dict.fromkeys(numbers)) == list(range(1, references.count("<li>") + 1))
    assert "parallel transport" in body
    assert "degree 12" in body


def test_methods_tell_only_what_was_done(facts):
    done = {stage: facts[stage] for stage in ("gradients", "response")}
    text = methods_text([RunReport(PREFIX, done, {"responses": ["wm.txt"]})])
    assert "taken from files" in text
    assert "SHD-TV" not in text
    assert "tractography" not in text


def test_equal_runs_share_their_sentences(facts):
    text = methods_text([RunReport("sub-01_run-1", facts), RunReport("sub-01_run-2", facts)])
    assert text.count("SHD-TV") == 1
    assert "sub-01_run-1, sub-01_run-2" in text


def test_references_have_resolvable_addresses():
    for text, url in REFERENCES.values():
        assert text.endswith(".")
        assert url == "" or url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/"))
