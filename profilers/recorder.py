"""One recording from attach to drain, the same for every kind of profile."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Protocol

from bpflame.bpf import counters as names
from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.load import Program
from bpflame.bpf.mapping_ring import MappingRings
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.perf_event import explain
from bpflame.errors import Interrupted
from bpflame.profile import Metadata
from bpflame.profilers.assemble import Kind, assemble
from bpflame.profilers.command import Command
from bpflame.profilers.counting import Counts
from bpflame.profilers.files import FileKeeper
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.procfs import processes
from bpflame.profilers.signals import StopSignals
from bpflame.profilers.target import Target
from bpflame.profilers.unwinding import Unwinding
from bpflame.raw import RawProfile

_POLL_SECONDS = 0.1
_DRAIN_SECONDS = 1.0
_ASK_SECONDS = 0.01  # between rounds: processes that ask must not take all of a CPU
_SNAPSHOT_STRIDE = 128  # processes, about 30 ms


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
        kind: What is measured.
        meta: What is known of the recording beforehand.
        walked: The program unwinds user stacks by tables, up to so many frames; 0: it does not.
    """

    def __init__(
        self,
        program: Program,
        source: Source,
        counts: Counts,
        target: Target,
        command: Command | None,
        kind: Kind,
        meta: Metadata,
        walked: int = 0,
    ) -> None:
        self._program = program
        self._born = BpfMap(program.map_fd("born"), 4, 8)
        self._source = source
        self._counts = counts
        self._target = target
        self._command = command
        self._kind = kind
        self._meta = meta
        self._cpus: tuple[int, ...] = ()
        self._reopened = 0
        self._files = FileKeeper()
        follow = bool(target.command) or target.children
        self._tracker = ProcessTracker(self._files, target.processes, follow)
        self._unwinding = (
            Unwinding(program, counts.stacks, walked, self._tracker, self._files)
            if walked
            else None
        )

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
            try:
                self._attach(signals)
                began, start = time.monotonic(), time.time()
                started()
                end = began + (math.inf if duration is None else duration)
                self._snapshot(end, rings, signals)
                self._wait(began, end, rings, signals, progress)
            finally:
                self._source.close()
            elapsed = time.monotonic() - began
            self._settle(rings, lambda: signals.hurried)
            meta = dataclasses.replace(
                self._meta, cpus=len(self._cpus), start=start, duration=elapsed
            )
            extra = {"lost_mappings": rings.lost, "reopened_cpus": self._reopened}
            if self._unwinding is not None:
                extra.update(self._unwinding.extra())
                extra["dropped_copies"] += self._counts.counters.total(names.LOST_COPIES)
        return assemble(
            self._kind, self._counts, self._tracker, self._files.files, self._target, meta, extra
        )

    def close(self) -> None:
        """Detach everything, close every file."""
        self._source.close()
        if self._unwinding is not None:
            self._unwinding.close()
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

    def _snapshot(self, end: float, rings: MappingRings, signals: StopSignals) -> None:
        """Read the mappings of what runs, which takes seconds where ten thousand processes do.

        What happens meanwhile is kept for later: it comes on top of the snapshot.
        """
        sampled: set[int] = set()
        known = self._target.processes
        for number, pid in enumerate(processes() if known is None else known):
            self._tracker.snapshot([pid])
            if number % _SNAPSHOT_STRIDE == 0:
                rings.hold()
                if self._unwinding is not None:
                    self._unwinding.collect()
                if self._counts.pressed():
                    sampled |= self._counts.drain()
                if signals.stopped or time.monotonic() >= end:
                    break
        self._tracker.sampled(sampled)
        if self._unwinding is not None:
            self._unwinding.ask(known or ())
            self._take_copies(self._unwinding)

    def _take_copies(self, unwinding: Unwinding) -> None:
        """Have the stacks unwound that were copied before the recording."""
        copies, self._counts.copies = self._counts.copies, []
        for copy in copies:
            unwinding.adopt(copy)

    def _wait(
        self,
        began: float,
        end: float,
        rings: MappingRings,
        signals: StopSignals,
        progress: Callable[[Progress], None],
    ) -> None:
        settled, asked = began, 0.0
        self._follow(rings)  # the tables of those who are there already
        child = None if self._command is None else self._command.pidfd
        while not signals.stopped and (self._command is None or self._command.poll() is None):
            left = end - time.monotonic()
            if left <= 0:
                return
            pause = asked + _ASK_SECONDS - time.monotonic()
            if pause > 0:
                signals.wait(min(pause, left), child)
            else:
                signals.wait(min(_POLL_SECONDS, left), child, *self._asking(rings))
                asked = time.monotonic()
            for cpu in self._source.check():
                self._reopened += 1
                with contextlib.suppress(OSError):  # names may be missing, samples are not
                    rings.watch(cpu)
            if self._counts.pressed() or time.monotonic() - settled >= _DRAIN_SECONDS:
                self._settle(rings)
                settled = time.monotonic()
            else:
                self._follow(rings)
            total = self._counts.counters.total
            progress(
                Progress(
                    time.monotonic() - began,
                    total(names.SAMPLES),
                    len(self._counts),
                    total(names.LOST_SAMPLES),
                )
            )

    def _renew(self, pid: int, born: int, since: int) -> None:
        """Have a process be another image from now on, unless it has become one by itself."""
        key = pid.to_bytes(4, "little")
        note = int.from_bytes(self._born.lookup(key) or b"", "little")
        image = self._tracker.find(pid, note)
        if image is not None and image.born == born:
            self._born.update(key, since.to_bytes(8, "little"))
            if self._unwinding is not None:
                self._unwinding.spaces.began(pid, since)

    def _asking(self, rings: MappingRings) -> tuple[int, ...]:
        """Descriptors that call for a look before it is time: tables that are old are false."""
        return () if self._unwinding is None else (self._unwinding.fd, *rings.fds)

    def _settle(self, rings: MappingRings, last: Callable[[], bool] | None = None) -> None:
        """Drain everything; for the last time until that returns True."""
        # Mappings first: then whoever is known to have ended has its last samples in this drain,
        # and can be forgotten if there are none.
        self._follow(rings)
        self._tracker.sampled(self._counts.drain_last() if last else self._counts.drain())
        if last:
            self._follow(rings, last)
        self._tracker.forget()

    def _follow(self, rings: MappingRings, last: Callable[[], bool] | None = None) -> None:
        """Take in what happened to processes."""
        if self._unwinding is not None:
            self._unwinding.prepare()
        events = rings.read(time.monotonic_ns())
        self._tracker.apply(events)
        for pid, born, since in self._tracker.renewed():
            self._renew(pid, born, since)
        if self._unwinding is not None:
            self._unwinding.update(events, rings.lost, last is not None, last or bool)
