"""Run the real command line, and read back what it wrote."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from bpflame.flamegraph.text import unescape_name

ROOT = Path(__file__).resolve().parent.parent.parent
BPFLAME = (sys.executable, "-m", "bpflame")


@dataclasses.dataclass
class Result:
    """One run of bpflame."""

    code: int
    stdout: str
    stderr: str

    @property
    def audit(self) -> str:
        """The audit line."""
        return next(line for line in self.stderr.splitlines() if " samples in " in line)


def bpflame(
    *arguments: str | Path,
    timeout: float = 90,
    env: Mapping[str, str] | None = None,
    prefix: Iterable[str] = (),
    cwd: Path | None = None,
) -> Result:
    """Run bpflame to its end."""
    done = subprocess.run(
        [*prefix, *BPFLAME, *map(str, arguments)],
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


class Running:
    """bpflame in the background, until it samples."""

    def __init__(self, *arguments: str | Path, prefix: Iterable[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, *BPFLAME, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stderr is not None
        self.first_line = self.process.stderr.readline().decode()

    def finish(self, number: int = signal.SIGINT, after: float = 1.0) -> Result:
        """Give it a signal after a while, and see it to its end."""
        time.sleep(after)
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return Result(self.process.returncode, out.decode(), self.first_line + err.decode())


class Folded:
    """Folded stacks: each a list of frames, root first, with its weight."""

    def __init__(self, text: str) -> None:
        self.stacks: Counter[tuple[str, ...]] = Counter()
        for line in text.splitlines():
            stack, _, count = line.rpartition(" ")
            self.stacks[tuple(unescape_name(name) for name in stack.split(";"))] += int(count)

    @property
    def total(self) -> int:
        return sum(self.stacks.values())

    def share(self, name: str, of: str | None = None) -> float:
        """Percent of samples with a frame of that name, of all or of those of one process."""
        mine = {stack: n for stack, n in self.stacks.items() if of is None or stack[0] == of}
        hit = sum(n for stack, n in mine.items() if name in stack)
        return 100 * hit / max(sum(mine.values()), 1)

    def leaf_share(self, name: str) -> float:
        """Percent of samples that have that leaf."""
        hit = sum(n for stack, n in self.stacks.items() if stack[-1] == name)
        return 100 * hit / max(self.total, 1)

    def roots(self) -> Counter[str]:
        """Samples by root frame."""
        roots: Counter[str] = Counter()
        for stack, n in self.stacks.items():
            roots[stack[0]] += n
        return roots


def truth(source: Path, key: str = "truth") -> dict[str, float]:
    """The shares in percent that a workload's header promises."""
    head = "\n".join(source.read_text(errors="replace").splitlines()[:40])
    line = re.search(rf"^\W*{key}: (.*)$", head, re.MULTILINE)
    assert line is not None, f"{source} has no {key} line"
    return {name: float(share) for name, share in re.findall(r"(\S+)=([\d.]+)", line[1])}


@dataclasses.dataclass(frozen=True)
class Wait:
    """Time off the CPU, of one stack.

    Attributes:
        stack: Who waits: its comm, and its functions root first, without the suffixes of kinds.
        how: ``blocked``, ``run queue`` or ``preempted``; empty where these are not told apart.
        partial: It was not seen from its begin to its end.
        wakers: Who ended it, who ended the wait of that one, and so on: each is functions leaf
            first, and a name last.
        ns: Nanoseconds.
    """

    stack: tuple[str, ...]
    how: str
    partial: bool
    wakers: tuple[tuple[str, ...], ...]
    ns: int

    @classmethod
    def parse(cls, line: str) -> Wait:
        """Read a line of folded text."""
        text, _, count = line.rpartition(" ")
        stack, *rest = (part.split(";") for part in text.split(";--;"))
        partial = stack[-1] == "[partial]"
        if partial:
            stack.pop()
        how = "blocked" if rest else ""
        if stack[-1] in ("[blocked]", "[run queue]", "[preempted]"):
            how = stack.pop().strip("[]")
        names = [tuple(cls._name(name) for name in part) for part in (stack, *rest)]
        return cls(names[0], how, partial, tuple(names[1:]), int(count))

    @staticmethod
    def _name(token: str) -> str:
        return unescape_name(re.sub(r"_\[[kw]\]$", "", token))

    def has(self, *path: str) -> bool:
        """Whether these are on its stack, in this order; parts of names will do after a ``*``."""
        return _in_order(self.stack, path)

    def woken_by(self, name: str, *path: str) -> bool:
        """Whether its waker has that name, and these functions on its stack, leaf first."""
        return bool(self.wakers) and _is_waker(self.wakers[0], name, path)

    def chain(self, *links: tuple[str, ...]) -> bool:
        """Whether exactly these are its wakers: of each the functions, leaf first, and its name."""
        return len(links) == len(self.wakers) and all(
            _is_waker(waker, link[-1], link[:-1])
            for waker, link in zip(self.wakers, links, strict=True)
        )


def _is_waker(waker: tuple[str, ...], name: str, path: Iterable[str]) -> bool:
    return waker[-1] == name and _in_order(waker, path)


def _in_order(stack: tuple[str, ...], path: Iterable[str]) -> bool:
    frames = iter(stack)
    return all(
        any(part[1:] in frame if part.startswith("*") else part == frame for frame in frames)
        for part in path
    )


class Waits:
    """A recording of waits.

    Args:
        result: How bpflame ended, that was called with ``--json``.
        path: The folded text that it wrote.

    Attributes:
        waits: All of them.
        counters: What was counted: ``missed_ends`` and so on.
        printed: What the workload that was recorded printed: see :func:`printed`.
    """

    def __init__(self, result: Result, path: Path) -> None:
        assert result.code == 0, result.stderr
        self.waits = [Wait.parse(line) for line in path.read_text().splitlines()]
        self.summary = json.loads(result.stdout)
        self.counters: Counter[str] = Counter(self.summary["counters"])
        self.printed = printed(result.stderr)
        for name in ("lost_samples", "lost_stacks", "lost_threads", "lost_wakers"):
            assert self.counters[name] == 0, (name, result.stderr)
        assert self.counters["negative_waits"] == 0, result.stderr

    def of(self, comm: str, *path: str, how: str = "") -> list[Wait]:
        """The waits of threads of a name, with these functions in this order."""
        return [
            wait
            for wait in self.waits
            if wait.stack[0] == comm and wait.has(*path) and how in ("", wait.how)
        ]

    def ns(self, comm: str, *path: str, how: str = "") -> int:
        """How long these were, together."""
        return total(self.of(comm, *path, how=how))


def total(waits: Iterable[Wait]) -> int:
    """Nanoseconds of some waits."""
    return sum(wait.ns for wait in waits)


def record_waits(question: str, folder: Path, *arguments: str | Path) -> Waits:
    """Record waits to the end; nothing may be lost.

    Args:
        question: ``offcpu``, ``offwake`` or ``chain``.
        folder: Where files may be left.
        arguments: Of bpflame, with ``--`` and a command perhaps.
    """
    path = folder / f"{question}.folded"
    return Waits(bpflame(question, "--json", "-o", path, *arguments), path)


def printed(text: str) -> dict[str, dict[str, int]]:
    """The numbers that workloads print: of lines ``name ns=5 waits=7``."""
    return {
        name: {key: int(value) for key, value in re.findall(r" (\w+)=(\d+)", rest)}
        for name, rest in re.findall(r"^([\w-]+)((?: \w+=\d+)+)$", text, re.MULTILINE)
    }
