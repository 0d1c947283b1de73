"""Time from the command to the first sample."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.errors import retried
from benchmarks.peers import BCC, BPFLAME, PERF, TOOLS
from benchmarks.report import Result, Table, note
from benchmarks.samples import first_stamp, first_time, folded_counts
from benchmarks.stats import paired_ratios, spread

ROUNDS = 11
_RATE = 999
_SECONDS = 2

_METHOD = f"""\
From just before a profiler is started to the first sample in its output, system-wide at {_RATE} Hz
for {_SECONDS} s. A thread on CPU {{cpu}} burns it and takes the time as its name every millisecond;
all three record a thread's name with the sample, so the smallest name in the output is the time of
the first sample. (Of perf's samples their own time counts, on the same clock: perf learns the name
from /proc, so that its first sample can have an older one.) The three take turns in random order,
after a round that does not count."""


def measure(rounds: int, folder: Path) -> Result:
    """Run the three in turns."""
    delays: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    with peers.started(programs.stamp(), folder / "stamp"):
        for number in range(rounds + 1):
            note(f"startup: round {number} of {rounds}" if number else "startup: warming up")
            for tool in random.sample(TOOLS, len(TOOLS)):
                delay = retried(functools.partial(first_sample, tool, folder))
                if number:
                    delays[tool].append(delay)
    return _result(delays)


def first_sample(tool: str, folder: Path, options: Sequence[str] = ()) -> float:
    """Seconds to the first sample, while ``programs.stamp`` runs.

    Args:
        tool: One of ``peers.TOOLS``.
        folder: For files.
        options: More of them for the tool.

    Raises:
        BenchmarkError: The tool failed, or has no sample.
    """
    output = folder / f"startup.{peers.SUFFIX[tool]}"
    line = [*peers.command(tool, _RATE, _SECONDS, output), *options]
    if tool == PERF:
        at = line.index("record") + 1
        line[at:at] = ["-k", "CLOCK_MONOTONIC"]
    start = time.monotonic()
    peers.run(line, peers.stdout_of(tool, output))
    if tool == PERF:
        return first_time(peers.perf_script(output), start)
    return first_stamp(folded_counts(output.read_text(errors="replace")), start)


def _result(delays: dict[str, list[float]]) -> Result:
    times = {tool: spread(delays[tool]) for tool in TOOLS}
    ratios = {tool: spread(paired_ratios(delays[BPFLAME], delays[tool])) for tool in (BCC, PERF)}
    rows = tuple(
        (tool, times[tool].text(".0f", 1000), ratios[tool].text(".2f") if tool in ratios else "")
        for tool in TOOLS
    )
    table = Table(("profiler", "first sample after, ms", "bpflame / this one"), rows)
    return Result(
        f"Time to the first sample (rounds: {times[BPFLAME].count})",
        _METHOD.format(cpu=programs.last_cpu()),
        (table,),
        {f"startup / {tool}": ratio for tool, ratio in ratios.items()},
    )
