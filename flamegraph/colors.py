"""The palette: a hue per kind of frame, a shade per name, in light and dark.

Colours are CSS classes: shorter in the file than a colour per frame, and the reader's colour scheme
picks the palette. A class is the letter of a kind and the digit of a shade, such as ``k3``.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable

from bpflame.profile import Frame, FrameKind

SHADES = 7

HIDDEN = "h"
"""The class of a block of frames too narrow to draw."""

LEGEND = "ukijwnh"
"""The letters of the kinds a legend explains, in its order."""

_UNNAMED = "n"
_LETTERS = {
    FrameKind.PROCESS: "p",
    FrameKind.USER: "u",
    FrameKind.KERNEL: "k",
    FrameKind.INLINE: "i",
    FrameKind.JIT: "j",
    FrameKind.WAKER: "w",
    FrameKind.SEPARATOR: "s",
}

# Letter: the word of the legend, then hue from and to (degrees) with saturation and lightness
# (percent) of the light scheme and of the dark one.
_PALETTE = {
    "p": ("process", 220, 220, (10, 88), (8, 30)),
    "u": ("user", 2, 22, (90, 77), (48, 38)),
    "k": ("kernel", 31, 46, (95, 66), (72, 26)),
    "i": ("inlined", 172, 188, (52, 72), (45, 27)),
    "j": ("JIT", 92, 128, (48, 72), (38, 28)),
    "w": ("waker", 212, 232, (75, 80), (42, 40)),
    "s": ("separator", 220, 220, (12, 40), (10, 44)),
    "n": ("no name", 16, 30, (22, 82), (12, 32)),
    "h": ("too narrow", 220, 220, (4, 82), (4, 25)),
}


def color_class(frame: Frame) -> str:
    """The class of a frame: the same for the same name and kind in every picture.

    ``[...]`` is how tools write a frame they have no name for; folded text keeps no other sign.
    """
    letter = _LETTERS[frame.kind]
    if letter in "uj" and (frame.unnamed is not None or frame.name.startswith("[")):
        letter = _UNNAMED
    return f"{letter}{zlib.crc32(frame.name.encode('utf-8', 'surrogatepass')) % SHADES}"


def kind_name(css_class: str) -> str:
    """The word of the legend for a class."""
    return _PALETTE[css_class[0]][0]


def fill(css_class: str, dark: bool) -> str:
    """The fill of a class as ``#rrggbb``."""
    _, first, last, *schemes = _PALETTE[css_class[0]]
    saturation, lightness = schemes[dark]
    step = int(css_class[1:] or 0) / (SHADES - 1)
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
