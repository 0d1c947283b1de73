from __future__ import annotations

import dataclasses
import io
import re

import pytest

from bpflame.flamegraph.folded import read_folded, write_folded
from bpflame.flamegraph.svg import SvgOptions, write_svg
from bpflame.profile import Frame, FrameKind, Metadata, Profile, Reason, Sample
from tests.golden.bless import check_golden

STYLE = re.compile(r"<style.*</style>", re.DOTALL)

EVERY_KIND = Profile(
    kind="chain",
    unit="ns",
    samples=(
        Sample(
            (
                Frame("worker-7", FrameKind.PROCESS),
                Frame("main", module="/usr/bin/worker", file="worker.c", line=12),
                Frame("inlined_lock", FrameKind.INLINE),
                Frame("do_futex", FrameKind.KERNEL, "vmlinux"),
                Frame("--", FrameKind.SEPARATOR),
                Frame("unlock", FrameKind.WAKER),
            ),
            1_500_000_000,
        ),
        Sample(
            (Frame("worker-7", FrameKind.PROCESS), Frame("LazyCompile:~f", FrameKind.JIT)),
            2_000_000,
        ),
        Sample(
            (
                Frame("worker-7", FrameKind.PROCESS),
                Frame("[libz.so.1+0x12ab]", module="libz.so.1", unnamed=Reason.NO_SYMBOL),
            ),
            300_000_000,
        ),
    ),
    meta=Metadata(
        target="pid 7",
        host="web-1",
        kernel="6.18.5",
        cpus=4,
        event="sched_switch",
        start=1_700_000_000.5,
        duration=2.0,
        counters={"samples": 3, "lost_samples": 2, "unknown_wakers": 1},
    ),
)

HOSTILE = Profile(
    "cpu",
    "samples",
    tuple(
        Sample((Frame("main"), Frame(name, kind)), 10)
        for name, kind in [
            ("<script>alert(1)</script>", FrameKind.USER),
            ("]]></title><script/>", FrameKind.KERNEL),
            ("\x1b[31mred\x00\x07", FrameKind.USER),
            ("a;b\\c\nd\r\n# e", FrameKind.USER),
            ("quote\"s'&amp;", FrameKind.USER),
            ("\ufffe\ud800\udc9f\u202egnp.exe", FrameKind.JIT),
            ("[k]_[k]", FrameKind.USER),
            ("日本語の関数名", FrameKind.USER),
            ("", FrameKind.USER),
            ("--", FrameKind.USER),
        ]
    ),
    Metadata(title="<title> & ]]>", target="sh -c 'echo \"\x1b[2J\"'"),
)

# Siblings that sort between "foo" and "foo;": as lines of text they tear foo apart.
SIBLINGS = """main;foo 1
main;foo(int);x 100
main;foo;y 100
main;foo-helper 3
main;foo 7
"""

NARROW = "".join(f"main;wide;tiny{n} 1\n" for n in range(400)) + "main;wide 99600\nmain;b;c 2\n"

