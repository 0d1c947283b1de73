from __future__ import annotations

import io
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.errors import InputError
from bpflame.flamegraph.folded import folded_lines, read_folded, write_folded
from bpflame.flamegraph.text import columns, escape_name, fit, printable, unescape_name
from bpflame.profile import WAITS, Frame, FrameKind, Profile, Sample, Task

TRICKY = st.text(
    st.sampled_from(";\\ #\t\n\r\x1b\x85\x9f\u2028\u202e\udc80\ufeff\ufffe-_[]kx0a3bu")
)
NAMES = st.one_of(st.text(), TRICKY, st.sampled_from(["--", "--_[w]", *WAITS]))
# A line has no place for "this names a process"; the others have names of their own.
KINDS = st.sampled_from(
    [
        kind
        for kind in FrameKind
        if kind not in (FrameKind.PROCESS, FrameKind.SEPARATOR, FrameKind.WAIT)
    ]
)
FRAMES = st.one_of(
    st.builds(Frame, NAMES, KINDS),
    st.builds(Frame, st.sampled_from(WAITS), st.just(FrameKind.WAIT)),
    st.just(Frame("--", FrameKind.SEPARATOR)),
)
SAMPLES = st.builds(Sample, st.lists(FRAMES, max_size=6).map(tuple), st.integers(0, 10**15))
PROFILES = st.lists(SAMPLES, max_size=8).map(lambda s: Profile("cpu", "samples", tuple(s)))


def cpu(*samples: Sample) -> Profile:
    return Profile("cpu", "samples", samples)


def sums(profile: Profile) -> Counter[tuple[Frame, ...]]:
    total: Counter[tuple[Frame, ...]] = Counter()
    for sample in profile.samples:
        total[sample.stack] += sample.value
    return total


@given(PROFILES)
def test_any_profile_survives_the_round_trip(profile: Profile) -> None:
    assert sums(read_folded(folded_lines(profile), "x")) == sums(profile)


@given(PROFILES)
def test_survives_a_file_of_bytes(profile: Profile) -> None:
    out = io.StringIO()
    write_folded(profile, out)
    text = io.TextIOWrapper(io.BytesIO(out.getvalue().encode("utf-8")), encoding="utf-8")
    assert sums(read_folded(text, "x")) == sums(profile)


@given(PROFILES)
def test_no_name_breaks_a_line_or_a_terminal(profile: Profile) -> None:
    for line in folded_lines(profile):
        assert line.splitlines() == [line]
        assert line == printable(line)
        assert not line.startswith("#")


@given(PROFILES, st.randoms(use_true_random=False))
def test_order_of_samples_does_not_show(profile: Profile, rnd: random.Random) -> None:
    shuffled = list(profile.samples)
    rnd.shuffle(shuffled)
    assert list(folded_lines(cpu(*shuffled))) == list(folded_lines(profile))


@given(NAMES)
def test_escape_is_exact(name: str) -> None:
    assert unescape_name(escape_name(name)) == name


def test_lines_are_merged_sorted_and_marked() -> None:
    main, kernel = Frame("main"), Frame("read", FrameKind.KERNEL)
    profile = cpu(
        Sample((main, kernel), 2, Task(1, 1, "a")),
        Sample((Frame("main"), Frame("read", FrameKind.KERNEL)), 3, Task(2, 2, "b")),
        Sample((main, Frame("f", FrameKind.INLINE), Frame("g", FrameKind.JIT)), 1),
        Sample((main, Frame("--", FrameKind.SEPARATOR), Frame("h", FrameKind.WAKER)), 1),
    )
    assert list(folded_lines(profile)) == [
        "main;--;h_[w] 1",
        "main;f_[i];g_[j] 1",
        "main;read_[k] 5",
    ]


def test_waits_are_told_from_functions_of_their_names() -> None:
    (line,) = folded_lines(
        cpu(
            Sample(
                (
                    Frame("[run queue]"),
                    Frame("[blocked]", FrameKind.KERNEL),
                    Frame("[blocked]", FrameKind.WAIT),
                    Frame("[partial]", FrameKind.WAIT),
                ),
                1,
            )
        )
    )
    assert line == r"[run queue\x5d;[blocked]_[k];[blocked];[partial] 1"
    (sample,) = read_folded([line], "x").samples
    kinds = [frame.kind.value for frame in sample.stack]
    assert kinds == ["user", "kernel", "wait", "wait"]
    assert sample.stack[0].name == "[run queue]"


