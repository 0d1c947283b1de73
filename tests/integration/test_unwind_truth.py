"""Workloads with known stacks and no frame pointers: unwound by tables, they must be whole."""

from __future__ import annotations

import platform
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from recording import Folded, bpflame
from unwinding import (
    SOURCES,
    WHOLE,
    Unwound,
    background,
    in_order,
    is_truncated,
    promised,
    record,
    together,
)

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="tables are of x86-64"),
]

SOURCES_OF_STACKS = (
    "callbacks.c",
    "fork_burn.c",
    "late_library.c",
    "odd_frames.c",
    "throwing.cpp",
)


@pytest.fixture(scope="module")
def nofp(workloads: Path) -> Path:
    """The workloads without frame pointers, also those with the C library musl."""
    subprocess.run(["make", "-s", "-C", SOURCES, "musl"], check=True, stdout=subprocess.DEVNULL)
    return workloads / "nofp"


def depths(unwound: Unwound, leaf: str, comm: str = "deep") -> Counter[int]:
    """How many samples have how many calls of ``descend`` below a function."""
    found: Counter[int] = Counter()
    for stack, n in unwound.folded.stacks.items():
        if stack[0] == comm and leaf in stack:
            found[stack.count("descend")] += n
    return found


def are_exactly(found: Counter[int], expected: set[int]) -> None:
    """Hold depths to be these and no others, but for one sample in two hundred."""
    print(dict(found))
    assert expected <= found.keys()
    wrong = sum(n for depth, n in found.items() if depth not in expected)
    assert wrong <= 0.005 * sum(found.values()), found


@pytest.mark.parametrize("source", SOURCES_OF_STACKS)
def test_stacks_are_as_promised(nofp: Path, tmp_path: Path, source: str) -> None:
    program = source.partition(".")[0]
    unwound = record("cpu", tmp_path, "--", nofp / program, "4")
    unwound.is_whole()
    # What a process does first is copied, which cannot take all of a stack. And where a library
    # was and another is, the table is the old one until the recorder has been woken.
    unwound.keeps(promised(source), whole=97)
    if source != "late_library.c":
        unwound.starts_at("_start", program)
    unwound.agrees_with_its_counters()


def test_a_wait_for_a_child_of_vfork(nofp: Path, tmp_path: Path) -> None:
    """The return address is in a register there, since the child uses the same stack."""
    unwound = record("offcpu", tmp_path, "--", nofp / "odd_frames", "1")
    unwound.keeps(promised("odd_frames.c", "wait"), least=1)
    waits = unwound.weight(lambda stack: "__vfork" in stack)
    assert waits > 0
    assert not unwound.weight(lambda stack: is_truncated(stack) and "__vfork" in stack)
    every = unwound.weight(lambda _: True, "odd_frames")
    assert unwound.weight(is_truncated) <= 0.02 * every, unwound.worst(is_truncated)


def test_a_deep_stack_has_each_of_its_frames(nofp: Path, tmp_path: Path) -> None:
    runs = [f"{nofp / 'deep'} 2 {depth} spin" for depth in (10, 30, 100, 300)]
    unwound = record("cpu", tmp_path, "--max-depth", "511", "--", *together(*runs))
    unwound.is_whole()
    unwound.starts_at("_start", "deep")
    are_exactly(depths(unwound, "spin_here"), {10, 30, 100, 300})


def test_frames_may_be_large(nofp: Path, tmp_path: Path) -> None:
    """Five thousand bytes each: more than is copied until the tables are there, some 50 ms."""
    with (
        background(nofp / "deep", "60", "50", "spin", "5000") as one,
        background(nofp / "deep", "60", "250", "spin", "5000") as other,
    ):
        pids = f"{one.pid},{other.pid}"
        unwound = record("cpu", tmp_path, "--max-depth", "511", "-d", "3", "-p", pids)
    unwound.is_whole(percent=93)
    found = depths(unwound, "spin_here")
    print(dict(found))
    assert found[50] + found[250] >= 0.93 * unwound.folded.total


@pytest.mark.parametrize("question", ["cpu", "offcpu"])
def test_a_stack_that_is_deeper_than_asked_for_says_so(
    nofp: Path, tmp_path: Path, question: str
) -> None:
    what = "spin" if question == "cpu" else "nanosleep"
    runs = [f"{nofp / 'deep'} 1 {depth} {what}" for depth in (20, 300)]
    unwound = record(question, tmp_path, "--max-depth", "64", "--", *together(*runs))
    cut = unwound.truncated()
    too_deep = cut["[truncated: too deep]"]
    assert unwound.counters["truncated: too deep"] == too_deep
    assert cut.total() - too_deep <= 0.005 * unwound.folded.total, cut
    found = depths(unwound, f"{what}_here")
    shallow = found.pop(20)
    assert shallow > 0
    # The frames at the leaf are those that are kept: 64, with some of the C library.
    assert found
    assert all(58 <= depth <= 63 for depth in found), found
    assert sum(found.values()) == pytest.approx(too_deep, rel=0.02)


