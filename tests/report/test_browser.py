"""A report in a real browser, where playwright and Chromium are installed: drawn, turned, scrolled, read and refused nothing."""

import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shd_bids.report.figures import Ground, plot_mask, save_fod_scene, save_peaks_scene, save_tracks_scene
from shd_bids.report.html import RunReport, Status, write_report
from shd_bids.sphere.harmonics import sh_basis
from tests.report.facts import PREFIX

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
AXE = next(
    (path for path in map(Path, ("node_modules/axe-core/axe.min.js", "/tmp/axe-core/axe.min.js")) if path.is_file()),
    None,
)
SOFTWARE_GL = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
WAIT_S = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("report page"),  # one browser, one page
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of a ball of fibres along x and y that cross in the middle."""
    root = tmp_path_factory.mktemp("report")
    folder = root / "sub-01" / "figures"
    folder.mkdir(parents=True)
    mask = np.ones((10, 9, 8), dtype=bool)
    ground = Ground(mask, np.diag([2.0, 2.0, 2.0, 1.0]))
    n = mask.size
    wm = np.tile(sh_basis(np.eye(3)[:2], 4).sum(axis=0) * np.repeat([1, 0.7, 0.3], [1, 5, 9]), (n, 1))
    signal = np.random.default_rng(0).uniform(50, 100, n)
    save_fod_scene(
        folder / f"{PREFIX}_desc-fodview_dwi.json",
        ground=ground,
        b0=signal.reshape(mask.shape),
        coefficients=wm,
        fractions=np.tile([0.8, 0.1, 0.1], (n, 1)),
        quality={"rsquared": np.full(n, 0.9), "misfit": np.ones(n), "residualstd": np.ones(n)},
        signals={"b = 1000, volume 3": (signal, 0.5 * signal)},
    )
    vectors = np.tile(np.eye(3)[:2], (n, 1, 1))
    save_peaks_scene(
        folder / f"{PREFIX}_desc-peaksview_dwi.json",
        ground=ground,
        vectors=vectors,
        colours=np.tile([0.7, 0.7, 0.0], (n, 1)),
        counts=np.full(n, 2.0),
        density=np.ones(n),
    )
    lines = [np.array([[0.0, y, z], [9, y, z], [18, y, z]]) for y in range(0, 17, 4) for z in range(0, 15, 4)]
    save_tracks_scene(
        folder / f"{PREFIX}_desc-tracksview_dwi.json", ground=ground, streamlines=lines, density=np.ones(mask.shape)
    )
    plot_mask(folder / f"{PREFIX}_desc-mask_dwi.png", b0=signal.reshape(mask.shape), mask=mask, affine=ground.affine)
    return write_report(root, "01", None, [RunReport(PREFIX, {})], Status("ok"))


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL, timeout=1000 * WAIT_S)
        yield started
        started.close()


@pytest.fixture
def opened(browser, report):
    """The page with its view started; afterwards nothing was asked for and no error told."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(1000 * WAIT_S)
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("data:", "file:")) else problems.append(request.url)
    )
    open_view(page, report)
    yield page
    page.close()
    assert not [text for text in problems if "GPU stall" not in text]


def open_view(page, report):
    page.goto(report.as_uri())
    page.evaluate("document.querySelector('.view').scrollIntoView()")
    page.locator(".reading", has_text="At x").wait_for()


def area(page, name):
    return page.get_by_role("application", name=f"{name} view")


def pixels(locator):
    with Image.open(io.BytesIO(locator.screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def changed(page, name, before):
    """Wait until a pane looks other than before; return what it looks like."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        after = pixels(area(page, name))
        if np.abs(after - before).max() > 40:
            return after
        page.wait_for_timeout(100)
    raise AssertionError(f"the {name} pane did not change")


def test_every_pane_is_drawn(opened):
    for name in ("Sagittal", "Coronal", "Axial", "In three dimensions"):
        assert pixels(area(opened, name)).std() > 10, name
    assert opened.locator(".instead").is_hidden()


def test_the_wheel_scrolls_a_slice_that_was_clicked(opened):
    axial = area(opened, "Axial")
    axial.click()
    slider = opened.get_by_role("slider", name="Axial slice")
    before = int(slider.input_value())
    opened.mouse.wheel(0, -100)
    opened.locator(".pane .name", has_text=f"Axial: slice {before + 2} of").wait_for()
    assert int(slider.input_value()) == before + 1


def test_the_page_scrolls_past_a_view_that_was_not_clicked(opened):
    area(opened, "Axial").hover()
    before = opened.evaluate("window.scrollY")
    opened.mouse.wheel(0, 200)
    end = time.monotonic() + WAIT_S
    while opened.evaluate("window.scrollY") <= before:
        assert time.monotonic() < end, "the page did not scroll"
        opened.wait_for_timeout(100)


def test_dragging_turns_and_keys_turn_too(opened):
    turning = area(opened, "In three dimensions")
    turning.scroll_into_view_if_needed()
    before = pixels(turning)
    box = turning.bounding_box()
    opened.mouse.move(box["x"] + 100, box["y"] + 100)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 180, box["y"] + 140)
    opened.mouse.up()
    dragged = changed(opened, "In three dimensions", before)
    opened.keyboard.press("ArrowLeft")
    changed(opened, "In three dimensions", dragged)


@pytest.mark.parametrize("layer", ["fODF surfaces", "Peaks"])
def test_layers_show_the_colours_of_their_fibres(opened, layer):
    opened.get_by_label("Map ").first.select_option(label="Mean b = 0 image")
    opened.get_by_label("Cross-hair").uncheck()
    opened.wait_for_timeout(500)
    before = pixels(area(opened, "Axial"))
    opened.get_by_label(layer).check()
    after = changed(opened, "Axial", before)
    red, green, blue = np.moveaxis(after, -1, 0)
    assert np.count_nonzero((red > 100) & (green < 60) & (blue < 60)) > 50  # along x
    assert np.count_nonzero((green > 100) & (red < 60) & (blue < 60)) > 50  # along y


def test_predicted_signal_replaces_the_measured_one(opened):
    opened.get_by_label("Map ").first.select_option(label="Signal: b = 1000, volume 3")
    opened.locator(".reading", has_text="(measured)").wait_for()
    before = pixels(area(opened, "Axial"))
    opened.get_by_role("radio", name="predicted").check()
    changed(opened, "Axial", before)
    opened.get_by_role("button", name="Flicker").click()
    opened.locator(".reading", has_text="(measured)").wait_for()
    opened.get_by_role("button", name="Flicker").click()


def test_a_phone_is_wide_enough(browser, report):
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page.set_default_timeout(1000 * WAIT_S)
    open_view(page, report)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


def test_without_script_pictures_stand_in(browser, report):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    assert page.locator(".instead").is_visible()
    assert page.get_by_role("img", name="Brain mask").is_visible()
    page.close()


def test_without_webgl_the_page_says_so(browser, report):
    page = browser.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(report.as_uri())
    page.evaluate("document.querySelector('.view').scrollIntoView()")
    page.locator(".instead", has_text="no WebGL 2").wait_for(timeout=1000 * WAIT_S)
    assert page.locator(".stage").count() == 0
    page.close()


@pytest.mark.skipif(AXE is None, reason="axe-core is not there: npm pack axe-core, unpacked to /tmp/axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, report, scheme):
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.set_default_timeout(1000 * WAIT_S)
    open_view(page, report)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert [(item["id"], [node["target"] for node in item["nodes"]]) for item in found["violations"]] == []
    page.close()
