"""The sampling event on each CPU, also on one that was away in between.

When a CPU goes offline its perf events are gone for good, in silence: profilers that open them once
never sample that CPU again. Here an event that stops ticking on an online CPU is opened anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.perf_event import Attr, attach, explain, open_event

_QUIET_TICKS = 8  # so many expected ticks missing in a row are not chance
_CHECK_SECONDS = 0.5


class CpuEvents:
    """The events of one recording.

    Args:
        attr: What to open.
        name: The event's name, for messages.
        program: File descriptor of the BPF program to run.
        cpus: CPUs to sample; None for all that are or come online.
        ticks: Gives each CPU's count of events so far.
        steady: Whether the event ticks on an idle CPU too, so that silence means it is gone.

    Attributes:
        reopened: How often a CPU was given a new event.
    """

    def __init__(
        self,
        attr: Attr,
        name: str,
        program: int,
        cpus: tuple[int, ...] | None,
        ticks: Callable[[], dict[int, int]],
        steady: bool,
    ) -> None:
        self.reopened = 0
        self._attr = attr
        self._name = name
        self._program = program
        self._only = cpus
        self._ticks = ticks
        self._steady = steady
        self._fds: dict[int, int] = {}
        self._seen: dict[int, tuple[int, float]] = {}
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
            os.close(self._fds.pop(cpu))
            self._seen.pop(cpu, None)
        ticks = self._ticks()
        renewed = [cpu for cpu in wanted if cpu not in self._fds or self._silent(cpu, ticks, now)]
        for cpu in renewed:
            self._open(cpu)
            self._seen.pop(cpu, None)
        self.reopened += len(renewed)
        return renewed

    def close(self) -> None:
        """Stop sampling."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _wanted(self) -> list[int]:
        return [cpu for cpu in online_cpus() if self._only is None or cpu in self._only]

    def _silent(self, cpu: int, ticks: dict[int, int], now: float) -> bool:
        count = ticks.get(cpu, 0)
        before, since = self._seen.get(cpu, (-1, now))
        if count != before:
            self._seen[cpu] = (count, now)
            return False
        period = 1.0 / self._attr.sample_freq
        return self._steady and now - since > max(1.0, _QUIET_TICKS * period)

    def _open(self, cpu: int) -> None:
        if cpu in self._fds:
            os.close(self._fds.pop(cpu))
        try:
            fd = open_event(self._attr, cpu)
        except OSError as error:
            if cpu not in online_cpus():  # it went away in between
                return
            raise explain(error, self._name) from error
        self._fds[cpu] = fd
        try:
            attach(fd, self._program)
        except OSError as error:
            raise explain(error, self._name) from error
