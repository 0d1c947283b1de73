"""What a walk takes by the programs' own clock, and what a whole event takes by the kernel's."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.errors import BenchmarkError
from bpflame.bpf.load import PERF_EVENT, RAW_TRACEPOINT, Program
from bpflame.bpf.maps import BpfMap
from bpflame.profile import Metadata
from bpflame.profilers import cpu, sched
from bpflame.profilers.signals import StopSignals
from bpflame.profilers.target import Target
from bpflame.profilers.unwind_choice import Unwind
from bpflame.raw import RawProfile

FRAME_NS, WALK_NS = 1, 32
"""Units of the maps frame_times and walk_times, see ``bpf/programs/unwind.h``."""

_TIMES = 1024
_SECONDS = 2.0
_SETTLED = 0.7  # seconds, until all tables are there
_RATE = 4999
_SYS_BPF, _ENABLE_STATS = 321, 32  # x86-64; BPF_ENABLE_STATS


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """What the walks of one recording took.

    Attributes:
        walks: How many there were.
        depth: Mean number of frames.
        frame: ns for a frame: the median walk, and the one at 90 %.
        walk: ns for a walk, likewise.
        whole: The share of the stacks that are whole.
    """

    walks: int
    depth: float
    frame: tuple[float, float]
    walk: tuple[float, float]
    whole: float


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """What the events of one recording took.

    Attributes:
        events: How many there were.
        ns: The mean, with everything that is done at an event.
        user: Mean number of user frames.
        kernel: Mean number of kernel frames.
    """

    events: int
    ns: float
    user: float
    kernel: float


def walks(pid: int, switches: bool) -> Times:
    """Record one process, and see what its walks take.

    Args:
        pid: The process.
        switches: At switches away from it, not at ticks.

    Raises:
        BenchmarkError: There was nothing to walk.
    """
    target, unwind = Target(pids=(pid,)), Unwind.DWARF
    prepared: cpu.Prepared | sched.Prepared
    if switches:
        options = sched.SchedOptions(
            sched.OFFCPU, target, kernel=False, unwind=unwind, max_depth=511, timed=True
        )
        prepared = sched.prepare(options)
    else:
        prepared = cpu.prepare(
            cpu.CpuOptions(target, _RATE, kernel=False, unwind=unwind, max_depth=511, timed=True)
        )
    with _recorded(prepared, lambda elapsed: None) as raw:
        each = histogram(prepared.program, "frame_times")
        whole = histogram(prepared.program, "walk_times")
    if not sum(each):
        raise BenchmarkError(f"no walks of process {pid}")
    counters = raw.meta.counters
    return Times(
        sum(each),
        _depths(raw, "")[0],
        (percentile(each, 0.5) * FRAME_NS, percentile(each, 0.9) * FRAME_NS),
        (percentile(whole, 0.5) * WALK_NS, percentile(whole, 0.9) * WALK_NS),
        counters.get("complete_stacks", 0) / max(1, counters.get("user_stacks", 0)),
    )


def event(unwind: Unwind, switches: bool, on: int, comm: str) -> Event:
    """Record the whole system, where one program is nearly all that there is.

    Args:
        unwind: How to unwind user stacks.
        switches: At switches, not at ticks.
        on: The CPU where it runs.
        comm: The name of its threads.

    Raises:
        BenchmarkError: It was not there.
    """
    prepared: cpu.Prepared | sched.Prepared
    if switches:
        prepared = sched.prepare(sched.SchedOptions(sched.OFFCPU, unwind=unwind))
        name, kind = "bpflame_switch", RAW_TRACEPOINT
    else:
        prepared = cpu.prepare(cpu.CpuOptions(frequency=_RATE, cpus=(on,), unwind=unwind))
        name, kind = "bpflame_cpu", PERF_EVENT
    points: list[tuple[int, int]] = []

    def look(elapsed: float) -> None:
        if elapsed > _SETTLED:
            points.append(run_time(prepared.program.load(name, kind)))  # which is loaded once

    with statistics_on(), _recorded(prepared, look) as raw:
        pass
    (first_ns, first), (last_ns, last) = points[0], points[-1]
    if last <= first:
        raise BenchmarkError(f"no events of {name}")
    return Event(last - first, (last_ns - first_ns) / (last - first), *_depths(raw, comm))


@contextlib.contextmanager
def _recorded(
    prepared: cpu.Prepared | sched.Prepared, look: Callable[[float], None]
) -> Iterator[RawProfile]:
    """A recording that is over; its maps are there until the end of the block."""
    recorder = prepared.recorder(None, Metadata())
    try:
        with StopSignals() as signals:
            raw = recorder.run(
                _SECONDS, signals, lambda progress: look(progress.elapsed), lambda: None
            )
            if signals.stopped:
                raise KeyboardInterrupt
        yield raw
    finally:
        recorder.close()


def _depths(raw: RawProfile, comm: str) -> tuple[float, float]:
    """Mean numbers of user and of kernel frames, of threads of a name; of waits by their time."""
    samples = [sample for sample in raw.samples if not comm or sample.task.comm == comm]
    total = sum(sample.value for sample in samples)
    if not total:
        raise BenchmarkError(f"nothing of {comm or 'the process'} in the recording")
    user = sum(len(sample.user) * sample.value for sample in samples)
    return user / total, sum(len(sample.kernel) * sample.value for sample in samples) / total


def histogram(program: Program, name: str) -> list[int]:
    """How many walks took so many units."""
    found = BpfMap(program.map_fd(name), 4, 8)
    values = (found.lookup(place.to_bytes(4, "little")) for place in range(_TIMES))
    return [int.from_bytes(value or b"", "little") for value in values]


def percentile(counts: Sequence[int], share: float) -> float:
    """Below what value this share of the values lies, to a part of a unit.

    Args:
        counts: How many values are in [i, i + 1).
        share: Between 0 and 1.

    Raises:
        ValueError: There are no values.
    """
    wanted, seen = share * sum(counts), 0
    for place, count in enumerate(counts):
        if count and seen + count >= wanted:
            return place + (wanted - seen) / count
        seen += count
    raise ValueError("no measurements")


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """The kernel counts what BPF programs take, for as long as somebody wants it.

    Raises:
        BenchmarkError: It does not.
    """
    attributes = ctypes.create_string_buffer(128)  # BPF_STATS_RUN_TIME is 0
    fd = ctypes.CDLL(None, use_errno=True).syscall(_SYS_BPF, _ENABLE_STATS, attributes, 128)
    if fd < 0:
        raise BenchmarkError(f"no BPF statistics: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(fd)


def run_time(program: int) -> tuple[int, int]:
    """What a BPF program took until now, in ns, and how often it ran.

    Of those that go on as others, the first one is charged with all.
    """
    info = Path("/proc/self/fdinfo", str(program)).read_text()
    fields = dict(re.findall(r"^(run_\w+):\s*(\d+)$", info, re.MULTILINE))
    return int(fields["run_time_ns"]), int(fields["run_cnt"])


def preparing(options: cpu.CpuOptions | sched.SchedOptions) -> tuple[float, float]:
    """Seconds to compile the programs for a recording, and to load them."""
    began = time.monotonic()
    prepared: cpu.Prepared | sched.Prepared
    if isinstance(options, cpu.CpuOptions):
        prepared = cpu.prepare(options)
    else:
        prepared = sched.prepare(options)
    compiled = time.monotonic()
    recorder = prepared.recorder(None, Metadata())
    loaded = time.monotonic()
    recorder.close()
    return compiled - began, loaded - compiled
