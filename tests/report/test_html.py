"""The page: complete, escaped, offline, and there after a failure too."""

import base64
import hashlib
from html.parser import HTMLParser

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shd_bids.report.html import SECTIONS, Problem, RunReport, Status, write_report
from tests.report.facts import PREFIX, column

VOID = {"meta", "img", "br", "link", "input"}


@pytest.fixture
def output_dir(tmp_path):
    folder = tmp_path / "sub-01" / "figures"
    folder.mkdir(parents=True)
    for section in SECTIONS:
        words = PngInfo()
        words.add_text("Description", f"row of {section.desc}\nsecond row")
        Image.new("RGB", (3, 2)).save(folder / f"{PREFIX}_desc-{section.desc}_dwi.png", pnginfo=words)
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
    assert len(found.values("img", "src")) == len(SECTIONS)
    links = [link for link in found.values("a", "href") if not link.startswith(("#", "http"))]
    assert links == [f"sub-01/figures/{PREFIX}_desc-{section.desc}_dwi.png" for section in SECTIONS]
    assert all((output_dir / link).is_file() for link in links)
    for told in (
        "1 run finished",
        "35 volumes: 3 at b = 0 and 32 at b = 1000 s/mm²",
        "2.5 × 2.5 × 2.5 mm",
        "1,432 ml",
        "WM and CSF",
        "amortised, on cpu in float32 and bf16, weights w",
        "0123456789ab",
        "median R² 0.934",
        "12,345, median length 61 mm",
        "seg-four, 4 regions, 3 of them connected, 2 pairs (33% of all) by 11,111 streamlines (90%)",
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
    assert not {tag for tag, _ in found.tags} & {"link", "iframe", "object", "base"}
    assert not found.values("script", "src")
    asked = found.values("img", "src")
    assert asked
    assert all(link.startswith("data:image/webp;base64,") for link in asked)
    style = (output_dir / "sub-01.html").read_text(encoding="utf-8")
    assert "@import" not in style
    assert "url(" not in style


def test_words_of_a_picture_stand_beside_it_with_its_numbers(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts)])
    assert "row of mask" in found.text
    alternatives = found.values("img", "alt")
    assert f"Brain mask of {PREFIX}: 1,432 ml outlined over the mean b = 0 image." in alternatives
    assert f"Streamlines of {PREFIX}: 12,345 streamlines and median length 61 mm." in alternatives
    assert (
        f"Connections between regions of {PREFIX}: seg-four, 4 regions, 3 of them connected, 2 pairs (33% of all) by 11,111 "
        "streamlines (90%)." in alternatives
    )


def test_policy_admits_the_style_and_script_of_the_page_and_nothing_else(output_dir, facts):
    write_report(output_dir, "01", None, [RunReport(PREFIX, facts)], Status("ok"))
    text = (output_dir / "sub-01.html").read_text(encoding="utf-8")
    found = Page(text)
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    script = text[text.index('<script type="module">') + 22 : text.index("</script>")]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in found.tags if "style" in attrs]


def test_numbers_are_judged_by_their_range(output_dir, facts):
    facts["fod"]["qc"] |= {"snr": column(5.0)}
    text = page(output_dir, [RunReport(PREFIX, facts)]).text
    assert "at least 12" in text
    assert text.count("look at this") == 1
    assert "800 to 1900 ml" in text


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
    facts["fod"]["info"] |= {"device": evil, "precision": evil, "fit": evil, "weights": evil, "weights_sha256": evil}
    facts["response"]["fitted_tissues"] = [evil]
    facts["tractography"]["sidecar"]["tractography"]["StreamlinePropagation"]["Algorithm"]["Name"] = evil
    run = RunReport(f'x"{evil}', facts, {"fit": evil}, Problem(evil, evil), [evil])
    status = Status("failed", evil, True, evil, evil, {evil: evil})
    found = page(tmp_path, [run, run], status, session=None)
    assert len([tag for tag, _ in found.tags if tag == "script"]) == 1  # that of the page
    assert evil not in (tmp_path / "sub-01.html").read_text("utf-8")


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


def test_each_series_can_be_rated(output_dir, facts):
    found = page(output_dir, [RunReport(PREFIX, facts), RunReport("sub-01_acq-y", facts)])
    assert found.values("section", "data-series") == [PREFIX, "sub-01_acq-y"]
    choices = [(attrs["name"], attrs["value"]) for tag, attrs in found.tags if attrs.get("type") == "radio"]
    words = ("pass", "doubt", "fail")
    assert choices == [(f"rating-run-{name}", word) for name in (PREFIX, "sub-01_acq-y") for word in words]
