"""What a profiler costs those that it samples."""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.errors import retried
from benchmarks.peers import BCC, BPFLAME, PERF, TOOLS
from benchmarks.report import Result, Table, note
from benchmarks.stats import Spread, paired_ratios, slowdown, spread

ROUNDS = 7
RATES = (99, 999)
HIGH_RATE = 9999
KINDS = ("cpu", "syscalls")
_SECONDS = 1.0

_METHOD = """\
A fixed amount of work ({seconds:g} s) at call depth 20 with frame pointers, before everything else
on CPU {cpu}: a loop in the program (cpu), or getppid and pread of 4 KiB in turns (syscalls). It
runs before, under and after a system-wide profiler; profilers and rates are in random order.
Overhead = time under the profiler / mean of before and after - 1, of the thread's CPU time (which
includes the sampling interrupts) and of wall time. "bpflame / this one" compares the times under
the two in the same round. Kept: samples of the workload in the output, of those due at the rate.

At low rates the overhead is near the noise. {high:,} Hz shows the cost of one sample, CPU time
added / samples due, and by it what {rates} Hz cost."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The workload once under a profiler.

    Attributes:
        cpu: Overhead, of CPU time.
        wall: The same of wall time.
        time: CPU time relative to that without a profiler.
        per_sample: Seconds of CPU time added per sample that was due.
        kept: Samples in the output, of those due.
    """

    cpu: float
    wall: float
    time: float
    per_sample: float
    kept: float


Times = dict[str, tuple[float, float]]
"""CPU and wall time by kind of work."""

Runs = dict[tuple[str, str, int], list[Run]]
"""By kind of work, profiler and rate: a run for each round."""


def measure(rounds: int, folder: Path) -> Result:
    """Run every profiler at every rate in each round."""
    units = {kind: _units(kind) for kind in KINDS}
    configurations = [(tool, rate) for tool in TOOLS for rate in (*RATES, HIGH_RATE)]
    runs: Runs = {}
    for number in range(1, rounds + 1):
        note(f"overhead: round {number} of {rounds}")
        before = _work(units)
        for tool, rate in random.sample(configurations, len(configurations)):
            during, counts = retried(functools.partial(_under, tool, rate, units, folder))
            after = _work(units)
            for kind in KINDS:
                times = before[kind], during[kind], after[kind]
                taken = counts.get(f"work-{kind}", 0)
                runs.setdefault((kind, tool, rate), []).append(_run(times, rate, taken))
            before = after
    return _result(runs, rounds)


def _units(kind: str) -> int:
    return programs.units_for(_SECONDS, lambda units: programs.work(kind, units)[0])


def _work(units: dict[str, int]) -> Times:
    return {kind: programs.work(kind, units[kind]) for kind in KINDS}


def _under(
    tool: str, rate: int, units: dict[str, int], folder: Path
) -> tuple[Times, dict[str, int]]:
    """The work under a profiler: its times, and samples by thread name."""
    output = folder / f"overhead.{peers.SUFFIX[tool]}"
    with peers.recording(tool, rate, output):
        during = _work(units)
    return during, peers.counts(tool, output)


def _run(times: tuple[tuple[float, float], ...], rate: int, taken: int) -> Run:
    (cpu_before, wall_before), (cpu, wall), (cpu_after, wall_after) = times
    due = rate * wall
    added = slowdown(cpu_before, cpu, cpu_after)
    return Run(
        added,
        slowdown(wall_before, wall, wall_after),
        1 + added,
        (cpu - (cpu_before + cpu_after) / 2) / due,
        taken / due,
    )


def _result(runs: Runs, rounds: int) -> Result:
    ratios = {
        f"overhead {kind} {rate} Hz / {tool}": _ratio(runs, kind, tool, rate)
        for kind in KINDS
        for tool in (BCC, PERF)
        for rate in (*RATES, HIGH_RATE)
    }
    return Result(
        f"Overhead (rounds: {rounds})",
        _METHOD.format(
            seconds=_SECONDS,
            cpu=programs.last_cpu(),
            high=HIGH_RATE,
            rates=" and ".join(map(str, RATES)),
        ),
        (_low_table(runs, ratios), _high_table(runs, ratios)),
        ratios,
    )


def _ratio(runs: Runs, kind: str, tool: str, rate: int) -> Spread:
    """Times under bpflame to those under a peer; at the high rate, what a sample costs."""
    ours, theirs = runs[kind, BPFLAME, rate], runs[kind, tool, rate]
    if rate != HIGH_RATE:
        return spread(paired_ratios([run.time for run in ours], [run.time for run in theirs]))
    costs = [run.per_sample for run in ours], [run.per_sample for run in theirs]
    return spread(paired_ratios(*costs))


def _low_table(runs: Runs, ratios: dict[str, Spread]) -> Table:
    rows = []
    for kind in KINDS:
        for rate in RATES:
            for tool in TOOLS:
                found = runs[kind, tool, rate]
                ratio = ratios.get(f"overhead {kind} {rate} Hz / {tool}")
                rows.append(
                    (
                        f"{kind}, {rate} Hz: {tool}",
                        spread([run.cpu for run in found]).text("+.2f", 100),
                        spread([run.wall for run in found]).text("+.2f", 100),
                        f"{spread([run.kept for run in found]).median:.0%}",
                        "" if ratio is None else ratio.text(".3f"),
                    )
                )
    header = ("work and profiler", "overhead, CPU %", "overhead, wall %", "kept")
    return Table((*header, "bpflame / this one"), tuple(rows))


def _high_table(runs: Runs, ratios: dict[str, Spread]) -> Table:
    rows = []
    for kind in KINDS:
        for tool in TOOLS:
            found = runs[kind, tool, HIGH_RATE]
            cost = spread([run.per_sample for run in found])
            ratio = ratios.get(f"overhead {kind} {HIGH_RATE} Hz / {tool}")
            rows.append(
                (
                    f"{kind}: {tool}",
                    spread([run.cpu for run in found]).text("+.1f", 100),
                    cost.text(".2f", 1e6),
                    *(f"{cost.median * rate:.2%}" for rate in RATES),
                    f"{spread([run.kept for run in found]).median:.0%}",
                    "" if ratio is None else ratio.text(".2f"),
                )
            )
    header = (f"{HIGH_RATE:,} Hz", "overhead, CPU %", "us per sample")
    low = tuple(f"so at {rate} Hz" for rate in RATES)
    return Table((*header, *low, "kept", "bpflame / this one"), tuple(rows))
