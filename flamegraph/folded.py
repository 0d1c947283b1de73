r"""Folded stacks: one line ``frame;frame;frame count`` per distinct stack, root first.

The text that flame graph tools exchange. The kind of a frame is a suffix of its name: kernel
``_[k]``, inlined ``_[i]``, JIT ``_[j]``, waker ``_[w]``; a separator is the name ``--``, a wait one
of :data:`bpflame.profile.WAITS`. Names are escaped (see :mod:`bpflame.flamegraph.text`), which
other tools show as it stands, so any name survives the round trip. What a line cannot hold is lost:
tasks, modules, source lines, and that a frame named a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO

from bpflame.errors import InputError
from bpflame.flamegraph import collector
from bpflame.flamegraph.text import escape_char, escape_name, unescape_name
from bpflame.profile import WAITS, Frame, FrameKind, Metadata, Profile, Sample

SUFFIXES = {
    FrameKind.KERNEL: "_[k]",
    FrameKind.INLINE: "_[i]",
    FrameKind.JIT: "_[j]",
    FrameKind.WAKER: "_[w]",
}
SEPARATOR = "--"

_KINDS = {suffix: kind for kind, suffix in SUFFIXES.items()}
_MAX_DIGITS = 24


def folded_lines(profile: Profile) -> Iterator[str]:
    """The profile as lines without their newline.

    Equal stacks are summed whatever their task, and the lines are sorted frame by frame, so that
    equal profiles give equal bytes.
    """
    tokens: dict[int, str] = {}
    merged: dict[str, int] = {}
    for sample in profile.samples:
        for frame in sample.stack:
            if id(frame) not in tokens:
                tokens[id(frame)] = _token(frame)
        stack = ";".join([tokens[id(frame)] for frame in sample.stack])
        if stack.startswith("#"):
            stack = escape_char("#") + stack[1:]
        merged[stack] = merged.get(stack, 0) + sample.value
    # Sorted as text, "foo(int)" would fall between "foo" and "foo;bar" and tear foo apart for the
    # tools that merge neighbouring lines. No token has a NUL, which sorts before everything.
    for stack in sorted(merged, key=lambda stack: stack.replace(";", "\0")):
        yield f"{stack} {merged[stack]}"


def write_folded(profile: Profile, out: TextIO) -> None:
    """Write the profile as folded stacks."""
    out.writelines(line + "\n" for line in folded_lines(profile))


@collector.paused()
def read_folded(
    lines: Iterable[str], name: str, kind: str = "cpu", unit: str = "samples"
) -> Profile:
    r"""Read folded stacks.

    Accepts what the tools in use write: CRLF, blank lines, ``# `` comments, a byte order mark, and
    any run of blanks or tabs before the count. Open a file with ``encoding="utf-8",
    errors="surrogateescape"`` to keep names that are not UTF-8.

    Args:
        lines: Lines with or without their newline; an open file will do.
        name: What to call the input in errors.
        kind: The kind of the profile: the text does not tell.
        unit: The unit of the counts: the text does not tell.

    Raises:
        InputError: At the first line that is not a stack and a whole count. Leaving out lines
            would give a picture that looks right and is not.
    """
    frames: dict[str, Frame] = {}
    samples = []
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix("\ufeff")
        line = line.rstrip(" \t\r\n")
        if not line or line == "#" or line.startswith("# "):
            continue
        stack, count = _split(line)
        if stack is None or not _is_count(count):
            raise InputError(
                name, f"line {number} does not end in a count: {escape_name(line[-60:])}"
            )
        tokens = stack.split(";") if stack else []
        for token in tokens:
            if token not in frames:
                frames[token] = _frame(token)
        samples.append(Sample(tuple([frames[token] for token in tokens]), int(count)))
    return Profile(kind, unit, tuple(samples), Metadata())


def _split(line: str) -> tuple[str | None, str]:
    """The stack and the count of a line; no stack where nothing separates the two."""
    stack, blank, count = line.rpartition(" ")
    if "\t" in count:
        stack, blank, count = line.rpartition("\t")
    return (stack.rstrip(" \t") if blank else None), count


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _token(frame: Frame) -> str:
    """One frame as it stands in a line."""
    if frame.kind is FrameKind.SEPARATOR:
        return SEPARATOR
    text = escape_name(frame.name)
    if frame.kind is FrameKind.WAIT and text in WAITS:
        return text
    if frame.kind in SUFFIXES:
        return text + SUFFIXES[frame.kind]
    # A name that would be read as something else, or whose end would be taken for padding.
    if text == SEPARATOR:
        return escape_char("-") + "-"
    if text in WAITS or text[-4:] in _KINDS or text.endswith(" "):
        return text[:-1] + escape_char(text[-1])
    return text


def _frame(token: str) -> Frame:
    if token == SEPARATOR:
        return Frame(SEPARATOR, FrameKind.SEPARATOR)
    if token in WAITS:
        return Frame(token, FrameKind.WAIT)
    kind = _KINDS.get(token[-4:], FrameKind.USER)
    text = token if kind is FrameKind.USER else token[:-4]
    return Frame(unescape_name(text), kind)
