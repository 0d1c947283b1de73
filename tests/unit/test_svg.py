from __future__ import annotations

import colorsys
import importlib.resources
import io
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.flamegraph import colors
from bpflame.flamegraph.layout import SPAN
from bpflame.flamegraph.svg import PAD, SvgOptions, write_svg
from bpflame.flamegraph.text import columns, printable
from bpflame.flamegraph.units import format_value, percent
from bpflame.profile import WAITS, Frame, FrameKind, Metadata, Profile, Reason, Sample

SVG = "{http://www.w3.org/2000/svg}"
NAMES = st.one_of(
    st.text(),
    st.text(st.sampled_from("<>&]\"'\x00\x1b\t\n\ud800\udfff\ufffe\uffff\u202e\x85script")),
)
KINDS = ("cpu", "offcpu", "wakeup", "offwake", "chain")
ALLOWED = {"svg", "title", "defs", "style", "rect", "text", "g", "path", "script"}


def draw(profile: Profile, options: SvgOptions | None = None) -> str:
    out = io.StringIO()
    write_svg(profile, out, options or SvgOptions())
    return out.getvalue()


def parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.encode("utf-8"))


def profile(*stacks: tuple[str, int], **meta: Any) -> Profile:
    samples = tuple(
        Sample(tuple(Frame(name) for name in stack.split(";")), value) for stack, value in stacks
    )
    return Profile("cpu", "samples", samples, Metadata(**meta))


def texts(root: ElementTree.Element, css_class: str) -> list[str]:
    return [e.text or "" for e in root.iter(f"{SVG}text") if e.get("class") == css_class]


def titles(root: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in root.findall(f"{SVG}svg/{SVG}rect/{SVG}title")]


@given(st.lists(NAMES, min_size=1, max_size=5), NAMES, st.sampled_from(FrameKind))
def test_no_name_can_break_the_file(names: list[str], title: str, kind: FrameKind) -> None:
    stack = tuple(Frame(name, kind, module=name, file=name, line=1) for name in names)
    meta = Metadata(title=title, target=title, host=title)
    drawn = draw(
        Profile("cpu", "samples", (Sample(stack, 1),), meta), SvgOptions(empty_reason=title)
    )
    root = parse(drawn)
    tags = [element.tag.removeprefix(SVG) for element in root.iter()]
    assert set(tags) <= ALLOWED
    assert tags.count("script") == tags.count("style") == 1
    assert {key for e in root.iter() for key in e.attrib if key.startswith("on")} == set()
    shown = {title.split("\n")[0] for title in titles(root)}
    assert shown == {"all", *(printable(name) for name in names)}


def test_same_bytes_every_time() -> None:
    assert draw(profile(("a;b", 1), ("a;c", 2))) == draw(profile(("a;c", 2), ("a;b", 1)))


def test_a_frame_tells_its_value_share_and_origin() -> None:
    stack = (
        Frame("main", module="/bin/app", file="a.c", line=7),
        Frame("read", FrameKind.KERNEL, "vmlinux"),
        Frame("[x+0x1]", unnamed=Reason.NO_SYMBOL),
    )
    samples = (Sample(stack, 3000), Sample(stack[:1], 1000))
    assert titles(parse(draw(Profile("cpu", "samples", samples)))) == [
        "all\n4,000 samples, 100.00%",
        "main\n4,000 samples, 100.00%, self 25.00%\n/bin/app, a.c:7",
        "read\n3,000 samples, 75.00%\nkernel, vmlinux",
        "[x+0x1]\n3,000 samples, 75.00%\nno symbol covers the address (stripped)",
    ]


