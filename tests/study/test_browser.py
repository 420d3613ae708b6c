"""The group page in a real browser, where playwright and Chromium are installed: marked, sorted, filtered, rated by keyboard."""

import shutil
from pathlib import Path

import pytest

from shd_bids.study.page import write_page
from shd_bids.study.ratings import find_ratings, read_ratings
from shd_bids.study.series import Series
from shd_bids.study.study import assess

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
AXE = next(
    (path for path in map(Path, ("node_modules/axe-core/axe.min.js", "/tmp/axe-core/axe.min.js")) if path.is_file()),
    None,
)
WAIT_S = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("group page"),  # each test goes on with the page as the one before left it
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page of seven series, the third noisy, the last failed."""
    root = tmp_path_factory.mktemp("out")
    snr = [25.0, 26.0, 0.1, 28.0, 29.0, 30.0, 31.0]
    series = [
        Series(f"sub-{number}", str(number), "finished", group="protocol1", values={"snr": value})
        for number, value in enumerate(snr)
    ]
    series.append(Series("sub-7", "7", "failed", "gradients", "x is flipped", "protocol1"))
    study = assess(series, {"snr": {"Description": "Signal-to-noise ratio", "Units": "1"}}, [])
    return write_page(study, root, title="seven")


@pytest.fixture(scope="module")
def page(page_file):
    """The page; in the end nothing was asked for and no error told."""
    problems = []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1000 * WAIT_S)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(1000 * WAIT_S)
        opened.on("console", lambda told: problems.append(told.text) if told.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(page_file.as_uri())
        yield opened
        browser.close()
    assert not problems


def test_a_series_is_marked_and_rated_by_keyboard_and_the_table_is_read_back(page, page_file):
    first = page.locator(".mark").first
    first.focus()
    for key in ("Enter", "p", "ArrowDown", "f"):
        page.keyboard.press(key)
    assert page.locator("#marked").text_content() == "Marked: sub-1"
    assert page.locator("svg .chosen").count() == 1
    page.fill("#rater", "anna")
    page.locator("#rater").press("Tab")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "desc-anna_ratings.tsv"
    download.value.save_as(page_file.parent / download.value.suggested_filename)
    found = {item.series: (item.rating, item.rater) for item in read_ratings(find_ratings(page_file.parent, []))}
    assert found == {"sub-0": ("pass", "anna"), "sub-1": ("fail", "anna")}
    page.reload()
    assert "2 rated by you, kept in this browser" in page.locator("#kept").text_content()


def test_the_table_is_filtered_and_sorted(page):
    for choice, value, count in (("state", "!finished", 1), ("doubts", "outlier", 1), ("rated", "none", 6)):
        page.select_option(f"#{choice}", value)
        assert page.locator("#count").text_content() == f"{count} of 8 series"
        page.select_option(f"#{choice}", "")
    page.locator("thead button", has_text="Signal-to-noise").press("Enter")
    assert page.locator("tbody tr").first.get_attribute("data-name") == "sub-2"


@pytest.mark.skipif(AXE is None, reason="axe-core is not here: npm pack axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.evaluate(AXE.read_text("utf-8"))
    violations = page.evaluate("axe.run().then((found) => found.violations.map((one) => [one.id, one.nodes[0].html]))")
    assert violations == []


@pytest.mark.parametrize("width", [400, 1280])
def test_no_width_makes_the_page_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
