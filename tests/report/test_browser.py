"""Pages in a real browser: no errors, pictures to be seen, a viewer that mouse and keys move."""

import io
import shutil

import pytest
import report_runs
import torch
from PIL import Image

from vqkern.cli import main
from vqkern.report import RunRecord, Strip, write_page

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the machine's own, or the one that playwright has installed."""
    reason = "pages are looked at with Chromium: pip install 'vqkern[browser]', and {}"
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip(reason.format("a Chromium on the PATH or `playwright install chromium`"))
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            # Without a sandbox of its own: containers and root accounts have none to give.
            launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(reason.format(f"none starts here ({str(error).splitlines()[0]})"))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run, of two, and of a demonstration."""
    folder = tmp_path_factory.mktemp("pages")
    runs = report_runs.two_runs(folder)
    two = folder / "two.html"
    assert main(["report", *map(str, runs), "--out", str(two)]) == 0
    assert main(["report", str(runs[0]), "--pictures", "0"]) == 0
    strips = [Strip(name, "", torch.zeros(3, 16, 16)) for name in ("a", "b")]
    for number, strip in enumerate(strips):
        for name, value in (("black", -1.0), ("grey", 0.0), ("white", 1.0)):
            image = torch.full((3, 16, 16), value) * (1 - number / 2)
            strip.reconstructions.append((name, image, 20.0 + number))
    record = RunRecord("demo", "vqkern demo", {}, {}, 1, "", strips=strips)
    write_page(record, folder / "demo.html", "A headline.", "A caveat.")
    return {"two": two, "one": runs[0] / "report.html", "demo": folder / "demo.html"}


@pytest.fixture
def opened(browser, pages):
    """Opens a page by name; in the end nothing must have been complained about or asked for."""
    complaints, contexts = [], []

    def open_page(name, width=1400, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("request", lambda r: r.url.startswith("data:") or complaints.append(r.url))
        shown.goto(pages[name].as_uri())
        own = complaints.pop(0)
        assert own == pages[name].as_uri()
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


VISIBLE = """image => { const box = image.getBoundingClientRect();
  return image.complete && image.naturalWidth > 0 && box.width > 40 && box.height > 40
    && box.left >= 0 && box.right <= innerWidth + 0.5; }"""


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("two", 360, "light"),
        ("two", 1400, "dark"),
        ("one", 360, "dark"),
        ("one", 1400, "light"),
        ("demo", 360, "dark"),
        ("demo", 1400, "light"),
    ],
)
def test_everything_is_visible_and_nothing_sticks_out(opened, name, width, scheme):
    shown = opened(name, width, scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    images = [i for i in shown.query_selector_all("img") if i.is_visible()]
    assert len(images) >= 8 and all(image.evaluate(VISIBLE) for image in images)
    charts = [c for c in shown.query_selector_all(".chart svg") if c.is_visible()]
    assert len(charts) == (0 if name == "demo" else 4)
    assert all(chart.bounding_box()["height"] > 100 for chart in charts)
    colours = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    ink, paper = (
        sum(map(int, c[4:-1].split(","))) for c in shown.eval_on_selector("body", colours)
    )
    assert (ink < 200 and paper > 700) if scheme == "light" else (ink > 600 and paper < 100)


def at(shown):
    """Where the pictures meet, by the script, and by what is cut off of the upper one."""
    style = shown.eval_on_selector(".stage", "e => e.style.getPropertyValue('--at')")
    cut = shown.eval_on_selector(".stage .before", "e => getComputedStyle(e).clipPath")
    return float(style.rstrip("%")), cut


@pytest.mark.parametrize("width", [360, 1400])
def test_the_mouse_moves_the_viewer(opened, width):
    shown = opened("two", width)
    stage = shown.query_selector(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    middle = box["y"] + box["height"] / 2
    assert at(shown)[0] == 50
    shown.mouse.move(box["x"] + box["width"] * 0.5, middle)
    shown.mouse.down()
    shown.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    shown.mouse.up()
    place, cut = at(shown)
    assert abs(place - 20) <= 2 and f"{100 - place:g}%" in cut
    shown.mouse.click(box["x"] + box["width"] * 0.9, middle)
    assert abs(at(shown)[0] - 90) <= 2


def test_the_keyboard_moves_the_viewer(opened):
    shown = opened("demo")
    shown.focus(".stage input")
    shown.keyboard.press("ArrowRight")
    assert at(shown)[0] == 51
    shown.keyboard.press("Home")
    assert at(shown)[0] == 0
    shown.keyboard.press("End")
    assert at(shown) == (100, "inset(0px 0% 0px 0px)")
    spoken = shown.get_attribute(".stage input", "aria-valuetext")
    assert spoken == "100 % black"


def test_the_viewer_shows_what_is_chosen(opened):
    shown = opened("demo")
    sides = ".sides span"
    assert shown.locator(sides).all_text_contents() == ["black, 20.00 dB", "white, 20.00 dB"]
    picture, left, _ = shown.query_selector_all(".viewer select")
    picture.select_option(label="b")
    left.select_option(label="original")
    assert shown.locator(sides).all_text_contents() == ["original", "white, 21.00 dB"]
    source = shown.eval_on_selector(".stage .before", "e => e.src")
    second = shown.locator(".strip").nth(1).locator("figure img").first
    assert source == second.get_attribute("src")
    # What is to be seen: the original's grey (0 in [-1, 1] is 128) left, the other's right.
    pixels = shown.query_selector(".stage").screenshot()
    seen = Image.open(io.BytesIO(pixels)).convert("L")
    across, down = seen.size
    assert abs(seen.getpixel((across // 4, down // 2)) - 128) <= 2
    assert abs(seen.getpixel((3 * across // 4, down // 2)) - 191) <= 2


def test_a_run_is_compared_with_its_own_beginning(opened):
    shown = opened("one")
    first, last = shown.locator(".sides span").all_text_contents()
    assert first.startswith("step 2, ") and last.startswith("step 4, ")