def test_a_wait_tells_its_time_and_what_it_means() -> None:
    stack = (
        Frame("sh", FrameKind.PROCESS),
        Frame("read", FrameKind.KERNEL),
        Frame("[blocked]", FrameKind.WAIT),
        Frame("[partial]", FrameKind.WAIT),
    )
    samples = (Sample(stack, 3_000_000_000), Sample(stack[:3], 1_234_000))
    assert titles(parse(draw(Profile("offcpu", "ns", samples))))[-2:] == [
        "[blocked]\n3.00 s, 100.00%, self 0.04%\nwaits for something other than a CPU",
        "[partial]\n3.00 s, 99.96%\nbegan before the recording, or went on after it",
    ]


def test_who_waits_and_who_wakes_are_boxes_of_their_own() -> None:
    separator = Frame("--", FrameKind.SEPARATOR)
    user, waker = Frame("unlock"), Frame("unlock", FrameKind.WAKER)
    stacks = ((user, separator, waker, separator, waker), (user, separator), (user, user))
    root = parse(draw(Profile("chain", "ns", tuple(Sample(stack, 10) for stack in stacks))))
    classes = [rect.get("class", "")[0] for rect in root.findall(f"{SVG}svg/{SVG}rect")]
    assert "".join(classes) == "puswswu"
    labels = {e.text: e.get("class") for e in root.findall(f"{SVG}g/{SVG}text")}
    assert (labels["--"], labels["unlock"]) == ("s", None)


def test_the_legend_has_the_words_for_what_is_drawn() -> None:
    frames = [Frame("f", kind) for kind in FrameKind if kind is not FrameKind.WAIT]
    frames += [Frame(name, FrameKind.WAIT) for name in WAITS]
    samples = tuple(Sample((frame,), 1) for frame in frames)
    root = parse(draw(Profile("chain", "ns", samples), SvgOptions(subtitle="mine")))
    assert texts(root, "subtitle") == [
        "mine",
        *("user", "kernel", "inlined", "JIT", "waker"),
        *("blocked", "run queue", "preempted", "partial"),
    ]