# Where threads wait: folded stacks in which "=" marks the name of a process.
WAITING = {
    "offcpu": r"""
=sh;main;wait_for;wait4;do_syscall_64_[k];do_wait_[k];schedule_[k];[blocked] 1500000000
=sh;main;wait_for;wait4;do_syscall_64_[k];do_wait_[k];schedule_[k];[blocked];[partial] 700000000
=sh;main;wait_for;wait4;do_syscall_64_[k];do_wait_[k];schedule_[k];[run queue] 250000000
=sh;main;expand;[libc.so.6+0x1234];apic_timer_interrupt_[k];schedule_[k];[preempted] 90000
=sh;main;[partial\x5d;poll;do_poll_[k];schedule_[k];[run queue];[partial] 120000000
=sh;[partial] 200000000
""",
    "wakeup": """
=make;main;exit_group;do_exit_[k];do_notify_parent_[k];try_to_wake_up_[k];=sh 1500000000
=make;main;write;do_syscall_64_[k];pipe_write_[k];try_to_wake_up_[k];=cat 30000000
=[timer];asm_sysvec_apic_timer_interrupt_[k];hrtimer_wakeup_[k];try_to_wake_up_[k];=sh 400000000
=[irq];asm_common_interrupt_[k];handle_irq_event_[k];try_to_wake_up_[k];=cat 60000000
=[softirq];__do_softirq_[k];net_rx_action_[k];try_to_wake_up_[k];=curl 999
""",
    "offwake": """
=sh;main;wait4;do_wait_[k];--;wake_up_[w];do_exit_[w];main_[w];make_[w] 1500000000
=sh;main;wait4;do_wait_[k];--;[unknown waker]_[w] 300000000
=sh;main;wait4;do_wait_[k];[run queue] 20000000
=sh;main;wait4;do_wait_[k];[blocked];[partial] 600000000
=sh;main;nanosleep;do_nanosleep_[k];--;wake_up_[w];hrtimer_wakeup_[w];[timer]_[w] 80000000
=sh;main;expand;[preempted] 5000000
""",
    "chain": """
=sh;main;wait4;do_wait_[k];--;wake_up_[w];make_[w];--;nvme_irq_[w];[irq]_[w] 900000000
=sh;main;wait4;do_wait_[k];--;wake_up_[w];make_[w];--;[deeper]_[w] 300000000
=sh;main;wait4;do_wait_[k];--;wake_up_[w];make_[w];--;write_[w];sh_[w];--;[cycle]_[w] 200000000
=sh;main;wait4;do_wait_[k];--;wake_up_[w];make_[w] 100000000
=sh;main;wait4;do_wait_[k];[run queue] 20000000
""",
}


def waiting(kind: str) -> Profile:
    """The profile of that kind, of a recording that missed some."""

    def whole(frame: Frame) -> Frame:
        name = frame.name.removeprefix("=")
        return frame if name == frame.name else Frame(name, FrameKind.PROCESS)

    profile = read_folded(WAITING[kind].splitlines(), kind, kind, "ns")
    meta = Metadata(
        target="all CPUs",
        host="web-1",
        cpus=2,
        event="sched_switch",
        duration=2.0,
        counters={"partial_ns": 700_000_000, "unknown_waker_ns": 300_000_000, "lost_wakers": 3},
    )
    samples = tuple(
        dataclasses.replace(sample, stack=tuple(whole(frame) for frame in sample.stack))
        for sample in profile.samples
    )
    return dataclasses.replace(profile, samples=samples, meta=meta)


CASES = {
    "siblings": (read_folded(SIBLINGS.splitlines(), "siblings"), SvgOptions()),
    "narrow": (read_folded(NARROW.splitlines(), "narrow"), SvgOptions(title="Narrow", width=800)),
    "kinds": (EVERY_KIND, SvgOptions()),
    "inverted": (EVERY_KIND, SvgOptions(inverted=True, subtitle="upside down")),
    "hostile": (HOSTILE, SvgOptions()),
    **{kind: (waiting(kind), SvgOptions()) for kind in WAITING},
    "empty": (Profile("offcpu", "ns", ()), SvgOptions(empty_reason="pid 7 was idle for 10 s")),
}


@pytest.mark.parametrize("case", CASES)
def test_svg(case: str) -> None:
    profile, options = CASES[case]
    out = io.StringIO()
    write_svg(profile, out, options)
    # The style sheet and the script are files of their own.
    text = re.sub(
        r"<script>.*</script>", "<script/>", STYLE.sub("<style/>", out.getvalue()), flags=re.DOTALL
    )
    check_golden(f"flamegraph/{case}.svg", text)


@pytest.mark.parametrize("case", CASES)
def test_folded(case: str) -> None:
    out = io.StringIO()
    write_folded(CASES[case][0], out)
    check_golden(f"flamegraph/{case}.folded", out.getvalue())
