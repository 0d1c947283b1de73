"""A recording of many processes that map many libraries, and what their tables take."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.errors import BenchmarkError

PROCESSES = 200
MAPPED_BY_EACH = 16
SECONDS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """A recording of many processes.

    Attributes:
        tables: Seconds of CPU time for tables.
        maps: Bytes of tables.
        files: Files with a table.
        whole: The share of the user stacks.
        cpu: Seconds of CPU time in all.
        peak: Bytes of memory.
    """

    tables: float
    maps: int
    files: int
    whole: float
    cpu: float
    peak: int


@contextlib.contextmanager
def mappers(libraries: Sequence[Path], folder: Path) -> Iterator[list[int]]:
    """Processes that map libraries, all of them together all libraries."""
    with contextlib.ExitStack() as stack:
        pids = []
        for number in range(PROCESSES):
            begin = number * len(libraries) // PROCESSES
            some = [libraries[(begin + i) % len(libraries)] for i in range(MAPPED_BY_EACH)]
            line = [str(programs.BUILT / "mapper"), *map(str, some)]
            process = stack.enter_context(peers.started(line, folder / f"mapper{number}"))
            pids.append(process.pid)
        time.sleep(1)
        dead = [pid for pid in pids if not Path("/proc", str(pid), "maps").read_text()]
        if dead:
            raise BenchmarkError(f"{len(dead)} processes do not run: see mapper.c")
        # All at once: one after the other each of them would be waited for.
        stack.callback(lambda: [os.kill(pid, signal.SIGTERM) for pid in pids])
        yield pids


def record(pids: Sequence[int], cache: Path, folder: Path) -> Recorded:
    """Record processes, with tables kept in a folder.

    Raises:
        BenchmarkError: The recording failed.
    """
    output, report = folder / "tables.folded", folder / "peak"
    report.write_text("")
    program = str(Path(sys.executable).with_name("bpflame"))
    line = [program, "offcpu", "--unwind", "dwarf", "-q", "--json", "-o", str(output)]
    line += ["-d", str(SECONDS), "-p", ",".join(map(str, pids))]
    stdout = folder / "tables.out"
    environment = ["env", f"XDG_CACHE_HOME={cache}"]
    peers.run(programs.peak(report, [*environment, *line]), stdout, 300)
    peak, seconds = programs.parse_peak(report.read_text())
    return recorded(stdout.read_text(), seconds, peak)


def recorded(summary: str, seconds: float, peak: int) -> Recorded:
    """What bpflame says with ``--json``, and what it took.

    Raises:
        BenchmarkError: It says nothing about tables.
    """
    try:
        counters = json.loads(summary)["counters"]
        return Recorded(
            counters["unwind_table_ms"] / 1000,
            counters["unwind_table_bytes"],
            counters["unwind_tables"],
            counters.get("complete_stacks", 0) / counters["user_stacks"],
            seconds,
            peak,
        )
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"not a summary with unwind tables: {summary!r}") from None
