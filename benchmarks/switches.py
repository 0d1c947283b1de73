"""What it costs to record every switch of the scheduler."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers, programs, tracers
from benchmarks.errors import retried
from benchmarks.report import Result, Table, note
from benchmarks.stats import Spread, paired_ratios, slowdown, spread
from benchmarks.tracers import BPFTRACE, OFFCPU, OURS, TOOLS, Use

ROUNDS = 7
KINDS = ("pingpong", "locks")
LOST = "switches: lost by bpflame"
"""The figure of all that bpflame lost, in all its runs together."""

_SECONDS = 1.0
_BASES = (BPFTRACE, OFFCPU)

_METHOD = """\
A fixed number of switches ({seconds:g} s) between tasks of CPU {cpu} that wait for each other, at
call depth 20 with frame pointers and before everything else there. pingpong: two processes send a
byte there and back through two pipes. locks: four threads take turns at a futex lock that goes to
whoever waits longest. Each runs before, under and after a system-wide recording; the tools are in
random order. Added = (wall time under the tool - mean of before and after) / switches of the tasks,
as the kernel counts them. "/" compares what is added under two tools in the same round.

bpftrace sums time by kernel and user stack, by benchmarks/programs/offcpu.bt. perf record -a -g -e
sched:sched_switch writes each switch to a file, to be read later. "-p OTHER" asks for a process
that sleeps: the cost to those that were not asked for.

Peak: ru_maxrss. CPU: of the tool's whole life, without what its BPF programs take from the tasks;
both by wait4. Kernel: BPF maps (memlock in /proc/PID/fdinfo) and perf ring buffers, at the end.
Lost, in all rounds: for bpflame the sum of its lost_ counters; for perf events that found no room;
for bpftrace its own messages of lost events and stacks (what full maps refuse it does not say)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A workload once under a tool.

    Attributes:
        added: Seconds of wall time added to a switch.
        loss: What is missing of the switches per second, as a share.
        use: What the tool took.
    """

    added: float
    loss: float
    use: Use


Timing = tuple[float, int]
"""Seconds, and switches made in them."""

Runs = dict[tuple[str, str], list[Run]]
"""By workload and tool: a run for each round."""

Bare = dict[str, list[Timing]]
"""By workload: all runs without a tool."""


def measure(rounds: int, folder: Path) -> Result:
    """Run every workload under every tool in each round."""
    works = {kind: _work(kind) for kind in KINDS}
    runs: Runs = {}
    bare: Bare = {kind: [] for kind in KINDS}
    with peers.started(["sleep", "infinity"], folder / "sleep") as sleeper:
        for number in range(1, rounds + 1):
            note(f"switches: round {number} of {rounds}")
            for kind in random.sample(KINDS, len(KINDS)):
                work = works[kind]
                bare[kind].append(work())
                for tool in random.sample(TOOLS, len(TOOLS)):
                    record = functools.partial(tracers.under, tool, kind, folder, sleeper.pid, work)
                    during, use = retried(record)
                    bare[kind].append(work())
                    before, after = bare[kind][-2:]
                    runs.setdefault((kind, tool), []).append(run(before, during, after, use))
    return result(runs, bare, rounds)


def _work(kind: str) -> Callable[[], Timing]:
    """A fixed number of switches."""
    units = programs.units_for(_SECONDS, lambda units: programs.switch(kind, units)[0])
    return functools.partial(programs.switch, kind, units)


def run(before: Timing, during: Timing, after: Timing, use: Use) -> Run:
    """What a tool added, from the times without, with and without it."""
    seconds, switches = during
    slower = slowdown(before[0], seconds, after[0])
    return Run(
        (seconds - (before[0] + after[0]) / 2) / switches,
        1 - 1 / (1 + slower),
        use,
    )


def result(runs: Runs, bare: Bare, rounds: int) -> Result:
    """Tables and figures of all runs."""
    lost = sum(run.use.lost for (_, tool), found in runs.items() for run in found if tool in OURS)
    figures = {LOST: spread([lost])}
    for (kind, tool), found in runs.items():
        figures[f"switches {kind}: {tool}, ns"] = spread([run.added * 1e9 for run in found])
        for base in _BASES:
            ratio = _ratio(found, runs[kind, base])
            if tool != base and ratio is not None:
                figures[f"switches {kind}: {tool} / {base}"] = ratio
    return Result(
        f"Switches (rounds: {rounds})",
        _METHOD.format(seconds=_SECONDS, cpu=programs.last_cpu()),
        (_bare_table(bare), _cost_table(runs, figures), _use_table(runs)),
        figures,
    )


def _ratio(ours: list[Run], theirs: list[Run]) -> Spread | None:
    """Of what is added; None where noise covers what the other one adds."""
    if any(run.added <= 0 for run in theirs):
        return None
    return spread(paired_ratios([run.added for run in ours], [run.added for run in theirs]))


def _bare_table(bare: Bare) -> Table:
    rows = []
    for kind, timings in bare.items():
        rates = spread([switches / seconds for seconds, switches in timings])
        costs = spread([seconds / switches for seconds, switches in timings])
        rows.append((kind, rates.text(",.0f"), costs.text(".0f", 1e9)))
    return Table(("without a tool", "switches/s", "ns per switch"), tuple(rows))


def _cost_table(runs: Runs, figures: dict[str, Spread]) -> Table:
    rows = []
    for kind in KINDS:
        for tool in TOOLS:
            ratios = (figures.get(f"switches {kind}: {tool} / {base}") for base in _BASES)
            rows.append(
                (
                    f"{kind}: {tool}",
                    figures[f"switches {kind}: {tool}, ns"].text("+.0f"),
                    spread([run.loss for run in runs[kind, tool]]).text("+.1f", 100),
                    *("" if ratio is None else ratio.text(".2f") for ratio in ratios),
                )
            )
    header = ("workload and tool", "added to a switch, ns", "throughput lost, %")
    return Table((*header, *(f"this one / {base}" for base in _BASES)), tuple(rows))


def _use_table(runs: Runs) -> Table:
    rows = []
    for kind in KINDS:
        for tool in TOOLS:
            uses = [run.use for run in runs[kind, tool]]
            rows.append(
                (
                    f"{kind}: {tool}",
                    spread([use.peak for use in uses]).text(".1f", 1e-6),
                    f"{spread([use.kernel for use in uses]).median * 1e-6:.1f}",
                    f"{spread([use.cpu for use in uses]).median:.2f}",
                    spread([use.written for use in uses]).text(".0f", 1e-3),
                    f"{sum(use.lost for use in uses):,}",
                )
            )
    header = ("workload and tool", "peak, MB", "kernel, MB", "CPU, s", "written, kB", "lost")
    return Table(header, tuple(rows))