def test_frames_and_labels_are_where_they_belong() -> None:
    root = parse(draw(profile(("main;left", 1), ("main;right;leaf", 3))))
    boxes = {
        title.split("\n")[0]: rect
        for title, rect in zip(titles(root), root.findall(f"{SVG}svg/{SVG}rect"), strict=True)
    }
    assert boxes["right"].get("x") == str(SPAN // 4)
    assert boxes["right"].get("width") == str(3 * SPAN // 4)
    assert int(boxes["leaf"].get("y", "")) < int(boxes["main"].get("y", ""))
    labels = {e.text: float(e.get("x", "")) for e in root.findall(f"{SVG}g/{SVG}text")}
    assert set(labels) == {"all", "main", "left", "right", "leaf"}
    assert labels["right"] - labels["left"] == pytest.approx((1200 - 2 * PAD) / 4, abs=0.1)


def test_labels_fit_their_frames() -> None:
    root = parse(draw(profile(("a" * 500, 1), ("日本語" * 100, 1), ("n" * 9, 1), ("z", 4000))))
    room = (1200 - 2 * PAD) / 2
    for label in root.findall(f"{SVG}g/{SVG}text"):
        assert columns(label.text or "") * 6.02 < room * 2


def test_inverted_puts_the_root_on_top() -> None:
    root = parse(draw(profile(("main;leaf", 1)), SvgOptions(inverted=True)))
    assert [int(r.get("y", "")) for r in root.findall(f"{SVG}svg/{SVG}rect")] == [0, 17, 34]


def test_subtitle_tells_where_the_profile_comes_from() -> None:
    meta: dict[str, Any] = {
        "target": "pid 12",
        "host": "web-1",
        "kernel": "6.18.5",
        "cpus": 4,
        "event": "cpu-clock",
        "frequency": 99,
        "start": 1_700_000_000.0,
        "duration": 30.0,
        "counters": {"samples": 5, "lost_samples": 1234, "lost_stacks": 0},
    }
    (line,) = texts(parse(draw(profile(("main", 5), **meta))), "subtitle")
    assert line.split("  ·  ") == [
        "pid 12",
        "web-1, Linux 6.18.5",
        "cpu-clock at 99 Hz on 4 CPUs",
        "2023-11-14 22:13:20 UTC",
        "recorded for 30.0 s",
        "5 samples",
        "lost samples: 1,234",
    ]


def test_subtitle_of_a_long_command_is_cut_and_wrapped() -> None:
    lines = texts(parse(draw(profile(("main", 5), target="x" * 1000, host="web-1"))), "subtitle")
    assert len(lines) == 2
    assert lines[0].endswith("x…")
    assert lines[1] == "web-1  ·  5 samples"


def test_what_is_not_drawn_is_said_and_shown() -> None:
    stacks = [("main;wide", 99_000), *((f"main;tiny{n}", 1) for n in range(1000))]
    root = parse(draw(profile(*stacks), SvgOptions(subtitle="mine")))
    (line, *_) = texts(root, "subtitle")
    assert line == "mine  ·  1,000 frames narrower than 0.1 px not drawn (1.00%)"
    assert "1,000 frames too narrow to draw\n1,000 samples, 1.00%" in titles(root)
    assert "not drawn" not in draw(profile(*stacks), SvgOptions(minwidth=0))


@pytest.mark.parametrize("values", [[], [0]])
def test_an_empty_profile_says_so(values: list[int]) -> None:
    empty = profile(*(("main", value) for value in values))
    root = parse(draw(empty, SvgOptions(empty_reason="pid 12 slept")))
    assert texts(root, "empty") == ["No samples"]
    assert texts(root, "empty reason") == ["pid 12 slept"]
    assert titles(root) == []


@pytest.mark.parametrize(
    ("kind", "text"), [("cpu", "No samples"), ("wakeup", "No wakeups"), ("chain", "No waits")]
)
def test_an_empty_profile_says_what_there_is_none_of(kind: str, text: str) -> None:
    assert texts(parse(draw(Profile(kind, "ns", ()))), "empty") == [text]


def test_ten_thousand_frames_deep() -> None:
    root = parse(draw(profile((";".join(f"f{n}" for n in range(10_000)), 1))))
    assert len(titles(root)) == 10_001
    assert int(root.get("height", "")) > 170_000


def test_options() -> None:
    options = SvgOptions(title="Mine", width=600, interactive=False)
    root = parse(draw(profile(("main", 1)), options))
    assert texts(root, "title") == ["Mine"]
    assert root.get("width") == "600"
    assert root.find(f"{SVG}script") is None


def test_nothing_comes_from_outside() -> None:
    text = draw(profile(("main", 1)))
    assert set(re.findall(r"https?://[^\"\s]+", text)) == {
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/2001/xml-events",
    }
    assert re.search(r"innerHTML|eval\(|new Function|@import|url\(| id=|style=", text) is None


@pytest.mark.parametrize("name", ["flamegraph.js", "style.css"])
def test_assets_can_stand_in_cdata(name: str) -> None:
    asset = importlib.resources.files("bpflame.flamegraph") / "assets" / name
    text = asset.read_text("utf-8")
    assert "]]>" not in text
    assert "</" not in text


def luminance(color: str) -> float:
    parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(left: str, right: str) -> float:
    low, high = sorted((luminance(left), luminance(right)))
    return (high + 0.05) / (low + 0.05)


def classes(profile_kind: str, *kinds: FrameKind) -> set[str]:
    """Of all the shades that names can have."""
    names = ["[x]", *WAITS, *(f"f{n}" for n in range(99))]
    return {colors.color_class(Frame(name, k), profile_kind) for name in names for k in kinds}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "unheard-of"])
def test_labels_are_legible_on_every_color(kind: str, dark: bool) -> None:
    for css_class in classes(kind, *FrameKind):
        ink = "#ffffff" if css_class[0] == "s" else ("#eceef2" if dark else "#1d2129")
        assert contrast(ink, colors.fill(css_class, dark)) >= 4.5, css_class