def test_a_wait_of_no_known_name_reads_as_a_function() -> None:
    lines = folded_lines(cpu(Sample((Frame("f_[k]", FrameKind.WAIT),), 1)))
    (sample,) = read_folded(lines, "x").samples
    assert sample.stack == (Frame("f_[k]"),)


def test_a_stack_goes_on_in_the_stacks_of_its_wakers() -> None:
    waiter = (Frame("main"), Frame("do_futex", FrameKind.KERNEL))
    names = ("futex_wake", "unlock", "worker", None, "hrtimer_wakeup", "[timer]", None, "[cycle]")
    wakers = tuple(
        Frame("--", FrameKind.SEPARATOR) if name is None else Frame(name, FrameKind.WAKER)
        for name in (None, *names)
    )
    profile = cpu(Sample((*waiter, *wakers), 5))
    assert list(folded_lines(profile)) == [
        "main;do_futex_[k];--;futex_wake_[w];unlock_[w];worker_[w]"
        ";--;hrtimer_wakeup_[w];[timer]_[w];--;[cycle]_[w] 5"
    ]
    assert sums(read_folded(folded_lines(profile), "x")) == sums(profile)


def test_that_a_frame_names_a_process_is_lost() -> None:
    process = Frame("[blocked]", FrameKind.PROCESS)
    wake = Frame("try_to_wake_up", FrameKind.KERNEL)
    (sample,) = read_folded(folded_lines(cpu(Sample((process, wake, process), 1))), "x").samples
    assert sample.stack == (Frame("[blocked]"), wake, Frame("[blocked]"))


def test_sorted_frame_by_frame_so_that_siblings_stay_together() -> None:
    lines = ["main;foo 1", "main;foo(int);x 2", "main;foo;y 3", "main;foo.part.0 4"]
    assert list(folded_lines(read_folded(lines, "x"))) == [
        "main;foo 1",
        "main;foo;y 3",
        "main;foo(int);x 2",
        "main;foo.part.0 4",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a;b", r"a\x3bb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\udcff", r"\udcff"),
        ("C:\\x", r"C:\x5cx"),
        ("", r"\-"),
        ("operator new", "operator new"),
        ("日本", "日本"),
    ],
)
def test_escapes(name: str, text: str) -> None:
    assert escape_name(name) == text


def test_a_foreign_backslash_is_left_alone() -> None:
    assert unescape_name(r"App\x64\Main\u0041") == r"App\x64\Main\u0041"


def test_reader_takes_what_other_tools_write() -> None:
    lines = ["\ufeff# comment", "", "#", "a;b 1\r\n", "a;b\t2\n", "foo 12 \t 34", "#main 5 ", " 6"]
    profile = read_folded(lines, "x", kind="offcpu", unit="ns")
    assert (profile.kind, profile.unit) == ("offcpu", "ns")
    stacks = [([frame.name for frame in s.stack], s.value) for s in profile.samples]
    assert stacks == [(["a", "b"], 1), (["a", "b"], 2), (["foo 12"], 34), (["#main"], 5), ([], 6)]


@pytest.mark.parametrize(
    "line",
    ["no_count", "5", "a;b", "a -1", "a 1.5", "a 1e3", "a ²", "a 1_000", "a +1", f"a {'9' * 5000}"],
)
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(InputError, match=r"^x\.folded: line 2 does not end in a count"):
        read_folded(["a 1", line], "x.folded")


def test_an_error_cannot_drive_the_terminal() -> None:
    with pytest.raises(InputError) as caught:
        read_folded(["\x1b]0;pwned\x07"], "x")
    assert caught.value.message == printable(caught.value.message)


def test_large_counts_and_deep_stacks() -> None:
    deep = ";".join(f"f{n}" for n in range(10_000))
    profile = read_folded([f"{deep} {10**15}"], "x")
    assert profile.total == 10**15
    assert list(folded_lines(profile)) == [f"{deep} {10**15}"]


def test_fit_cuts_by_columns() -> None:
    assert fit("abcdef", 6) == "abcdef"
    assert fit("abcdef", 4) == "abc…"
    assert fit("日本語", 5) == "日本…"
    assert columns("e\u0301") == 1
