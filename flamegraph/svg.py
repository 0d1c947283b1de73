"""Draw a profile as one self-contained, interactive SVG.

The frames are one ``<rect><title>`` each inside a nested ``<svg>`` whose ``viewBox`` is the zoom:
zooming writes one attribute instead of moving every frame. Labels lie outside it, where nothing
stretches them. Without its script the file is the same picture, fixed at its initial width.

The shell of the document comes from svgwrite; frames and labels are written as strings, because
svgwrite takes ten times as long as the whole of the rest for them.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Iterator
from typing import Any, TextIO
from xml.sax.saxutils import escape

import svgwrite
import svgwrite.base
import svgwrite.container

from bpflame.flamegraph import caption, colors
from bpflame.flamegraph.layout import SPAN, Box, Layout, lay_out
from bpflame.flamegraph.text import fit, printable
from bpflame.flamegraph.tree import build_tree
from bpflame.flamegraph.units import counted, format_value, percent
from bpflame.profile import Frame, FrameKind, Profile

ROW = 17
"""Height of a row of frames, px, of which the last is a gap."""
PAD = 12
"""Space around the frames, px."""
CHAR = 6.65
"""Advance of the labels' fixed-width font at 11 px, px, rounded up."""

_TITLE_CHAR, _SUBTITLE_CHAR = 9, 6.2
_CONTROLS = 560
_HEADER, _LINE = 40, 16
_LABEL_PAD, _LABEL_MIN, _BASELINE, _EDGE_MIN = 4, 4, 12, 3
_CLASS = "bpflame"


@dataclasses.dataclass(frozen=True, slots=True)
class SvgOptions:
    """How a profile is drawn.

    Attributes:
        title: Replaces the title of the profile.
        subtitle: Replaces the line that says where the profile comes from. What was lost or is
            not drawn is said all the same.
        width: Initial width, px; with its script the picture fills whatever holds it.
        minwidth: Frames narrower than this at the initial width are not drawn, px.
        inverted: Root at the top.
        interactive: Include the script.
        empty_reason: What to say of a profile without samples.
    """

    title: str = ""
    subtitle: str = ""
    width: int = 1200
    minwidth: float = 0.1
    inverted: bool = False
    interactive: bool = True
    empty_reason: str = ""


def write_svg(profile: Profile, out: TextIO, options: SvgOptions = SvgOptions()) -> None:
    """Draw the profile as a flame graph.

    Equal profiles and options give equal bytes.

    Args:
        profile: What to draw; without samples, the picture says so.
        out: A text file whose encoding is UTF-8, as the file declares.
        options: How to draw it.
    """
    inner = options.width - 2 * PAD
    layout = lay_out(build_tree(profile.samples), options.minwidth / inner)
    picture = _Picture(profile, layout, options)
    head, middle, tail = picture.shell()
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    out.write(head)
    out.writelines(picture.rects())
    out.write(middle)
    out.writelines(picture.labels())
    out.write(tail)


