"""One stack out of several: in which order the frames stand, and what an interrupt is called."""

from __future__ import annotations

import dataclasses

import pytest

from bpflame.profile import Frame, FrameKind, Metadata, Profile, Reason, Task
from bpflame.raw import AbsoluteAddress, Context, RawProfile, RawSample, RawWaker, StackEnd
from bpflame.symbolize.composer import IRQ, SOFTIRQ, TIMER, Composer, interrupt
from bpflame.symbolize.resolve import LOST, symbolize

WAITER = Task(10, 11, "waiter")
NEAR, FAR = Task(20, 21, "near"), Task(30, 31, "far")
STACKS = {
    "waiter": ("main", "work", "read_[k]"),
    "near": ("near_main", "send", "write_[k]"),
    "far": ("far_main", "post"),
    "": ("asm_sysvec_apic_timer_interrupt_[k]", "hrtimer_interrupt_[k]", "hrtimer_wakeup_[k]"),
}
ADDRESS = (AbsoluteAddress(1),)


def frame(name: str) -> Frame:
    kernel = name.endswith("_[k]")
    return Frame(
        name.removesuffix("_[k]"),
        FrameKind.KERNEL if kernel else FrameKind.USER,
        "kernel" if kernel else "app",
    )


def stack(part: RawSample | RawWaker) -> tuple[Frame, ...]:
    """Frames by the name of the task, root first."""
    names = STACKS[part.task.comm if part.task is not None else ""]
    return tuple(map(frame, names))


def waker(task: Task, **changes: object) -> RawWaker:
    return dataclasses.replace(RawWaker(Context.TASK, task), **changes)


TIMER_WAKER = RawWaker(Context.INTERRUPT, kernel=ADDRESS)


def composed(kind: str, *wakers: RawWaker, waits: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    raw = RawSample(WAITER, None, ADDRESS, ADDRESS, False, 7, waits, wakers)
    sample = Composer(kind, stack).sample(raw)
    assert sample.value == 7
    return [(each.name, each.kind.value) for each in sample.stack]


OWN = [("main", "user"), ("work", "user"), ("read", "kernel")]
LINE = ("--", "separator")
UP_TO_NEAR = [
    LINE,
    ("write", "waker"),
    ("send", "waker"),
    ("near_main", "waker"),
    ("near", "waker"),
]
UP_TO_FAR = [LINE, ("post", "waker"), ("far_main", "waker"), ("far", "waker")]


def test_who_waits_stands_below_how_it_waits() -> None:
    assert composed("offcpu", waits=("[blocked]",)) == [*OWN, ("[blocked]", "wait")]
    assert composed("offcpu", waits=("[run queue]", "[partial]")) == [
        *OWN,
        ("[run queue]", "wait"),
        ("[partial]", "wait"),
    ]


def test_the_waker_stands_on_its_head_above_who_waits() -> None:
    assert composed("offwake", waker(NEAR)) == [*OWN, *UP_TO_NEAR]
    assert composed("offwake", waker(NEAR), waits=("[partial]",)) == [
        *OWN,
        ("[partial]", "wait"),
        *UP_TO_NEAR,
    ]


def test_a_chain_goes_on_from_waker_to_waker() -> None:
    timer = [
        LINE,
        ("hrtimer_wakeup", "waker"),
        ("hrtimer_interrupt", "waker"),
        ("asm_sysvec_apic_timer_interrupt", "waker"),
        ("[timer]", "waker"),
    ]
    found = composed("chain", waker(NEAR), waker(FAR), TIMER_WAKER)
    assert found == [*OWN, *UP_TO_NEAR, *UP_TO_FAR, *timer]


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (Context.CYCLE, "[cycle]"),
        (Context.DEEPER, "[deeper]"),
        (Context.UNKNOWN, "[unknown waker]"),
    ],
)
def test_a_chain_says_why_it_ends(context: Context, name: str) -> None:
    end = [LINE, (name, "waker")]
    assert composed("chain", waker(NEAR), RawWaker(context)) == [*OWN, *UP_TO_NEAR, *end]
    assert composed("offwake", RawWaker(context)) == [*OWN, *end]


@pytest.mark.parametrize("kind", ["offwake", "chain"])
def test_a_wakers_frames_keep_their_modules(kind: str) -> None:
    raw = RawSample(WAITER, None, ADDRESS, ADDRESS, False, 1, (), (waker(NEAR),))
    found = Composer(kind, stack).sample(raw)
    above = found.stack[len(OWN) + 1 :]
    assert [each.module for each in above] == ["kernel", "app", "app", ""]
    assert found.task == WAITER


