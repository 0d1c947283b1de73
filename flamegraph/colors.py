"""The palette: a hue per kind of frame, a shade per name, in light and dark.

Colours are CSS classes: shorter in the file than a colour per frame, and the reader's colour scheme
picks the palette. A class is the letter of a kind, that of a tint if the kind of profile has one,
and the digit of a shade: ``k3``, ``kb3``. Pictures of all kinds can stand on one page.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable

from bpflame.profile import BLOCKED, PARTIAL, PREEMPTED, RUN_QUEUE, Frame, FrameKind

SHADES = 7

HIDDEN = "h"
"""The class of a block of frames too narrow to draw."""

LEGEND = "ukijwbqectnh"
"""The letters of the kinds a legend explains, in its order."""

_UNNAMED = "n"
_LETTERS = {
    FrameKind.PROCESS: "p",
    FrameKind.USER: "u",
    FrameKind.KERNEL: "k",
    FrameKind.INLINE: "i",
    FrameKind.JIT: "j",
    FrameKind.WAIT: "t",
    FrameKind.WAKER: "w",
    FrameKind.SEPARATOR: "s",
}
# Few and known: each has a colour of its own.
_WAITS = {BLOCKED: "b", RUN_QUEUE: "q", PREEMPTED: "e", PARTIAL: "c"}

_WORDS = {
    "p": "process",
    "u": "user",
    "k": "kernel",
    "i": "inlined",
    "j": "JIT",
    "w": "waker",
    "b": "blocked",
    "q": "run queue",
    "e": "preempted",
    "c": "partial",
    "t": "wait",
    "s": "separator",
    "n": "no name",
    "h": "too narrow",
}

# Who waits is blue, who wakes is aqua.
_TINTS = {"offcpu": "b", "offwake": "b", "chain": "b", "wakeup": "a"}

# Letter and tint: hue from and to (degrees), then saturation and lightness (percent) of the light
# scheme and of the dark one.
_PALETTE = {
    "p": (220, 220, (10, 88), (8, 30)),
    "u": (2, 22, (90, 77), (48, 38)),
    "k": (31, 46, (95, 66), (72, 26)),
    "i": (172, 188, (52, 72), (45, 27)),
    "j": (92, 128, (48, 72), (38, 28)),
    "w": (212, 232, (75, 80), (42, 40)),
    "n": (16, 30, (22, 82), (12, 32)),
    "ub": (202, 212, (88, 82), (52, 32)),
    "kb": (215, 226, (78, 71), (46, 42)),
    "ib": (244, 254, (66, 87), (26, 44)),
    "jb": (276, 290, (46, 82), (28, 37)),
    "nb": (200, 212, (32, 76), (26, 34)),
    "wb": (170, 182, (48, 70), (48, 25)),
    "ua": (168, 179, (52, 78), (46, 24)),
    "ka": (187, 197, (58, 66), (54, 29)),
    "ia": (128, 142, (44, 84), (26, 33)),
    "ja": (78, 100, (50, 78), (34, 29)),
    "na": (176, 188, (22, 76), (14, 35)),
    "b": (220, 220, (18, 61), (10, 40)),
    "q": (43, 43, (62, 73), (52, 27)),
    "e": (14, 14, (55, 75), (38, 36)),
    "c": (60, 60, (14, 83), (8, 26)),
    "t": (220, 220, (16, 74), (12, 30)),
    "s": (220, 220, (12, 40), (10, 18)),
    "h": (220, 220, (4, 82), (4, 25)),
}


def color_class(frame: Frame, kind: str = "cpu") -> str:
    """The class of a frame: the same for the same name and kind in every picture of a kind.

    ``[...]`` is how tools write a frame they have no name for; folded text keeps no other sign.

    Args:
        frame: What to draw.
        kind: The kind of its profile, which may have a tint.
    """
    if frame.kind is FrameKind.WAIT:
        return _WAITS.get(frame.name, _LETTERS[frame.kind]) + "0"
    letter = _LETTERS[frame.kind]
    if letter in "uj" and (frame.unnamed is not None or frame.name.startswith("[")):
        letter = _UNNAMED
    tinted = letter + _TINTS.get(kind, "")
    shade = zlib.crc32(frame.name.encode("utf-8", "surrogatepass")) % SHADES
    return f"{tinted if tinted in _PALETTE else letter}{shade}"


def kind_name(css_class: str) -> str:
    """The word of the legend for a class."""
    return _WORDS[css_class[0]]


def fill(css_class: str, dark: bool) -> str:
    """The fill of a class as ``#rrggbb``."""
    tinted = css_class.rstrip("0123456789")
    first, last, *schemes = _PALETTE[tinted]
    saturation, lightness = schemes[dark]
    step = int(css_class[len(tinted) :] or 0) / (SHADES - 1)
    hue = first + (last - first) * step
    # Neighbours of one kind differ in lightness too, for those who see hues alike.
    light = (lightness + 3 - 6 * (step * 2 % 1)) / 100
    rgb = colorsys.hls_to_rgb(hue / 360, light, saturation / 100)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def css(classes: Iterable[str], selector: str) -> str:
    """Rules that fill the classes, each under ``selector``, for both colour schemes."""
    used = sorted(set(classes))
    light, dark = (
        "".join(f"{selector} .{name}{{fill:{fill(name, scheme)}}}\n" for name in used)
        for scheme in (False, True)
    )
    return f"{light}@media (prefers-color-scheme:dark){{\n{dark}}}\n"
