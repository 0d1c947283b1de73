"""The sampling event on each CPU, also on one that was away in between.

When a CPU goes offline its perf events are gone for good, in silence: profilers that open them once
never sample that CPU again. Here an event that has come to rest on an online CPU is opened anew.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.perf_event import Attr, attach, enabled_time, explain, open_event
from bpflame.errors import BpflameError

_CHECK_SECONDS = 0.5


class CpuEvents:
    """The events of one recording.

    Args:
        attr: What to open.
        name: The event's name, for messages.
        program: File descriptor of the BPF program to run.
        cpus: CPUs to sample; None for all that are or come online.
        ticks: Gives each CPU's count of events so far.
    """

    def __init__(
        self,
        attr: Attr,
        name: str,
        program: int,
        cpus: tuple[int, ...] | None,
        ticks: Callable[[], dict[int, int]],
    ) -> None:
        self._attr = attr
        self._name = name
        self._program = program
        self._only = cpus
        self._ticks = ticks
        self._fds: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._enabled: dict[int, int] = {}
        self._checked = 0.0

    def open(self) -> None:
        """Start sampling.

        Raises:
            BpflameError: The kernel refuses the event.
        """
        for cpu in self._wanted():
            self._open(cpu)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs that are sampled now."""
        return tuple(sorted(self._fds))

    def check(self) -> list[int]:
        """Look after the CPUs; returns those that were given a new event. Cheap, call often."""
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return []
        self._checked = now
        wanted = self._wanted()
        for cpu in set(self._fds) - set(wanted):
            self._close(cpu)
        ticks = self._ticks()
        missing = [cpu for cpu in wanted if cpu not in self._fds or self._rests(cpu, ticks)]
        for cpu in missing:
            with contextlib.suppress(BpflameError):  # next time: what was recorded is worth more
                self._open(cpu)
        return [cpu for cpu in missing if cpu in self._fds]

    def close(self) -> None:
        """Stop sampling."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _wanted(self) -> list[int]:
        return [cpu for cpu in online_cpus() if self._only is None or cpu in self._only]

    def _rests(self, cpu: int, ticks: dict[int, int]) -> bool:
        """Whether a CPU's event has ceased to be.

        No tick since the last look can also be an idle CPU: some virtual machines take no timer
        interrupts then. The time that the event was enabled tells; it stands still only if the
        event is gone, and is asked for only then, since that interrupts the CPU.
        """
        count = ticks.get(cpu, 0)
        if count != self._seen.get(cpu):
            self._seen[cpu] = count
            self._enabled.pop(cpu, None)
            return False
        enabled = enabled_time(self._fds[cpu])
        before, self._enabled[cpu] = self._enabled.get(cpu), enabled
        return enabled == before

    def _close(self, cpu: int) -> None:
        os.close(self._fds.pop(cpu))
        self._seen.pop(cpu, None)
        self._enabled.pop(cpu, None)

    def _open(self, cpu: int) -> None:
        if cpu in self._fds:
            self._close(cpu)
        try:
            fd = open_event(self._attr, cpu)
        except OSError as error:
            if cpu not in online_cpus():  # it went away in between
                return
            raise explain(error, self._name) from error
        try:
            attach(fd, self._program)
        except OSError as error:
            os.close(fd)
            raise explain(error, self._name) from error
        self._fds[cpu] = fd
