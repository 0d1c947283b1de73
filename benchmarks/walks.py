"""What it costs to unwind user stacks by tables in BPF."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import peers, programs, startup, walk_costs, walk_times
from benchmarks.errors import retried
from benchmarks.peers import BPFLAME
from benchmarks.programs import BUILT, DEEP, FRAMELESS
from benchmarks.report import Result, Table, note
from benchmarks.stats import Spread, paired_ratios, spread
from benchmarks.subjects import busy, workload
from benchmarks.walk_times import Event, Times
from bpflame.profilers.cpu import CpuOptions
from bpflame.profilers.sched import CHAIN, OFFCPU, SchedOptions
from bpflame.profilers.unwind_choice import Unwind

ROUNDS = 5
TICK, SWITCH = "at a tick", "at a switch"

_LONG = 3600
_PER_FRAME = "walks: a frame of {}, ns"
EVENT = "walks: an event, {}, us"

_STOCK = {
    "python3": busy("/usr/bin/python3", "busy.py", _LONG),
    "perl": busy("/usr/bin/perl", "busy.pl", _LONG),
    "node": busy("/usr/bin/node", "busy.js", _LONG),
}
WALKED: dict[tuple[str, str], tuple[str, ...]] = {
    **{
        (f"deep {depth}", TICK): workload("deep", depth, "spin", 16, 1, seconds=_LONG)
        for depth in (10, 30, 100)
    },
    **{(name, TICK): line for name, line in _STOCK.items()},
    **{
        (f"deep {depth}, {call}", SWITCH): workload("deep", depth, call, 16, 4, seconds=_LONG)
        for depth in (10, 30, 100)
        for call in ("nanosleep", "read")
    },
    **{(name, SWITCH): line for name, line in _STOCK.items()},
}
"""Commands by name and moment."""

EVENTS = {"user mode": "cpu", "system calls": "syscalls", "switches": "pingpong"}
"""What runs at depth 30 in each row of the table of whole events."""
BUILDS = ((Unwind.FP, DEEP), (Unwind.DWARF, DEEP), (Unwind.DWARF, FRAMELESS))

OPTIONS = {
    "cpu": CpuOptions(),
    "offcpu": SchedOptions(OFFCPU),
    "chain": SchedOptions(CHAIN),
}

_METHOD = """\
A walk: one process without frame pointers, user stacks only. Time by the BPF programs' own clock
from the start of a walk to its end, the keeping of the stack not included; the walks of all rounds
have a median and a 90th percentile each, of which the table has the median of the rounds.

An event: run time of the entry program by the kernel's own statistics (BPF_ENABLE_STATS), which
has all that happens at a tick or a switch: user and kernel stack, and the sums. On a program at
depth 30 that is nearly all that runs, with frame pointers (fp) and without (nofp).

{costs}

Compile and load: in one process, after a round that does not count. First sample: as under "Time
to the first sample", so with all imports."""


def measure(rounds: int, folder: Path) -> Result:
    """All parts, one after the other."""
    walked = _walked(rounds, folder)
    events = _events(rounds, folder)
    costs = walk_costs.measure(rounds, folder)
    prepared = _prepared(rounds)
    first = _first(rounds, folder)
    return result(walked, events, costs, prepared, first, rounds)


Walked = dict[tuple[str, str], list[Times]]
Events = dict[tuple[str, str], list[Event]]
Prepared = dict[tuple[str, Unwind], list[tuple[float, float]]]
First = dict[Unwind, list[float]]


def _walked(rounds: int, folder: Path) -> Walked:
    found: Walked = {}
    for number in range(1, rounds + 1):
        note(f"walks: single walks: round {number} of {rounds}")
        for (name, moment), line in WALKED.items():
            if not Path(line[0]).exists():
                note(f"walks: left out: {line[0]} is not installed")
                continue
            with peers.started(line, folder / "walked") as process:
                time.sleep(0.5)
                record = functools.partial(walk_times.walks, process.pid, moment == SWITCH)
                found.setdefault((name, moment), []).append(retried(record))
    return found


def _events(rounds: int, folder: Path) -> Events:
    found: Events = {}
    for number in range(1, rounds + 1):
        note(f"walks: whole events: round {number} of {rounds}")
        for name, work in EVENTS.items():
            for unwind, build in BUILDS:
                with _running(work, build, folder):
                    switches, on = work == "pingpong", programs.last_cpu()
                    comm = work if switches else f"work-{work}"
                    record = functools.partial(walk_times.event, unwind, switches, on, comm)
                    row = f"{name}: {unwind.value}{build}"
                    found.setdefault((name, row), []).append(retried(record))
    return found


