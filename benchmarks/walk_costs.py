"""What walks cost those that are recorded, and what a recording with them takes."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks import programs, tracers
from benchmarks.errors import retried
from benchmarks.report import Table, note
from benchmarks.stats import Spread, spread
from benchmarks.tracers import Use

WORKS = ("pingpong", "cpu", "syscalls")
FP, DWARF, PERF = "bpflame fp", "bpflame dwarf", "perf dwarf"
TOOLS = (FP, DWARF, PERF)
RATE = 999
SECONDS = 0.5

_GRAPH = "--buildid-mmap --call-graph dwarf,16384"  # see completeness.py about the build ids

METHOD = f"""\
End to end: a fixed amount of work ({SECONDS:g} s) at call depth 30 with frame pointers, so that all
three have to walk all of it: switches between two processes by pipes (pingpong), a loop (cpu), and
system calls (syscalls), each before, under and after a system-wide recording, of every switch or at
{RATE} Hz. The programs are new to what records them: that it learns their tables is part of it.
perf copies 16384 bytes of each stack, to be unwound later. Throughput: of what it is without, in
the same round. Peak, kernel, CPU and lost as under Switches."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Work once under a tool.

    Attributes:
        throughput: Of that without the tool.
        use: What the tool took.
    """

    throughput: float
    use: Use


Costs = dict[tuple[str, str], list[Cost]]
"""By work and tool: one for each round."""


def command(work: str, tool: str) -> str:
    """What ``tracers.command`` understands."""
    if tool == PERF:
        event = "-e sched:sched_switch" if work == "pingpong" else f"-e cpu-clock -F {RATE}"
        return f"perf record {event} {_GRAPH}"
    what = "offcpu" if work == "pingpong" else f"cpu -F {RATE}"
    return f"bpflame {what} --unwind {tool.split()[1]}"


def measure(rounds: int, folder: Path) -> Costs:
    """Each work under each tool in each round."""
    works = {work: _work(work) for work in WORKS}
    costs: Costs = {}
    for number in range(1, rounds + 1):
        note(f"walks: end to end: round {number} of {rounds}")
        for work, run in works.items():
            before = run()
            for tool in random.sample(TOOLS, len(TOOLS)):
                kind = work if work == "pingpong" else f"work-{work}"
                line = command(work, tool)
                during, use = retried(functools.partial(tracers.under, line, kind, folder, 0, run))
                after = run()
                throughput = (before + after) / 2 / during
                costs.setdefault((work, tool), []).append(Cost(throughput, use))
                before = after
    return costs


def _work(work: str) -> Callable[[], float]:
    """A fixed amount of work; it returns the seconds that this took."""

    def run(units: int) -> float:
        if work == "pingpong":
            return programs.switch(work, units, programs.DEEP)[0]
        return programs.work(work, units, programs.DEEP)[1]

    return functools.partial(run, programs.units_for(SECONDS, run))


def figures(costs: Costs) -> dict[str, Spread]:
    """Throughput by work and tool, in %."""
    return {
        f"walks {work}: throughput under {tool}, %": spread([100 * c.throughput for c in found])
        for (work, tool), found in costs.items()
    }


def table(costs: Costs) -> Table:
    """A row for each work and tool."""
    rows = []
    for work in WORKS:
        for tool in TOOLS:
            found = costs[work, tool]
            uses = [cost.use for cost in found]
            rows.append(
                (
                    f"{work}: {tool}",
                    spread([cost.throughput for cost in found]).text(".1f", 100),
                    spread([use.peak for use in uses]).text(".1f", 1e-6),
                    f"{spread([use.kernel for use in uses]).median * 1e-6:.1f}",
                    f"{spread([use.cpu for use in uses]).median:.2f}",
                    spread([use.written for use in uses]).text(",.0f", 1e-3),
                    f"{sum(use.lost for use in uses):,}",
                )
            )
    header = ("work and tool", "throughput, %", "peak, MB", "kernel, MB", "CPU, s")
    return Table((*header, "written, kB", "lost"), tuple(rows))
