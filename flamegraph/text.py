r"""Names as text that cannot break a line, a terminal or an XML file.

A symbol name is whatever bytes a compiler, a JIT or ``prctl(PR_SET_NAME)`` put there. Two forms:

- :func:`printable` is for people: control characters are shown as ``\x1b``, the rest is left.
- :func:`escape_name` is for files and is exact: :func:`unescape_name` gives the name back.

Unsafe are the characters that end a line, drive a terminal, reorder what is shown around them, or
cannot stand in XML 1.0 or UTF-8: C0 and C1 controls, DEL, U+2028 and U+2029, the bidirectional
marks, overrides and isolates, the byte order mark, U+FFFE, U+FFFF, and lone surrogates (which is
how Python holds bytes that are not UTF-8).
"""

from __future__ import annotations

import re
import unicodedata

_UNSAFE = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff"
)
_UNPRINTABLE = re.compile(f"[{_UNSAFE}]")
_RESERVED = re.compile(rf"[{_UNSAFE};\\]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|-)")
# What an escape may stand for. A name from another tool, such as `App\x64`, is not ours to decode.
_ESCAPED = re.compile(rf"[{_UNSAFE};\\ #\]-]")

EMPTY = r"\-"
"""The escaped form of the empty name, so that a stack of one such frame differs from no stack."""


def escape_char(char: str) -> str:
    r"""One character as ``\xHH``, or ``\uHHHH`` above U+00FF."""
    code = ord(char)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def printable(name: str) -> str:
    r"""The name as shown to people: every unsafe character as ``\x1b`` or ``\u202e``."""
    return _UNPRINTABLE.sub(lambda match: escape_char(match[0]), name)


def escape_name(name: str) -> str:
    r"""The name with unsafe characters, ``;`` and ``\`` escaped; the empty name as ``\-``."""
    return _RESERVED.sub(lambda match: escape_char(match[0]), name) or EMPTY


def unescape_name(text: str) -> str:
    """The name that :func:`escape_name` escaped; other text comes back as it is."""
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    digits = match[1] or match[2]
    if digits is None:
        return ""
    char = chr(int(digits, 16))
    return char if _ESCAPED.match(char) else match[0]


def columns(text: str) -> int:
    """How many cells of a fixed-width font the text takes: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(_cells(char) for char in text)


def fit(text: str, room: int) -> str:
    """The text cut on the right to ``room`` columns, the last one an ellipsis."""
    if columns(text) <= room:
        return text
    used = 1
    for index, char in enumerate(text):
        used += _cells(char)
        if used > room:
            return text[:index] + "…"
    return text


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
