"""Which stacks reach their root, by the names in what the profilers wrote."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator

ROOTS = {
    *("_start", "__libc_start_main", "__libc_start_call_main", "__libc_start_main_impl", "main"),
    *("start_thread", "clone3", "__clone3", "__GI___clone3", "clone", "__clone"),
}
"""Functions that nothing of a program calls."""

_NEAR = 6  # frames from the outermost one; in some programs main is called by a start of their own
_UNNAMED = re.compile(r"\[(.+)\+0x([0-9a-f]+)\]")
_KERNEL = "_[k]"
_MARKS = ("[truncated", "[unmapped]", "[unknown]", "[blocked]", "[run queue]", "[preempted]")
_PERF_FRAME = re.compile(r"\s+([0-9a-f]+) (.*) \(([^()]*(?:\([^()]*\))?)\)$")


@dataclasses.dataclass(frozen=True, slots=True)
class Rooted:
    """How many stacks reach their root; each counts its weight.

    Attributes:
        stacks: All that have a user frame.
        rooted: Those that reach it.
        frames: Of all stacks, user frames.
    """

    stacks: int
    rooted: int
    frames: int


def in_folded(text: str, called: Collection[tuple[str, int]]) -> Rooted:
    """Of folded stacks as bpflame writes them.

    Args:
        text: Lines of a thread's name, frames from the outermost one, and a count.
        called: What has no name but is a root: files and addresses, as of ``programs.roots``.
    """
    return _sum(_folded(text), called)


def in_perf_script(text: str, called: Collection[tuple[str, int]]) -> Rooted:
    """Of ``perf script -F comm,ip,sym,dso``: a block for each sample, the outermost frame last."""
    return _sum(_script(text), called)


def _folded(text: str) -> Iterator[tuple[list[str], int]]:
    for line in text.split("\n"):
        stack, _, count = line.rpartition(" ")
        if stack and count.isdecimal():
            names = stack.split(";")[1:]
            user = [name for name in names if not name.endswith(_KERNEL)]
            yield [name for name in user if not name.startswith(_MARKS)], int(count)


def _script(text: str) -> Iterator[tuple[list[str], int]]:
    for block in text.split("\n\n"):
        names = []
        for line in block.split("\n"):
            match = _PERF_FRAME.match(line)
            if match and not match[3].startswith("[kernel") and int(match[1], 16) >> 63 == 0:
                module = match[3].rpartition("/")[2]
                names.append(f"[{module}+0x{match[1]}]" if "[unknown]" in match[2] else match[2])
        yield names[::-1], 1


def _sum(stacks: Iterable[tuple[list[str], int]], called: Collection[tuple[str, int]]) -> Rooted:
    total = rooted = frames = 0
    for names, count in stacks:
        if names:
            total += count
            frames += len(names) * count
            rooted += count * any(_is_root(name, called) for name in names[:_NEAR])
    return Rooted(total, rooted, frames)


def _is_root(name: str, called: Collection[tuple[str, int]]) -> bool:
    if name in ROOTS:
        return True
    match = _UNNAMED.fullmatch(name)
    return match is not None and (match[1], int(match[2], 16)) in called