def test_a_wakeup_is_of_the_waker_and_whom_it_woke_is_the_leaf() -> None:
    raw = RawSample(WAITER, None, (), (), False, 7, (), (waker(NEAR),))
    sample = Composer("wakeup", stack).sample(raw)
    assert sample.task == NEAR
    assert [(each.name, each.kind.value) for each in sample.stack] == [
        ("near_main", "user"),
        ("send", "user"),
        ("write", "kernel"),
        ("waiter", "process"),
    ]


def test_wakeups_by_interrupts_and_by_nobody_known_have_such_a_root() -> None:
    composer = Composer("wakeup", stack)
    for raw_waker, root in (
        (TIMER_WAKER, "[timer]"),
        (RawWaker(Context.UNKNOWN), "[unknown waker]"),
    ):
        sample = composer.sample(RawSample(WAITER, None, (), (), False, 1, (), (raw_waker,)))
        assert sample.task == Task(0, 0, root)
        assert sample.stack[-1] == Frame("waiter", FrameKind.PROCESS)


def test_a_bare_interrupt_has_its_name_and_no_stack() -> None:
    bare = dataclasses.replace(TIMER_WAKER, bare=True)
    assert composed("offwake", bare) == [*OWN, LINE, ("[timer]", "waker")]
    raw = RawSample(WAITER, None, (), (), False, 1, (), (bare,))
    sample = Composer("wakeup", stack).sample(raw)
    assert sample.task == Task(0, 0, "[timer]")
    assert [each.name for each in sample.stack] == ["waiter"]


def test_what_looks_the_same_is_made_once() -> None:
    """The stack of a waker that thousands of waits share is one."""
    asked = []

    def counted(part: RawSample | RawWaker) -> tuple[Frame, ...]:
        asked.append(part)
        return stack(part)

    composer, shared = Composer("offwake", counted), waker(NEAR)
    for value in range(5):
        composer.sample(RawSample(WAITER, None, ADDRESS, (), False, value, (), (shared,)))
    assert asked.count(shared) == 1


def named(*names: str) -> tuple[str, list[str]]:
    name, found = interrupt([Frame(each, FrameKind.KERNEL) for each in names])
    return name, [each.name for each in found]


ENTRY = "asm_sysvec_apic_timer_interrupt"


@pytest.mark.parametrize(
    "leaf",
    ["hrtimer_interrupt", "__hrtimer_run_queues", "tick_handle_periodic", "hrtimer_interrupt.cold"],
)
def test_an_interrupt_of_the_timer(leaf: str) -> None:
    names = (ENTRY, "sysvec_apic_timer_interrupt", leaf, "hrtimer_wakeup")
    assert named(*names) == (TIMER, [*names])


@pytest.mark.parametrize("softirqs", ["handle_softirqs", "__do_softirq", "handle_softirqs.isra.0"])
def test_a_softirq_begins_where_softirqs_are_handled(softirqs: str) -> None:
    """Whatever interrupt it came after: also that of a timer has no part in it."""
    work = (softirqs, "net_rx_action", "sock_def_readable")
    before = (ENTRY, "sysvec_apic_timer_interrupt", "hrtimer_interrupt", "irq_exit_rcu")
    assert named(*before, *work) == (SOFTIRQ, [*work])
    assert named("asm_common_interrupt", "common_interrupt", *work) == (SOFTIRQ, [*work])


@pytest.mark.parametrize("timers", ["run_timer_softirq", "hrtimer_run_softirq"])
def test_a_timer_that_a_softirq_runs_is_a_timer(timers: str) -> None:
    work = ("handle_softirqs", timers, "call_timer_fn", "process_timeout")
    assert named("asm_common_interrupt", *work) == (TIMER, [*work])


def test_any_other_interrupt() -> None:
    names = ("asm_common_interrupt", "common_interrupt", "vring_interrupt", "virtblk_done")
    assert named(*names) == (IRQ, [*names])
    assert named("asm_sysvec_call_function_single", "sched_ttwu_pending") == (
        IRQ,
        ["asm_sysvec_call_function_single", "sched_ttwu_pending"],
    )


def test_an_interrupt_whose_stack_is_not_there() -> None:
    assert named() == (IRQ, [])


