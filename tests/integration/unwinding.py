"""Recordings whose user stacks are unwound by tables, and the stacks that they should have."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recording import ROOT, Folded, Result, bpflame

SOURCES = ROOT / "samples" / "workloads"
WHOLE = 99.5
"""Least share of user stacks that must be whole, in percent of their weight."""

Names = tuple[str, ...]


def promised(source: str, key: str = "stack") -> list[Names]:
    """The stacks that a workload's header promises, outermost function first."""
    head = (SOURCES / source).read_text().splitlines()[:40]
    lines = [line.removeprefix(f" * {key}: ") for line in head if line.startswith(f" * {key}: ")]
    assert lines, f"{source} promises no {key}"
    return [tuple(line.split(" -> ")) for line in lines]


@dataclasses.dataclass(frozen=True)
class Unwound:
    """A recording, read back.

    Attributes:
        folded: Its stacks.
        counters: What was counted.
        result: How bpflame ended.
    """

    folded: Folded
    counters: Counter[str]
    result: Result

    @classmethod
    def read(cls, result: Result, path: Path) -> Unwound:
        """What ``--json -o path`` left; nothing may have failed or been lost."""
        assert result.code == 0, result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        assert re.search(r" (samples|waits) in [\d.]+ s on ", result.stderr), result.stderr
        counters: Counter[str] = Counter(json.loads(result.stdout)["counters"])
        for name in ("lost_samples", "lost_stacks", "lost_mappings"):
            assert counters[name] == 0, result.stderr
        # GCC puts what it takes to be rare in a part of its own, which is the same function.
        return cls(Folded(path.read_text().replace(" [clone .cold]", "")), counters, result)

    def weight(self, accept: Callable[[Names], bool], comm: str = "") -> int:
        """Of the stacks of all processes, or of those with a name, that are accepted."""
        stacks = self.folded.stacks.items()
        return sum(n for stack, n in stacks if comm in ("", stack[0]) and accept(stack))

    def truncated(self, comm: str = "") -> Counter[str]:
        """Weights by why the stacks were cut short."""
        found: Counter[str] = Counter()
        for stack, n in self.folded.stacks.items():
            if comm in ("", stack[0]) and is_truncated(stack):
                found[stack[1]] += n
        return found

    def is_whole(self, comm: str = "", percent: float = WHOLE) -> None:
        """Hold the stacks of all processes, or of those with a name, to be whole."""
        every = self.weight(lambda _: True, comm)
        cut = self.truncated(comm)
        assert every, f"nothing of {comm or 'anybody'}"
        print(f"{comm or 'all'}: {every:,}, cut {dict(cut)}")
        assert sum(cut.values()) <= every * (1 - percent / 100), self.worst(is_truncated, comm)

    def agrees_with_its_counters(self) -> None:
        """Hold the counters to what the stacks show."""
        cut = self.truncated()
        told = self.counters["user_stacks"]
        assert told > 0
        assert told == self.counters["complete_stacks"] + sum(cut.values())
        for name, n in cut.items():
            assert self.counters[name.strip("[]")] == n

    def keeps(
        self, promises: list[Names], least: float = 1.0, comm: str = "", whole: float = WHOLE
    ) -> None:
        """Hold the stacks with the last function of a promise to be as promised, from the root on.

        Args:
            promises: As of :func:`promised`.
            least: Share of all samples that each promise must have, in percent.
            comm: Of which processes; empty for all.
            whole: Share of the stacks with a last function that must be as promised, in percent.
        """
        every = self.weight(lambda _: True, comm)
        for promise in promises:
            n = self.weight(lambda stack, path=promise: in_order(stack, path), comm)  # type: ignore[misc]
            print(f"{' -> '.join(promise)}: {n:,} of {every:,}")
            assert n >= every * least / 100, self.worst(lambda _: True, comm)
        for leaf in {promise[-1] for promise in promises}:
            paths = [promise for promise in promises if promise[-1] == leaf]

            def breaks(stack: Names, leaf: str = leaf, paths: list[Names] = paths) -> bool:
                return leaf in stack and not any(in_order(stack, path) for path in paths)

            with_leaf = self.weight(lambda stack, leaf=leaf: leaf in stack, comm)  # type: ignore[misc]
            broken = self.weight(breaks, comm)
            assert broken <= with_leaf * (1 - whole / 100), self.worst(breaks, comm)

    def starts_at(self, root: str, comm: str, having: str = "main") -> None:
        """Hold every whole stack that has a function to have another one as its outermost."""
        wrong = lambda stack: (  # noqa: E731
            having in stack and not is_truncated(stack) and stack[1] != root
        )
        assert not self.weight(wrong, comm), self.worst(wrong, comm)

    def worst(self, accept: Callable[[Names], bool], comm: str = "") -> str:
        """The ten heaviest stacks that are accepted, for a failure's message."""
        stacks = [
            (n, stack)
            for stack, n in self.folded.stacks.items()
            if comm in ("", stack[0]) and accept(stack)
        ]
        stacks.sort(reverse=True)
        return "\n".join(f"{n:>8} {';'.join(stack)}" for n, stack in stacks[:10])


def is_truncated(stack: Names) -> bool:
    return len(stack) > 1 and stack[1].startswith("[truncated: ")


def in_order(stack: Names, path: Names) -> bool:
    """Whether functions are in a stack, in their order; kernel frames and such in between."""
    frames = iter(stack)
    return all(name in frames for name in path)


def record(question: str, folder: Path, *arguments: str | Path) -> Unwound:
    """Record with ``--unwind dwarf``, to the end.

    Args:
        question: ``cpu``, ``offcpu`` and so on.
        folder: Where a file may be left.
        arguments: Of bpflame, with ``--`` and a command perhaps.
    """
    path = folder / f"{question}.folded"
    options = ("--unwind", "dwarf", "--json", "-o", path)
    rate = ("-F", "999") if question == "cpu" else ()
    return Unwound.read(bpflame(question, *options, *rate, *arguments), path)


def together(*commands: str) -> tuple[str, ...]:
    """A command that runs several at once, and ends with the last."""
    return ("sh", "-c", " & ".join(commands) + " & wait")


@contextmanager
def background(*command: str | Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs meanwhile, and is ended after that."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        **options,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def compile_c(source: str, path: Path, *flags: str) -> Path:
    """Build a C program without frame pointers."""
    command = ["gcc", "-O2", "-g", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"]
    command += ["-I", os.fspath(SOURCES), "-x", "c", "-", "-o", os.fspath(path), *flags]
    subprocess.run(command, input=source, text=True, check=True)
    return path