class _Picture:
    """One drawing on its way to a file."""

    def __init__(self, profile: Profile, layout: Layout, options: SvgOptions) -> None:
        self.profile = profile
        self.layout = layout
        self.options = options
        self.inner = options.width - 2 * PAD
        self.classes = [_css_class(box, profile.kind) for box in layout.boxes]
        self.subtitles = self._subtitles()
        self.top = _HEADER + _LINE * len(self.subtitles) + 6
        self.graph_height = max(layout.rows, 3) * ROW

    def shell(self) -> tuple[str, str, str]:
        """The document in three parts, around the frames and around the labels."""
        options = self.options
        legend = self._legend()
        height = self.top + self.graph_height + (48 if legend else 28)
        drawing = svgwrite.Drawing(size=(options.width, height), debug=False)
        drawing.viewbox(0, 0, options.width, height)
        drawing["class"] = _CLASS
        drawing["data-pad"], drawing["data-row"] = PAD, ROW
        title = printable(options.title or caption.title(self.profile))
        drawing.set_desc(title=title)
        drawing.add(drawing.style(self._css()))
        drawing.add(drawing.rect(size=("100%", "100%"), class_="background"))
        shown = fit(title, int(max(self.inner - _CONTROLS, 200) / _TITLE_CHAR))
        drawing.add(_text(shown, (PAD, 27), "title", title))
        for number, line in enumerate(self.subtitles):
            drawing.add(_text(line, (PAD, _HEADER + 6 + number * _LINE), "subtitle"))
        frames = drawing.svg(
            (PAD, self.top), (self.inner, self.graph_height), class_="frames", debug=False
        )
        frames.viewbox(0, 0, SPAN, self.graph_height)
        frames["preserveAspectRatio"] = "none"
        frames.add(_Slot())
        drawing.add(frames)
        labels = drawing.g(class_="labels", transform=f"translate({PAD} {self.top})")
        labels.add(_Slot())
        drawing.add(labels)
        if not self.layout.boxes:
            self._say_empty(drawing)
        bottom = self.top + self.graph_height
        drawing.add(_text("", (PAD, bottom + 19), "details"))
        for item in legend:
            drawing.add(item)
        if options.interactive:
            drawing.add(drawing.script(content="\n" + _asset("flamegraph.js")))
        head, middle, tail = drawing.tostring().split(_Slot.MARK)
        return head + "\n", middle + "\n", tail + "\n"

    def rects(self) -> Iterator[str]:
        """A ``<rect><title>`` per box, one per line."""
        unit, total = self.profile.unit, self.profile.total
        names: dict[str, str] = {}
        for box, css_class in zip(self.layout.boxes, self.classes, strict=True):
            amount = f"{format_value(box.value, unit)}, {percent(box.value, total)}"
            if box.node is None:
                title = f"{counted(box.hidden, 'frame')} too narrow to draw\n{amount}"
            else:
                frame, own = box.node.frame, box.node.self_value
                name = names.get(frame.name)
                if name is None:
                    name = names[frame.name] = escape(printable(frame.name))
                title = f"{name}\n{amount}"
                if 0 < own < box.value:
                    title += f", self {percent(own, total)}"
                title += _about(frame)
            yield (
                f'<rect class="{css_class}" x="{box.x0}" y="{self._y(box)}"'
                f' width="{box.x1 - box.x0}" height="{ROW - 1}"><title>{title}</title></rect>\n'
            )

    def labels(self) -> Iterator[str]:
        """A ``<text>`` per box that has room for one, over the edges between boxes."""
        scale = self.inner / SPAN
        edges = [
            f"M{box.x0 * scale:.1f} {self._y(box)}v{ROW - 1}"
            for box in self.layout.boxes
            if box.x0 and (box.x1 - box.x0) * scale >= _EDGE_MIN
        ]
        yield f'<path d="{"".join(edges)}"/>\n'
        for box, css_class in zip(self.layout.boxes, self.classes, strict=True):
            room = int(((box.x1 - box.x0) * scale - 2 * _LABEL_PAD) / CHAR)
            if box.node is None or room < _LABEL_MIN:
                continue
            label = escape(fit(printable(box.node.frame.name), room))
            dark = ' class="s"' if css_class[0] == "s" else ""
            x = box.x0 * scale + _LABEL_PAD
            yield f'<text{dark} x="{x:.1f}" y="{self._y(box) + _BASELINE}">{label}</text>\n'

    def _y(self, box: Box) -> int:
        row = box.depth if self.options.inverted else self.layout.rows - 1 - box.depth
        return row * ROW

    def _subtitles(self) -> list[str]:
        phrases = [self.options.subtitle] if self.options.subtitle else caption.origin(self.profile)
        phrases += caption.losses(self.profile, self.layout, self.options.minwidth)
        return _wrap([printable(phrase) for phrase in phrases], int(self.inner / _SUBTITLE_CHAR))

    def _css(self) -> str:
        return f"\n{_asset('style.css')}{colors.css(self.classes, f'.{_CLASS}')}"

    def _say_empty(self, drawing: Any) -> None:
        middle = self.top + self.graph_height / 2
        drawing.add(_text(caption.nothing(self.profile), ("50%", middle), "empty"))
        if self.options.empty_reason:
            reason = printable(self.options.empty_reason)
            shown = fit(reason, int(self.inner / _SUBTITLE_CHAR))
            drawing.add(_text(shown, ("50%", middle + 20), "empty reason", reason))

    def _legend(self) -> list[Any]:
        """A swatch and a word for each kind in the picture, when there is a choice."""
        kinds = {name[0]: name for name in sorted(self.classes, reverse=True)}
        used = [kinds[letter] for letter in colors.LEGEND if letter in kinds]
        if len(used) < 2:
            return []
        items: list[Any] = []
        x, y = float(PAD), self.top + self.graph_height + 28
        for name in used:
            word = colors.kind_name(name)
            items.append(svgwrite.shapes.Rect((x, y), (10, 10), class_=name, debug=False))
            items.append(_text(word, (x + 15, y + 9), "subtitle"))
            x += 15 + len(word) * _SUBTITLE_CHAR + 18
        return items


class _Slot(svgwrite.base.BaseElement):  # type: ignore[misc]
    """Where the strings go. No data can contain its markup: svgwrite escapes text."""

    elementname = "slot"
    MARK = "<slot />"


def _text(text: str, insert: tuple[float | str, float], css_class: str, whole: str = "") -> Any:
    """A text element; when ``text`` is cut, ``whole`` is its tooltip."""
    element = svgwrite.text.Text(text, insert=insert, class_=css_class, debug=False)
    if whole and whole != text:
        element.set_desc(title=whole)
    return element


def _css_class(box: Box, kind: str) -> str:
    return colors.HIDDEN if box.node is None else colors.color_class(box.node.frame, kind)


def _about(frame: Frame) -> str:
    """What else is known of a frame, as a line of its tooltip."""
    if frame.kind is FrameKind.USER and not (frame.module or frame.file or frame.unnamed):
        return ""
    source = f"{frame.file}:{frame.line}" if frame.line else frame.file
    kind = "" if frame.kind in (FrameKind.USER, FrameKind.PROCESS) else frame.kind.value
    if frame.kind is FrameKind.WAIT:
        kind = caption.WAITS.get(frame.name, kind)
    parts = (kind, frame.module, source, frame.unnamed.value if frame.unnamed else "")
    line = ", ".join(part for part in parts if part)
    return "\n" + escape(printable(line)) if line else ""


def _wrap(phrases: list[str], room: int) -> list[str]:
    """Phrases on as few lines as hold them; one longer than a line is cut."""
    lines: list[str] = []
    for phrase in phrases:
        phrase = fit(phrase, room)
        if lines and len(lines[-1]) + len(phrase) + 5 <= room:
            lines[-1] += f"  ·  {phrase}"
        else:
            lines.append(phrase)
    return lines


def _asset(name: str) -> str:
    return (importlib.resources.files("bpflame.flamegraph") / "assets" / name).read_text("utf-8")