def hues(css_classes: set[str], dark: bool) -> list[float]:
    """From least to greatest, degrees."""
    fills = [colors.fill(css_class, dark) for css_class in css_classes]
    parts = [[int(fill[n : n + 2], 16) / 255 for n in (1, 3, 5)] for fill in fills]
    return sorted(360 * colorsys.rgb_to_hls(*part)[0] for part in parts)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["offcpu", "wakeup", "offwake", "chain"])
def test_who_waits_is_blue_and_who_wakes_is_aqua(kind: str, dark: bool) -> None:
    aqua, blue = (160, 200), (200, 230)
    low, high = aqua if kind == "wakeup" else blue
    code = {f"{letter}{shade}" for letter in "uk" for shade in range(colors.SHADES)}
    drawn = classes(kind, FrameKind.USER, FrameKind.KERNEL)
    assert {css_class[0] + css_class[-1] for css_class in drawn} >= code
    user = hues({css_class for css_class in drawn if css_class[0] == "u"}, dark)
    kernel = hues({css_class for css_class in drawn if css_class[0] == "k"}, dark)
    assert low < user[0] < user[-1] < kernel[0] < kernel[-1] < high
    if kind in ("offwake", "chain"):
        waker = hues(classes(kind, FrameKind.WAKER), dark)
        assert aqua[0] < waker[0] < waker[-1] < aqua[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_has_the_color_of_its_name(kind: str) -> None:
    waits = [colors.color_class(Frame(name, FrameKind.WAIT), kind) for name in WAITS]
    assert waits == ["b0", "q0", "e0", "c0"]
    assert colors.color_class(Frame("[other]", FrameKind.WAIT), kind) == "t0"
    for dark in (False, True):
        assert len({colors.fill(css_class, dark) for css_class in [*waits, "t0"]}) == 5


@pytest.mark.parametrize(("ink", "fill"), [("#1d2129", "#e879f9"), ("#eceef2", "#a21caf")])
def test_labels_are_legible_on_a_match(ink: str, fill: str) -> None:
    asset = importlib.resources.files("bpflame.flamegraph") / "assets" / "style.css"
    assert f".match{{fill:{fill}}}" in asset.read_text("utf-8")
    assert contrast(ink, fill) >= 4.5


def test_a_color_depends_on_name_and_kind_alone() -> None:
    assert colors.color_class(Frame("main")) == colors.color_class(Frame("main", module="x"))
    assert colors.color_class(Frame("main"))[0] == "u"
    assert colors.color_class(Frame("main", FrameKind.KERNEL))[0] == "k"
    assert colors.color_class(Frame("[libc.so.6+0x1]"))[0] == "n"
    assert colors.color_class(Frame("0x1", unnamed=Reason.UNMAPPED))[0] == "n"


def test_pictures_of_all_kinds_can_stand_on_one_page() -> None:
    frames = [Frame("f", kind) for kind in FrameKind] + [Frame("[x]")]
    rules: dict[str, set[str]] = {}
    for kind in KINDS:
        text = draw(Profile(kind, "ns", tuple(Sample((frame,), 1) for frame in frames)))
        for selector, fill in re.findall(r"(\.bpflame \.[a-z]+\d)\{fill:(#\w+)\}\n", text):
            rules.setdefault(selector, set()).add(fill)
    assert len(rules) > len(frames)
    assert {len(fills) for fills in rules.values()} == {2}, "one for each colour scheme"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1, "samples", "1 sample"),
        (1234, "samples", "1,234 samples"),
        (0, "ns", "0 ns"),
        (999, "ns", "999 ns"),
        (1_500, "ns", "1.50 µs"),
        (2_000_000, "ns", "2.00 ms"),
        (3_723_500_000_000, "ns", "3,723.50 s"),
        (512, "bytes", "512 bytes"),
        (3 * 2**20, "bytes", "3.00 MiB"),
        (7, "count", "7"),
        (5, "cycles", "5 cycles"),
    ],
)
def test_values(value: int, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_percent_of_nothing() -> None:
    assert percent(0, 0) == "0.00%"
