"""Run the real command line, and read back what it wrote."""

from __future__ import annotations

import dataclasses
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
