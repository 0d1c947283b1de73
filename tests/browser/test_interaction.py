"""What a reader of the picture does with it, in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from bpflame.flamegraph.folded import read_folded
from bpflame.flamegraph.layout import SPAN
from bpflame.flamegraph.svg import SvgOptions, write_svg
from bpflame.profile import Frame, Profile, Sample

pytestmark = pytest.mark.browser

STACKS = """\
main;parse;read_line 100
main;parse;read_line;malloc 50
main;parse;foo(int) 50
main;render;draw;malloc 150
main;render;draw;samples_60 50
idle 600
"""
HOSTILE = [
    "<script>window.hacked=1</script>",
    "]]></title></svg><script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "</style><script>window.hacked=1</script>",
    "\x1b[31m\x00\ud800\ufffe\u202eesrever",
    "'';!--\"<x>=&{()}",
]


def draw(profile: Profile, options: SvgOptions | None = None) -> str:
    out = io.StringIO()
    write_svg(profile, out, options or SvgOptions())
    return out.getvalue()


def stacks(text: str = STACKS) -> Profile:
    return read_folded(text.splitlines(), "test")


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium-browser"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """A page with pictures; ``number`` says which of them is meant."""

    def __init__(self, driver: webdriver.Chrome, number: int = 0) -> None:
        self.driver = driver
        self.root = driver.find_elements(By.CSS_SELECTOR, "svg.bpflame")[number]

    def find(self, selector: str) -> WebElement:
        return self.root.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.root.find_elements(By.CSS_SELECTOR, selector)

    def js(self, code: str) -> object:
        return self.driver.execute_script(f"const root = arguments[0]; {code}", self.root)

    def frame(self, name: str, nth: int = 0) -> WebElement:
        code = (
            "return [...arguments[0].querySelectorAll('.frames rect')]"
            ".filter((rect) => rect.textContent.startsWith(arguments[1] + '\\n'))"
        )
        found: list[WebElement] = self.driver.execute_script(code, self.root, name)
        return found[nth]

    def click(self, name: str, nth: int = 0) -> None:
        # Where the frame is in sight: the zoom may have cut off its middle.
        box = self.frame(name, nth).rect
        left, right = max(box["x"], 0), min(box["x"] + box["width"], 1280)
        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(  # type: ignore[no-untyped-call]
            int((left + right) / 2), int(box["y"] + box["height"] / 2)
        ).click()
        actions.perform()

    def hover(self, name: str, nth: int = 0) -> None:
        ActionChains(self.driver).move_to_element(self.frame(name, nth)).perform()

    def keys(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        actions = ActionChains(self.driver)
        actions.key_down(modifier).send_keys(key).key_up(modifier).perform()

    def labels(self) -> list[str]:
        return [label.text for label in self.all(".labels text")]

    def viewbox(self) -> list[float]:
        text = self.find("svg.frames").get_dom_attribute("viewBox")
        return [float(number) for number in re.split("[ ,]+", text)]

    def names(self, selector: str) -> list[str]:
        code = "return [...arguments[0].querySelectorAll(arguments[1])].map((r) => r.textContent)"
        found: list[str] = self.driver.execute_script(code, self.root, selector)
        return [text.split("\n")[0] for text in found]

    def matched(self) -> list[str]:
        return self.names(".frames .match")

    def status(self) -> str:
        return self.find(".status").text

    def search(self, text: str) -> None:
        self.find("input").click()
        self.chord(Keys.CONTROL, "a")
        self.keys(Keys.DELETE, text)


def console(driver: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser")]  # type: ignore[no-untyped-call]


def settle(driver: webdriver.Chrome) -> None:
    """Wait two frames: by the second one, resize observers have run."""
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def resize(driver: webdriver.Chrome, width: int) -> None:
    driver.set_window_size(width, 900)
    settle(driver)


Show = Callable[..., Page]


@pytest.fixture
def show(chromium: webdriver.Chrome, tmp_path: Path) -> Iterator[Show]:
    """Open text as a file; what the page then complains of fails the test."""
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.set_window_size(1280, 900)

    def open_text(text: str, suffix: str = ".svg", number: int = 0) -> Page:
        path = tmp_path / f"page{suffix}"
        path.write_text(text, encoding="utf-8")
        chromium.get(path.as_uri())
        settle(chromium)
        return Page(chromium, number)

    console(chromium)
    yield open_text
    assert console(chromium) == []


def test_click_zooms_and_keeps_ancestors(show: Show) -> None:
    page = show(draw(stacks()))
    assert page.viewbox()[:3:2] == [0, SPAN]
    page.click("parse")
    assert page.viewbox()[:3:2] == [SPAN * 0.6, SPAN * 0.2]
    assert page.labels() == ["all", "main", "parse", "foo(int)", "read_line", "malloc"]
    assert page.names(".faded") == ["all", "main"]
    width = float(page.find("svg.frames").get_dom_attribute("width"))
    assert page.frame("main").rect["width"] >= width
    assert page.frame("parse").rect["width"] == pytest.approx(width, abs=1)


def test_labels_sit_on_their_frames_at_every_zoom(show: Show) -> None:
    page = show(draw(stacks()))
    for name, nth in (("all", 0), ("render", 0), ("malloc", 1), ("main", 0)):
        page.click(name, nth)
        for label in page.all(".labels text"):
            box = label.rect
            middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            code = "return document.elementFromPoint(arguments[0], arguments[1]).textContent"
            below: str = page.driver.execute_script(code, *middle)
            assert below.startswith(label.text.rstrip("…"))


@pytest.mark.parametrize("how", ["button", "escape", "root"])
def test_reset(show: Show, how: str) -> None:
    page = show(draw(stacks()))
    before = page.labels()
    assert not page.find(".reset").is_displayed()
    page.click("parse")
    if how == "button":
        page.find(".reset").click()
    elif how == "escape":
        page.keys(Keys.ESCAPE)
    else:
        page.click("all")
    assert page.viewbox()[:3:2] == [0, SPAN]
    assert page.labels() == before
    assert page.names(".faded") == []
    assert not page.find(".reset").is_displayed()


def test_slash_searches_names_and_sums_without_counting_twice(show: Show) -> None:
    page = show(draw(stacks()))
    page.keys("/", "read_line")
    assert page.matched() == ["read_line"]
    assert page.status() == "Matched 15.00%"
    page.search("MALLOC")
    assert (page.matched(), page.status()) == ([], "No match")
    page.search("malloc")
    assert page.matched() == ["malloc", "malloc"]
    assert page.status() == "Matched 20.00%"
    # A parent and its child cover the width of the parent.
    page.search("ma")
    assert page.matched() == ["main", "malloc", "malloc"]
    assert page.status() == "Matched 40.00%"
    page.search("")
    assert (page.matched(), page.status()) == ([], "")


@pytest.mark.parametrize(
    ("query", "names"),
    [("samples", ["samples_60"]), ("60", ["samples_60"]), ("foo(int)", ["foo(int)"]), ("a.n", [])],
)
def test_search_is_literal_and_in_names_only(show: Show, query: str, names: list[str]) -> None:
    page = show(draw(stacks()))
    page.search(query)
    assert page.matched() == names


def test_regexp(show: Show) -> None:
    page = show(draw(stacks()))
    page.find(".regexp").click()
    page.search("^ma..$")
    assert page.matched() == ["main"]
    page.search("foo(")
    assert page.status().startswith("Not a regular expression: ")
    assert page.find("input").get_attribute("aria-invalid") == "true"
    assert page.matched() == []
    page.click("parse")
    assert page.status().startswith("Not a regular expression: ")
    page.find(".regexp").click()
    assert page.matched() == ["foo(int)"]


def test_search_and_zoom(show: Show) -> None:
    page = show(draw(stacks()))
    page.search("malloc")
    page.click("parse")
    assert page.status() == "Matched 25.00% of view, 20.00% of all"
    page.keys(Keys.ESCAPE)
    assert (page.matched(), page.status()) == ([], "")
    assert page.find("input").get_attribute("value") == ""


def test_enter_goes_from_match_to_match(show: Show) -> None:
    page = show(draw(stacks("main;a;needle 1\nmain;b;needle 1\nmain;c 9999\n")))
    page.search("needle")
    for number, parent in ((1, "a"), (2, "b"), (1, "a")):
        page.keys(Keys.ENTER)
        assert page.status().endswith(f"({number} of 2)")
        assert parent in page.labels(), "a match too narrow to see is zoomed to"
    page.chord(Keys.SHIFT, Keys.ENTER)
    assert page.status().endswith("(2 of 2)")


def test_browser_shortcuts_are_left_alone(show: Show) -> None:
    page = show(draw(stacks()))
    code = """
      const seen = [];
      for (const init of [{key: "f", ctrlKey: true}, {key: "f", metaKey: true}, {key: "F3"},
                          {key: "/", ctrlKey: true}, {key: "/"}]) {
        const event = new KeyboardEvent("keydown", {...init, bubbles: true, cancelable: true});
        root.dispatchEvent(event);
        seen.push(event.defaultPrevented);
      }
      return seen;"""
    assert page.js(code) == [False, False, False, False, True]


def test_tooltip_tells_share_of_all_and_of_view(show: Show) -> None:
    page = show(draw(stacks()))
    page.hover("read_line")
    assert page.find(".details").text == "read_line  150 samples, 15.00%, self 10.00%"
    page.click("parse")
    page.hover("read_line")
    assert page.find(".details").text.endswith("self 10.00%, 75.00% of view")
    title = page.frame("read_line").find_element(By.TAG_NAME, "title")
    assert title.get_attribute("textContent") == (
        "read_line\n150 samples, 15.00%, self 10.00%, 75.00% of view"
    )
    page.find(".reset").click()
    page.hover("read_line")
    assert "of view" not in (title.get_attribute("textContent") or "")


def test_time_is_shown_as_time(show: Show) -> None:
    profile = Profile("offcpu", "ns", (Sample((Frame("read"),), 2_500_000),))
    page = show(draw(profile))
    page.hover("read")
    assert page.find(".details").text == "read  2.50 ms, 100.00%"


def test_search_goes_on_in_the_stacks_of_wakers(show: Show) -> None:
    lines = [
        "main;read;--;wake_[w];write_[w];sh_[w];--;wake_[w];[timer]_[w] 3000000000",
        "main;read;[blocked];[partial] 1000000000",
    ]
    page = show(draw(read_folded(lines, "test", "chain", "ns")))
    page.search("wake")
    assert page.matched() == ["wake", "wake"]
    assert page.status() == "Matched 75.00%"
    page.click("--", 1)
    assert page.labels() == [
        "all",
        "main",
        "read",
        "--",
        "wake",
        "write",
        "sh",
        "--",
        "wake",
        "[timer]",
    ]
    assert page.status() == "Matched 100.00% of view, 75.00% of all"
    page.hover("--", 1)
    assert page.find(".details").text == "--  3.00 s, 75.00%, 100.00% of view  separator"
    page.keys(Keys.ESCAPE)
    page.hover("[blocked]")
    assert page.find(".details").text == (
        "[blocked]  1.00 s, 25.00%  waits for something other than a CPU"
    )


def test_picture_is_as_wide_as_the_window(show: Show) -> None:
    page = show(draw(stacks()))
    for width in (1280, 700, 1600):
        resize(page.driver, width)
        frames, controls = page.find("svg.frames").rect, page.find(".regexp").rect
        assert frames["x"] + frames["width"] == pytest.approx(width - 12, abs=1)
        assert controls["x"] + controls["width"] == pytest.approx(width - 12, abs=1)


def test_controls_give_way_to_the_title(show: Show) -> None:
    page = show(draw(stacks()))
    resize(page.driver, 640)
    page.search("malloc")
    page.click("parse")
    title = page.find("text.title").rect
    for control in page.all(".controls > *"):
        assert control.rect["x"] >= title["x"] + title["width"]
        assert control.rect["x"] + control.rect["width"] <= 640


def test_without_its_script_the_file_is_the_same_picture(show: Show) -> None:
    live = show(draw(stacks()))
    resize(live.driver, 1200)
    labels = live.labels()
    still = show(draw(stacks(), SvgOptions(interactive=False)))
    assert still.labels() == labels
    assert still.all("input") == []
    assert still.find("svg.frames").rect["width"] == 1176


def test_dark_mode(show: Show) -> None:
    page = show(draw(stacks()))
    code = """return [".background", ".labels text", ".frames rect"].map(
      (name) => getComputedStyle(root.querySelector(name)).fill)"""
    light = page.js(code)
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    dark = page.js(code)
    assert isinstance(light, list)
    assert isinstance(dark, list)
    assert light[:2] == ["rgb(255, 255, 255)", "rgb(29, 33, 41)"]
    assert dark[:2] == ["rgb(22, 24, 29)", "rgb(236, 238, 242)"]
    assert light[2] != dark[2]


def test_pictures_on_one_page_do_not_disturb_each_other(show: Show) -> None:
    other = draw(stacks("main;other 3\nmain;malloc 1\n"))
    one = show(f"<!doctype html><meta charset=utf-8>{draw(stacks())}<hr>{other}", ".html")
    two = Page(one.driver, 1)
    two.click("other")
    assert one.viewbox()[2] == SPAN
    assert one.names(".faded") == []
    one.search("malloc")
    assert (one.status(), two.status()) == ("Matched 20.00%", "")
    assert (len(one.matched()), len(two.matched())) == (2, 0)
    one.keys(Keys.ESCAPE)
    assert two.viewbox()[2] < SPAN
    two.hover("other")
    two.keys("/", "mal")
    assert (len(one.matched()), len(two.matched())) == (0, 1)


def test_keys_typed_elsewhere_are_not_taken(show: Show) -> None:
    page = show(f"<!doctype html><input class=mine>{draw(stacks())}", ".html")
    mine = page.driver.find_element(By.CLASS_NAME, "mine")
    page.click("parse")
    mine.send_keys("/x", Keys.ESCAPE)
    assert mine.get_attribute("value") == "/x"
    assert page.viewbox()[2] < SPAN


def digest(text: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}[^>]*><!\[CDATA\[(.*?)\]\]></{tag}>", text, re.DOTALL)
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def test_strict_content_security_policy(show: Show) -> None:
    text = draw(stacks())
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest(text, 'script')}';"
        f" style-src 'sha256-{digest(text, 'style')}'"
    )
    page = show(
        f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}">{text}',
        ".html",
    )
    page.click("parse")
    page.search("malloc")
    assert page.status() == "Matched 25.00% of view, 20.00% of all"
    assert page.js("return getComputedStyle(root.querySelector('.labels')).pointerEvents") == "none"


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_hostile_names_are_only_text(show: Show, suffix: str) -> None:
    samples = tuple(Sample((Frame("main"), Frame(name)), 1) for name in HOSTILE)
    profile = Profile("cpu", "samples", samples)
    page = show(draw(profile, SvgOptions(title=HOSTILE[0], subtitle=HOSTILE[1])), suffix)
    for nth in range(len(page.names(".frames rect"))):
        code = "arguments[0].querySelectorAll('.frames rect')[arguments[1]]"
        for event in (
            "new PointerEvent('pointerover', {bubbles: true})",
            "new MouseEvent('click', {bubbles: true})",
        ):
            page.driver.execute_script(f"{code}.dispatchEvent({event})", page.root, nth)
    page.search("<script>")
    assert len(page.matched()) == 3
    assert page.js("return [window.hacked, document.querySelectorAll('img').length]") == [None, 0]
    assert len(page.driver.find_elements(By.TAG_NAME, "script")) == 1


def test_empty_profile(show: Show) -> None:
    page = show(draw(stacks(""), SvgOptions(empty_reason="pid 7 slept")))
    assert page.find(".empty").text == "No samples"
    assert page.all("input") == []


def test_deep_stack(show: Show) -> None:
    page = show(draw(stacks(";".join(f"f{n}" for n in range(10_000)) + " 1\n")))
    page.search("f9999")
    page.keys(Keys.ENTER)
    assert page.status().startswith("Matched 100.00%")
    assert page.viewbox()[3] == 10_001 * 17
