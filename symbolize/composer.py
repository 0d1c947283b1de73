"""One stack out of several: who waited, how that went, and who ended it.

Blocked below, wakers above, turned round, so that the two leaves meet at the separator::

    waiter's root ... its leaf, [run queue]
    waiter's root ... its leaf, --, waker's leaf ... its root, its name, --, next waker's leaf ...

as in Brendan Gregg's chain graphs (Off-CPU Analysis, 2016). A profile of wakeups is the other way
round: the waker's stack, and whom it woke as the leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from bpflame.profile import Frame, FrameKind, Sample, Task
from bpflame.raw import Context, RawSample, RawWaker

IRQ, SOFTIRQ, TIMER = "[irq]", "[softirq]", "[timer]"
"""What an interrupt is called, in the place of a thread's name."""

_SEPARATOR = Frame("--", FrameKind.SEPARATOR)
_NO_TASK = {
    Context.UNKNOWN: "[unknown waker]",
    Context.CYCLE: "[cycle]",
    Context.DEEPER: "[deeper]",
}

# Functions that run the handlers of timers (kernel/time/hrtimer.c, timer.c, tick-common.c), and of
# softirqs (kernel/softirq.c).
_TIMERS = frozenset(
    {
        "__hrtimer_run_queues",
        "hrtimer_interrupt",
        "hrtimer_run_softirq",
        "run_timer_softirq",
        "__run_timers",
        "tmigr_handle_remote",
        "tick_handle_periodic",
    }
)
_SOFTIRQS = ("handle_softirqs", "__do_softirq")
# What a task that runs softirqs on its way does for itself: its own packets through loopback.
_OWN_SOFTIRQS = ("net_rx_action", "net_tx_action")
_SOFTIRQ_THREADS = "run_ksoftirqd"

Stack = tuple[Frame, ...]


class Composer:
    """Makes the samples of a profile.

    Args:
        kind: The kind of the profile.
        stack: Gives the frames of a pair of stacks, root first.
    """

    def __init__(self, kind: str, stack: Callable[[RawSample | RawWaker], Stack]) -> None:
        self._wakeups = kind == "wakeup"
        self._stack = stack
        self._seen: dict[int, tuple[Task, Stack]] = {}
        self._frames: dict[Frame, Frame] = {}
        self._chains: dict[int, Stack] = {}

    def sample(self, raw: RawSample) -> Sample:
        """The sample with its frames."""
        if self._wakeups and raw.wakers:
            task, stack = self._waker(raw.wakers[0])
            return Sample((*stack, self._frame(raw.task.comm, FrameKind.PROCESS)), raw.value, task)
        waits = [self._frame(name, FrameKind.WAIT) for name in raw.waits]
        return Sample((*self._stack(raw), *waits, *self._chain(raw.wakers)), raw.value, raw.task)

    def _chain(self, wakers: tuple[RawWaker, ...]) -> Stack:
        if not wakers:
            return ()
        if id(wakers) not in self._chains:
            frames: list[Frame] = []
            for waker in wakers:
                task, stack = self._waker(waker)
                turned = [self._frame(f.name, FrameKind.WAKER, f) for f in reversed(stack)]
                frames += (_SEPARATOR, *turned, self._frame(task.comm, FrameKind.WAKER))
                if task.comm in (IRQ, SOFTIRQ, TIMER) and not task.pid:
                    break  # what a task had waited for that ran it has no part in this
            self._chains[id(wakers)] = tuple(frames)
        return self._chains[id(wakers)]

    def _waker(self, waker: RawWaker) -> tuple[Task, Stack]:
        """What to call a waker, and its stack."""
        if id(waker) not in self._seen:
            self._seen[id(waker)] = self._name(waker)
        return self._seen[id(waker)]

    def _name(self, waker: RawWaker) -> tuple[Task, Stack]:
        if waker.context in _NO_TASK:
            return Task(0, 0, _NO_TASK[waker.context]), ()
        stack = self._stack(waker)
        if waker.context is Context.INTERRUPT or waker.task is None:
            name, stack = interrupt(stack)
            return Task(0, 0, name), () if waker.bare else stack
        if _hosts_softirq(stack):
            name, stack = interrupt(stack)
            return Task(0, 0, name), stack
        return waker.task, stack

    def _frame(self, name: str, kind: FrameKind, like: Frame | None = None) -> Frame:
        """A frame, made once; ``like`` another one in all but its kind."""
        frame = Frame(name, kind) if like is None else dataclasses.replace(like, kind=kind)
        return self._frames.setdefault(frame, frame)


def _hosts_softirq(stack: Sequence[Frame]) -> bool:
    """Whether a task only happened to run a softirq that has nothing to do with it.

    Softirqs run at the next chance, which can be any local_bh_enable().
    """
    names = [frame.name.partition(".")[0] for frame in stack]
    for i, name in enumerate(names):
        if name in _SOFTIRQS:
            return not any(
                other in _OWN_SOFTIRQS or other == _SOFTIRQ_THREADS
                for other in (*names[:i][-3:], *names[i + 1 : i + 2])
            )
    return False


def interrupt(stack: Sequence[Frame]) -> tuple[str, Stack]:
    """What interrupt it is, and its stack from where that began.

    Args:
        stack: Frames of the kernel, root first, from the interrupt's entry on.
    """
    names = [frame.name.partition(".")[0] for frame in stack]
    softirq = max((i for i, name in enumerate(names) if name in _SOFTIRQS), default=-1)
    # Softirqs run on the way out of whatever interrupt there was: that one has no part in it.
    begin = max(softirq, 0)
    if any(name in _TIMERS for name in names[begin:]):
        return TIMER, tuple(stack[begin:])
    return SOFTIRQ if softirq >= 0 else IRQ, tuple(stack[begin:])