@contextlib.contextmanager
def _running(work: str, build: str, folder: Path) -> Iterator[None]:
    """Work at depth 30 on the last CPU, before everything else there."""
    program = ("switch" if work == "pingpong" else "work") + build
    line = [str(BUILT / program), work, str(10**9), str(programs.last_cpu())]
    with peers.started(line, folder / "running"):
        time.sleep(0.2)
        yield


def _prepared(rounds: int) -> Prepared:
    found: Prepared = {}
    for number in range(rounds + 1):
        note(f"walks: compile and load: round {number} of {rounds}")
        for name, options in OPTIONS.items():
            for unwind in Unwind:
                seconds = walk_times.preparing(dataclasses.replace(options, unwind=unwind))
                if number:
                    found.setdefault((name, unwind), []).append(seconds)
    return found


def _first(rounds: int, folder: Path) -> First:
    found: First = {unwind: [] for unwind in Unwind}
    with peers.started(programs.stamp(), folder / "stamp"):
        for number in range(rounds + 1):
            note(f"walks: first sample: round {number} of {rounds}")
            for unwind in Unwind:
                options = ("--unwind", unwind.value)
                sample = functools.partial(startup.first_sample, BPFLAME, folder, options)
                delay = retried(sample)
                if number:
                    found[unwind].append(delay)
    return found


def result(
    walked: Walked,
    events: Events,
    costs: walk_costs.Costs,
    prepared: Prepared,
    first: First,
    rounds: int,
) -> Result:
    """Tables and figures of all rounds."""
    figures: dict[str, Spread] = dict(walk_costs.figures(costs))
    for (name, moment), times in walked.items():
        figures[_PER_FRAME.format(f"{name} {moment}")] = spread([t.frame[0] for t in times])
    for moment in (TICK, SWITCH):
        medians = [
            spread([t.frame[0] for t in times]) for (_, at), times in walked.items() if at == moment
        ]
        if medians:
            figures[_PER_FRAME.format(f"the worst {moment}")] = max(medians, key=_median)
    for (_, row), found in events.items():
        figures[EVENT.format(row)] = spread([event.ns / 1000 for event in found])
    for (name, unwind), pairs in prepared.items():
        for what, place in (("compile", 0), ("load", 1)):
            figures[f"walks: {what} {name} {unwind.value}, ms"] = spread(
                [1000 * pair[place] for pair in pairs]
            )
    for unwind, delays in first.items():
        figures[f"walks: first sample {unwind.value}, ms"] = spread([1000 * d for d in delays])
    figures["walks: first sample dwarf / fp"] = spread(
        paired_ratios(first[Unwind.DWARF], first[Unwind.FP])
    )
    tables = (
        _walk_table(walked),
        _event_table(events),
        walk_costs.table(costs),
        _start_table(prepared, first),
    )
    method = _METHOD.format(costs=walk_costs.METHOD)
    return Result(f"Walks by unwind tables (rounds: {rounds})", method, tables, figures)


def _median(found: Spread) -> float:
    return found.median


def _walk_table(walked: Walked) -> Table:
    rows = []
    for (name, moment), times in walked.items():
        columns: Sequence[tuple[Callable[[Times], float], str]] = (
            (lambda t: t.walks, ",.0f"),
            (lambda t: t.depth, ".1f"),
            (lambda t: t.frame[0], ".0f"),
            (lambda t: t.frame[1], ".0f"),
            (lambda t: t.walk[0] / 1000, ".2f"),
            (lambda t: t.walk[1] / 1000, ".2f"),
            (lambda t: t.whole, ".2%"),
        )
        cells = (format(spread([of(t) for t in times]).median, form) for of, form in columns)
        rows.append((f"{name}, {moment}", *cells))
    header = ("a walk", "walks", "frames", "ns/frame, median", "90 %", "us/walk, median", "90 %")
    return Table((*header, "whole"), tuple(rows))


def _event_table(events: Events) -> Table:
    rows = []
    for (_, row), found in events.items():
        medians = (
            f"{spread([getattr(event, field) for event in found]).median:{form}}"
            for field, form in (("events", ",.0f"), ("user", ".1f"), ("kernel", ".1f"))
        )
        rows.append((row, spread([event.ns / 1000 for event in found]).text(".2f"), *medians))
    header = ("an event, by unwinding and build", "us", "events", "user frames", "kernel frames")
    return Table(header, tuple(rows))


def _start_table(prepared: Prepared, first: First) -> Table:
    rows = []
    for (name, unwind), pairs in prepared.items():
        cells = (spread([pair[place] for pair in pairs]).text(".0f", 1000) for place in (0, 1))
        delays = first[unwind] if name == "cpu" else []
        rows.append(
            (
                f"{name} --unwind {unwind.value}",
                *cells,
                spread(delays).text(".0f", 1000) if delays else "",
            )
        )
    return Table(("recording", "compile, ms", "load, ms", "first sample, ms"), tuple(rows))
