"""One recording from attach to drain, the same for every kind of profile."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bpflame.bpf import counters as names
from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.load import Program
from bpflame.bpf.mapping_ring import MappingRings
from bpflame.bpf.perf_event import explain
from bpflame.errors import Interrupted
from bpflame.profile import Metadata, Task
from bpflame.profilers.command import Command
from bpflame.profilers.counting import CountKey, StackCounts
from bpflame.profilers.files import FileKeeper
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.procfs import processes
from bpflame.profilers.signals import StopSignals
from bpflame.profilers.target import Target, cgroup_names
from bpflame.raw import RawProfile, RawSample

_POLL_SECONDS = 0.1
_DRAIN_SECONDS = 1.0


class Source(Protocol):
    """What fires the BPF program."""

    def open(self) -> None:
        """Start."""

    def check(self) -> list[int]:
        """Keep it going; returns CPUs that came (back) online."""

    def close(self) -> None:
        """Stop."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs it covers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How a recording is getting on.

    Attributes:
        elapsed: Seconds since it began.
        samples: Samples so far.
        stacks: Distinct stacks drained so far.
        lost: Samples lost so far.
    """

    elapsed: float
    samples: int
    stacks: int
    lost: int


class Recorder:
    """Attach, wait, drain, account.

    Args:
        program: Compiled, with its filters set.
        source: What fires it, not open yet.
        counts: Its maps.
        target: Whom to record.
        command: The command behind its gate, if there is one.
        meta: What is known of the recording beforehand.
        kind: The question asked.
        unit: Of the values.
    """

    def __init__(
        self,
        program: Program,
        source: Source,
        counts: StackCounts,
        target: Target,
        command: Command | None,
        meta: Metadata,
        kind: str,
        unit: str,
    ) -> None:
        self._program = program
        self._source = source
        self._counts = counts
        self._target = target
        self._command = command
        self._meta = meta
        self._kind = kind
        self._unit = unit
        self._cpus: tuple[int, ...] = ()
        self._reopened = 0
        self._files = FileKeeper()
        follow = bool(target.command) or target.children
        self._tracker = ProcessTracker(self._files, target.processes, follow)

    def run(
        self,
        duration: float | None,
        signals: StopSignals,
        progress: Callable[[Progress], None],
        started: Callable[[], None],
    ) -> RawProfile:
        """Record until the duration is over, the command ends, or a signal comes.

        Args:
            duration: Seconds; None for no limit.
            signals: Where signals arrive.
            progress: Called a few times a second.
            started: Called once, when sampling has begun.

        Raises:
            Interrupted: A signal came before anything was recorded.
        """
        try:
            rings = MappingRings(online_cpus())
        except OSError as error:
            raise explain(error, "dummy") from error
        with contextlib.closing(rings):
            self._attach(signals)
            began, start = time.monotonic(), time.time()
            try:
                started()
                self._snapshot()
                self._wait(began, duration, rings, signals, progress)
            finally:
                self._source.close()
            elapsed = time.monotonic() - began
            self._settle(rings, last=True)
            return self._finish(rings, start, elapsed)

    def close(self) -> None:
        """Detach everything, close every file."""
        self._source.close()
        self._program.close()
        self._files.close()

    def _attach(self, signals: StopSignals) -> None:
        for function, tracepoint in (
            ("bpflame_fork", "sched_process_fork"),
            ("bpflame_exec", "sched_process_exec"),
        ):
            self._program.attach_raw_tracepoint(function, tracepoint)
        if self._command is not None or self._target.children:
            self._program.attach_raw_tracepoint("bpflame_exit", "sched_process_exit")
        if signals.stopped:
            raise Interrupted
        self._source.open()
        self._cpus = self._source.cpus
        if self._command is not None:
            self._tracker.follow(self._command.pid)
            self._command.release()

    def _snapshot(self) -> None:
        known = self._target.processes
        self._tracker.snapshot(processes() if known is None else known)

    def _wait(
        self,
        began: float,
        duration: float | None,
        rings: MappingRings,
        signals: StopSignals,
        progress: Callable[[Progress], None],
    ) -> None:
        end = None if duration is None else began + duration
        settled = began
        child = None if self._command is None else self._command.pidfd
        while not signals.stopped and (self._command is None or self._command.poll() is None):
            now = time.monotonic()
            if end is not None and now >= end:
                return
            signals.wait(min(_POLL_SECONDS, (end or now + 1) - now), child)
            for cpu in self._source.check():
                rings.watch(cpu)
                self._reopened += 1
            if self._counts.pressed() or time.monotonic() - settled >= _DRAIN_SECONDS:
                self._settle(rings)
                settled = time.monotonic()
            else:
                self._tracker.apply(rings.read(time.monotonic_ns()))
            total = self._counts.counters.total
            progress(
                Progress(
                    time.monotonic() - began,
                    total(names.SAMPLES),
                    len(self._counts),
                    total(names.LOST_SAMPLES),
                )
            )

    def _settle(self, rings: MappingRings, last: bool = False) -> None:
        pids = self._counts.drain_last() if last else self._counts.drain()
        self._tracker.apply(rings.read(time.monotonic_ns()))
        self._tracker.sampled(pids)
        self._tracker.forget()

    def _finish(self, rings: MappingRings, start: float, elapsed: float) -> RawProfile:
        groups = cgroup_names() if any(key.cgroup for key, _ in self._counts.items()) else {}
        samples, dropped = [], 0
        for key, value in self._counts.items():
            comm = os.fsdecode(key.comm.split(b"\0", 1)[0])
            if self._target.comm is not None and not self._target.comm.search(comm):
                dropped += value
                continue
            samples.append(self._sample(key, comm, groups, value))
        total = self._counts.counters.total
        kept = total(names.SAMPLES)
        if dropped:
            kept = sum(sample.value for sample in samples) if self._unit == "samples" else kept
        counters = {
            "samples": kept,
            "lost_samples": total(names.LOST_SAMPLES),
            "lost_value": total(names.LOST_VALUE),
            "lost_stacks": total(names.LOST_STACKS),
            "lost_mappings": rings.lost,
            "lost_children": total(names.LOST_CHILDREN),
            "own_samples": total(names.OWN),
            "idle_samples": total(names.IDLE),
            "reopened_cpus": self._reopened,
        }
        kernel = any(sample.kernel for sample in samples)
        return RawProfile(
            self._kind,
            self._unit,
            tuple(samples),
            self._files.files,
            _read("/proc/kallsyms") if kernel else b"",
            _read("/proc/modules") if kernel else b"",
            dataclasses.replace(
                self._meta,
                target=self._target.describe() if not self._meta.target else self._meta.target,
                host=platform.node(),
                kernel=platform.release(),
                cpus=len(self._cpus),
                start=start,
                duration=elapsed,
                counters=counters,
            ),
        )

    def _sample(self, key: CountKey, comm: str, groups: dict[int, str], value: int) -> RawSample:
        cgroup = groups.get(key.cgroup, f"cgroup {key.cgroup}") if key.cgroup else ""
        return RawSample(
            Task(key.pid, key.tid, comm, cgroup),
            self._tracker.find(key.pid, key.born),
            self._counts.stack(key.user),
            self._counts.stack(key.kernel),
            self._counts.lost(key.user) or self._counts.lost(key.kernel),
            value,
        )


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # no modules, or not for us
        return b""
