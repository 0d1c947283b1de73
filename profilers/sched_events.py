"""What fires the scheduler program: two raw tracepoints, and a look at who was away before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.profilers.counting import Who
from bpflame.profilers.recall import Recall
from bpflame.profilers.sleepers import Sleeper, Sleepers, Way
from bpflame.profilers.target import Target, cgroup_of
from bpflame.profilers.waits import WaitCounts

# In this order: a wait that begins is to be seen to its end, and a wakeup may come before.
TRACEPOINTS = (
    ("bpflame_waking", "sched_waking"),
    ("bpflame_switch", "sched_switch"),
    ("bpflame_child", "sched_process_fork"),
)


class SchedEvents:
    """The events of the scheduler, on all CPUs.

    Args:
        program: A loaded ``sched.bpf.c``.
        counts: Its maps.
        recall: Teaches it to recognise stacks.
        sleepers: Finds the threads that are away already; None if they do not matter. Closed here.
        target: Whose waits count ...
        wanted: ... and tells of such a thread whether its wait does.
        threads: Tell the threads of a process apart.
        cgroups: Tell their control groups apart.
    """

    def __init__(
        self,
        program: Program,
        counts: WaitCounts,
        recall: Recall,
        sleepers: Sleepers | None,
        target: Target,
        wanted: Callable[[Sleeper], bool],
        threads: bool,
        cgroups: bool,
    ) -> None:
        self._program = program
        self._counts = counts
        self._recall = recall
        self._sleepers = sleepers
        self._target = target
        self._wanted = wanted
        self._threads = threads
        self._cgroups = cgroups
        self._open = False

    @property
    def cpus(self) -> tuple[int, ...]:
        """All that are online: a tracepoint has no CPU."""
        return online_cpus()

    def open(self) -> None:
        """Attach, and note who is away.

        Raises:
            BpflameError: The kernel has no such tracepoint.
        """
        self._open = True
        for function, tracepoint in TRACEPOINTS:
            self._program.attach_raw_tracepoint(function, tracepoint)
        away = [] if self._sleepers is None else self._find(self._sleepers)
        self._counts.began = time.monotonic_ns()
        began = BpfMap(self._program.map_fd("began"), 4, 8)
        began.update(bytes(4), self._counts.began.to_bytes(8, "little"))
        for sleeper in away:
            self._note(sleeper)

    def check(self) -> list[int]:
        """Let the program recognise what it has met; no CPU needs anything."""
        self._recall.learn()
        return []

    def close(self) -> None:
        """Detach."""
        if self._open:
            self._counts.end = time.monotonic_ns()
            self._program.detach()
            self._open = False
        if self._sleepers is not None:
            self._sleepers.close()
            self._sleepers = None

    def _find(self, sleepers: Sleepers) -> list[Sleeper]:
        """Who is away and counts. Whoever comes meanwhile has a record that says more."""
        own = os.getpid()
        found = sleepers.read(lambda pid, tid: pid != own and self._target.includes(pid, tid))
        bare = len(found) if sleepers.way is Way.PROCFS else sleepers.bare
        self._counts.truncated_sleepers = bare + sleepers.refused
        return [sleeper for sleeper in found if self._wanted(sleeper)]

    def _note(self, sleeper: Sleeper) -> None:
        tid = sleeper.tid if self._threads else 0
        cgroup = _cgroup_id(sleeper) if self._cgroups else 0
        who = Who(0, cgroup, sleeper.pid, tid, sleeper.comm.ljust(16, b"\0")[:16])
        self._counts.add_away(who, sleeper)
        if _is_dead(sleeper):  # before it was noted, so that nothing else will take it back
            self._counts.drop_away(sleeper)


def _is_dead(sleeper: Sleeper) -> bool:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{sleeper.pid}/task/{sleeper.tid}/stat").read_bytes()
        return stat.rpartition(b") ")[2][:1] in (b"Z", b"X")
    return True


def _cgroup_id(sleeper: Sleeper) -> int:
    """The id of its control group, the inode of the folder; 0 when it has gone."""
    folder = cgroup_of(sleeper.pid, sleeper.tid)
    with contextlib.suppress(OSError):
        return 0 if folder is None else os.stat(folder).st_ino
    return 0
