"""Profile to profile: the same weight, seen another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bpflame.errors import UsageError
from bpflame.profile import Frame, FrameKind, Profile, Sample, Task

_UNKNOWN_CGROUP = "[cgroup not recorded]"


def _by_comm(task: Task) -> tuple[str, ...]:
    return (task.comm,)


def _by_pid(task: Task) -> tuple[str, ...]:
    return (f"{task.comm}-{task.pid}",)


def _by_tid(task: Task) -> tuple[str, ...]:
    return (f"{task.comm}-{task.pid}/{task.tid}",)


def _by_cgroup(task: Task) -> tuple[str, ...]:
    return (task.cgroup or _UNKNOWN_CGROUP, task.comm)


def _is_interrupt(task: Task) -> bool:
    """Whether nobody ran: ``[timer]`` has no pid to tell it by, and no cgroup."""
    return not task.pid and task.comm.startswith("[")


GROUPINGS: dict[str, Callable[[Task], tuple[str, ...]]] = {
    "comm": _by_comm,
    "pid": _by_pid,
    "tid": _by_tid,
    "cgroup": _by_cgroup,
}
"""What a profile can be grouped by: from a task to the names of its root frames."""


def group_by(profile: Profile, by: str) -> Profile:
    """Put who ran at the root of every stack. Samples that tell no task are left as they are.

    Args:
        profile: Any profile.
        by: ``comm``, ``pid``, ``tid`` (roots such as ``nginx``, ``nginx-12``, ``nginx-12/14``) or
            ``cgroup`` (the cgroup's path, then the comm).

    Raises:
        UsageError: There is no such grouping, or the recording did not keep what it needs.
    """
    if by not in GROUPINGS:
        raise UsageError(f"cannot group by {by}", f"one of: {', '.join(GROUPINGS)}")
    tasks = {sample.task for sample in profile.samples if sample.task is not None}
    # The idle task is pid 0, tid 0 in every recording.
    if by == "tid" and any(task.pid and not task.tid for task in tasks):
        raise UsageError("cannot group by tid: the recording did not tell threads apart")
    if by == "cgroup" and tasks and not any(task.cgroup or _is_interrupt(task) for task in tasks):
        raise UsageError("cannot group by cgroup: the recording did not keep cgroups")
    interned: dict[str, Frame] = {}
    roots: dict[Task | None, tuple[Frame, ...]] = {None: ()}
    for task in tasks:
        names = _by_comm(task) if _is_interrupt(task) else GROUPINGS[by](task)
        roots[task] = tuple(interned.setdefault(n, Frame(n, FrameKind.PROCESS)) for n in names)
    samples = tuple(
        Sample(roots[sample.task] + sample.stack, sample.value, sample.task)
        for sample in profile.samples
    )
    return dataclasses.replace(profile, samples=samples)