def woken_under(*names: str) -> list[str]:
    """The chain of wakers where the nearest, a task, has this stack, and another woke that one."""
    frames = {NEAR: tuple(Frame(name, FrameKind.KERNEL) for name in names), FAR: (frame("post"),)}
    raw = RawSample(WAITER, None, (), (), False, 1, (), (waker(NEAR), waker(FAR)))
    found = Composer("chain", lambda part: frames.get(part.task, ())).sample(raw)
    return [each.name for each in found.stack]


def test_a_task_is_not_to_blame_for_softirqs_that_it_happened_to_run() -> None:
    """Nor is what it had waited for."""
    before = ("do_syscall_64", "__local_bh_enable_ip", "do_softirq")
    assert woken_under(*before, "handle_softirqs", "run_timer_softirq", "process_timeout") == [
        "--", "process_timeout", "run_timer_softirq", "handle_softirqs", "[timer]",
    ]  # fmt: skip
    assert woken_under(*before, "__do_softirq", "rcu_core_si", "wakeme_after_rcu") == [
        "--", "wakeme_after_rcu", "rcu_core_si", "__do_softirq", "[softirq]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("tcp_sendmsg", "do_softirq", "handle_softirqs", "net_rx_action", "sock_def_readable"),
        ("ret_from_fork", "smpboot_thread_fn", "run_ksoftirqd", "handle_softirqs", "rcu_core_si"),
        ("ksys_write", "vfs_write", "pipe_write"),
    ],
)
def test_what_a_task_does_for_itself_is_its_own_doing(names: tuple[str, ...]) -> None:
    """Its packets through loopback; softirqs in the thread that is there for them."""
    assert woken_under(*names) == ["--", *reversed(names), "near", "--", "post", "far"]


KALLSYMS = b"""\
ffffffff81000000 T _stext
ffffffff81000000 T asm_sysvec_apic_timer_interrupt
ffffffff81000100 T hrtimer_interrupt
ffffffff81000200 T do_read
ffffffff81000300 T do_write
ffffffff81001000 T _etext
"""


def kernel(*addresses: int) -> tuple[AbsoluteAddress, ...]:
    return tuple(AbsoluteAddress(0xFFFFFFFF81000000 + address) for address in addresses)


def symbolized() -> Profile:
    timer = RawWaker(Context.INTERRUPT, kernel=kernel(0x110, 0x10))
    lost = RawWaker(Context.TASK, NEAR, kernel=kernel(0x310), lost=True)
    samples = (
        RawSample(WAITER, None, (), kernel(0x210), False, 5, (), (lost, timer)),
        RawSample(WAITER, None, (), kernel(0x210), False, 2, ("[run queue]",)),
    )
    return symbolize(RawProfile("chain", "ns", samples, {}, KALLSYMS, b"", Metadata()))


def test_wakers_get_their_names_like_waiters() -> None:
    """From raw to named, with both sides' addresses resolved."""
    found = symbolized()
    assert [[each.name for each in sample.stack] for sample in found.samples] == [
        ["do_read", "--", "do_write", LOST.name, "near",
         "--", "hrtimer_interrupt", "asm_sysvec_apic_timer_interrupt", "[timer]"],
        ["do_read", "[run queue]"],
    ]  # fmt: skip


def test_wakers_without_names_are_counted_like_waiters() -> None:
    found = symbolized()
    assert found.meta.counters[f"unnamed: {Reason.MISSING_STACK.value}"] == 5
    assert [f.unnamed for f in found.samples[0].stack if f.name == LOST.name] == [LOST.unnamed]


def test_what_is_missing_of_a_waker_is_missing_where_its_root_would_be() -> None:
    near = RawWaker(Context.TASK, NEAR, kernel=kernel(0x310), end=StackEnd.TOO_DEEP)
    one = RawSample(WAITER, None, (), kernel(0x210), False, 5, (), (near,), StackEnd.NO_TABLE)
    for kind, names in (
        ("offwake", ["[truncated: no table]", "do_read", "--",
                     "do_write", "[truncated: too deep]", "near"]),
        ("wakeup", ["[truncated: too deep]", "do_write", "waiter"]),
    ):  # fmt: skip
        found = symbolize(RawProfile(kind, "ns", (one,), {}, KALLSYMS, b"", Metadata()))
        assert [each.name for each in found.samples[0].stack] == names
        cut = [each for each in found.samples[0].stack if each.unnamed is Reason.TRUNCATED]
        assert [each.name for each in cut] == [each for each in names if "truncated" in each]
        assert "unnamed_frames" not in found.meta.counters
    assert cut[0].kind is FrameKind.USER
