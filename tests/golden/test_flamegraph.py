from __future__ import annotations

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

CASES = {
    "siblings": (read_folded(SIBLINGS.splitlines(), "siblings"), SvgOptions()),
    "narrow": (read_folded(NARROW.splitlines(), "narrow"), SvgOptions(title="Narrow", width=800)),
    "kinds": (EVERY_KIND, SvgOptions()),
    "inverted": (EVERY_KIND, SvgOptions(inverted=True, subtitle="upside down")),
    "hostile": (HOSTILE, SvgOptions()),
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