def test_waits_of_many_threads_have_all_their_frames(nofp: Path, tmp_path: Path) -> None:
    """In calls of the C library, which has no frame pointers either."""
    unwound = record("offcpu", tmp_path, "--", nofp / "deep", "1", "20", "mixed", "16", "8")
    unwound.is_whole("deep")
    unwound.agrees_with_its_counters()
    for nth, what in enumerate(["nanosleep", "futex", "read", "poll"]):
        are_exactly(depths(unwound, f"{what}_here"), {20 + nth, 24 + nth})
    threads = [("run_thread", "descend", f"{what}_here") for what in ("futex", "read", "poll")]
    unwound.keeps(threads)
    unwound.starts_at("_start", "deep")


@pytest.mark.parametrize("kind", ["static", "static_pie"])
def test_other_ways_to_link(nofp: Path, tmp_path: Path, kind: str) -> None:
    program = f"deep_{kind}"
    comm = program[:15]
    unwound = record("cpu", tmp_path, "--", nofp / program, "1", "40", "spin")
    unwound.is_whole(comm)
    unwound.keeps([("main", "descend", "spin_here")], least=80)
    are_exactly(depths(unwound, "spin_here", comm), {40})


@pytest.mark.parametrize("kind", ["musl", "musl_static"])
def test_where_the_c_library_has_no_tables_stacks_say_so(
    nofp: Path, tmp_path: Path, kind: str
) -> None:
    """All of the program is there; the frames of musl that started it are not to be had."""
    comm = f"deep_{kind}"[:15]
    unwound = record("cpu", tmp_path, "--", nofp / f"deep_{kind}", "1", "40", "spin")
    unwound.keeps([("main", "descend", "spin_here")], least=80)
    are_exactly(depths(unwound, "spin_here", comm), {40})
    for stack in unwound.folded.stacks:
        if "main" in stack:
            assert is_truncated(stack), stack
            assert stack.index("main") <= 3, stack


def test_frame_pointers_are_still_to_be_had(nofp: Path, workloads: Path) -> None:
    """They show all of a stack where they are kept, and next to nothing where they are not."""
    for folder, whole in ((nofp, False), (workloads / "fp", True)):
        command = (folder / "deep", "1", "30", "spin")
        result = bpflame("cpu", "-F", "999", "--unwind", "fp", "-o", "-", "--", *command)
        assert result.code == 0, result.stderr
        folded = Folded(result.stdout)
        assert "[truncated" not in result.stdout
        found = [stack for stack in folded.stacks if "spin_here" in stack]
        assert found
        assert any(stack.count("descend") == 30 for stack in found) == whole


def test_tables_are_what_is_taken_unasked(nofp: Path) -> None:
    command = (nofp / "deep", "1", "30", "spin")
    result = bpflame("cpu", "-F", "999", "-o", "-", "--", *command)
    assert result.code == 0, result.stderr
    folded = Folded(result.stdout)
    n = sum(n for stack, n in folded.stacks.items() if stack.count("descend") == 30)
    assert n > 0.9 * folded.total


def test_a_thread_of_another_language_is_whole(tmp_path: Path) -> None:
    """Rust and Go as the distribution builds them: stripped, Go without any table."""
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog 12345\n" * 200_000)
    lines = "".join(f"if [ $x -gt {i} ]; then echo $((x * {i})); fi\n" for i in range(300_000))
    (tmp_path / "script").write_text(lines)
    pattern = "([a-z]+ ){3,9}[a-z]*[0-9]+x"  # found nowhere, and without a table of states: slowly
    command = together(
        f"rg --no-mmap --dfa-size-limit 1 '{pattern}' {tmp_path}/text",
        f"shfmt {tmp_path}/script >/dev/null",
    )
    unwound = record("cpu", tmp_path, "--", *command)
    for comm in ("rg", "shfmt"):
        n = unwound.weight(lambda _: True, comm)
        assert n > 200, f"{comm} did not burn enough: {n}"
        # Go's functions go from one stack to another, of which a copy has one.
        unwound.is_whole(comm, WHOLE if comm == "rg" else 97)


def test_the_same_stack_is_not_told_twice(nofp: Path, tmp_path: Path) -> None:
    """A stack that is walked in the kernel and one that is walked later are one in the end."""
    unwound = record("cpu", tmp_path, "--", nofp / "three_paths", "2")
    unwound.is_whole()
    paths = [
        ("main", "take_a_path", f"path_{name}", f"mid_{name}", f"spin_{name}")
        for name in ("sixty", "thirty", "ten")
    ]
    unwound.keeps(paths, least=5)
    for path in paths:
        user = {
            tuple(frame for frame in stack if not frame.endswith("_[k]"))
            for stack in unwound.folded.stacks
            if in_order(stack, path)
        }
        assert len(user) == 1, user
