"""The workloads build, end, and do what their headers claim: other tests rely on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "samples" / "workloads"
KINDS = ("fp", "nofp")
VERIFIED = ("hostile", "syscalls", "three_paths", "threads", "virtual_calls")
WAITING = (
    "busy_pair",
    "conserve",
    "convoy",
    "direct_read",
    "pipe_chain",
    "self_timer",
    "sleeper",
    "thread_life",
)
DEEP = ("deep", "deep_static", "deep_static_pie")
PROGRAMS = (
    *VERIFIED,
    *WAITING,
    *DEEP,
    "callbacks",
    "exec_chain",
    "exec_chain_a",
    "exec_chain_b",
    "fork_burn",
    "fork_storm",
    "late_library",
    "many_stacks",
    "odd_frames",
    "throwing",
)
LIBRARIES = {
    "late_library.c": ("liblate_first.so", "liblate_second.so"),
    "odd_frames.c": ("libodd_frames.so",),
}
IN_WORDS = ("conserve.c", "thread_life.c")
"""Their truth is a sentence."""
WITH_TRUTH = (
    "busy_pair.c",
    "convoy.c",
    "direct_read.c",
    "exec_chain.c",
    "fork_storm.c",
    "hostile.c",
    "interpreted.py",
    "many_stacks.c",
    "pipe_chain.c",
    "pipeline.sh",
    "self_timer.c",
    "sleeper.c",
    "syscalls.c",
    "three_paths.c",
    "threads.c",
    "virtual_calls.cpp",
)
WITH_STACKS = (
    "callbacks.c",
    "deep.c",
    "fork_burn.c",
    "late_library.c",
    "odd_frames.c",
    "throwing.cpp",
)
"""Their headers promise stacks, not shares."""
PARTIAL = {"fork_storm.c": 98, "pipeline.sh": 98}
"""Sums of truths that leave a rest which has no name of its own."""


def header_line(source: str, key: str) -> str | None:
    """The rest of the one line ``key: ...`` in the first 40 lines of a workload."""
    head = (SOURCES / source).read_text(encoding="utf-8").splitlines()[:40]
    found = [m[1] for line in head if (m := re.fullmatch(rf"(?: \* |# )?{key}: (.+)", line))]
    assert len(found) <= 1
    return found[0] if found else None


def shares(line: str) -> dict[str, int]:
    pairs = [word.rpartition("=") for word in line.split()]
    return {name: int(percent) for name, _, percent in pairs}


def promised(source: str) -> list[list[str]]:
    """The stacks of the lines ``stack: main -> ... -> leaf`` of a workload."""
    head = (SOURCES / source).read_text(encoding="utf-8").splitlines()[:40]
    lines = [line.removeprefix(" * stack: ") for line in head if line.startswith(" * stack: ")]
    return [line.split(" -> ") for line in lines]


def make(build: Path, *options: str) -> str:
    command = ["make", "-C", str(SOURCES), f"BUILD={build}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def run(*command: str | Path, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("workloads")
    make(target, f"-j{os.cpu_count() or 1}")
    return target


def symbols(program: Path) -> dict[str, int]:
    lines = run("nm", "--defined-only", program).stdout.splitlines()
    fields = [line.split(" ", 2) for line in lines]
    return {name: int(address, 16) for address, _, name in fields}


def test_every_workload_is_listed_here() -> None:
    programs = {p.name for p in SOURCES.iterdir() if p.suffix in {".c", ".cpp", ".py", ".sh"}}
    assert programs == {*WITH_TRUTH, *IN_WORDS, *WITH_STACKS}


@pytest.mark.parametrize("source", WITH_TRUTH)
def test_truth_can_be_read_and_adds_up(source: str) -> None:
    truth = header_line(source, "truth")
    tolerance = header_line(source, "tolerance")

    assert truth is not None
    assert tolerance is not None
    assert sum(shares(truth).values()) == PARTIAL.get(source, 100)
    assert 0 < int(tolerance) <= 7
    for key in ("leaf", "python", "waker"):
        line = header_line(source, key)
        assert line is None or sum(shares(line).values()) == 100


@pytest.mark.parametrize("source", IN_WORDS)
def test_truth_in_words_is_there(source: str) -> None:
    truth = header_line(source, "truth")

    assert truth is not None
    assert "=" not in truth
    assert header_line(source, "tolerance") == "1"


def test_build_makes_every_program_once(build: Path) -> None:
    for kind in KINDS:
        libraries = {name for names in LIBRARIES.values() for name in names}
        assert {p.name for p in (build / kind).iterdir()} == {*PROGRAMS, *libraries}
    assert "gcc" not in make(build)


def test_build_is_reproducible(build: Path, tmp_path: Path) -> None:
    make(tmp_path, f"{tmp_path}/fp/three_paths", f"{tmp_path}/fp/hostile")
    for name in ("three_paths", "hostile"):
        assert (tmp_path / "fp" / name).read_bytes() == (build / "fp" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VERIFIED)
def test_shares_of_cpu_time_are_true(build: Path, kind: str, name: str) -> None:
    done = run(build / kind / name, "0.2", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VERIFIED)
def test_verify_measures_what_the_truth_names(build: Path, name: str) -> None:
    source = next(source for source in WITH_TRUTH if source.startswith(f"{name}."))
    truth = shares(header_line(source, "truth") or "")
    done = run(build / "fp" / name, "0.1", "--verify")
    measured = [line.rpartition("=") for line in done.stdout.splitlines()]

    assert [round(float(percent), -1) for _, _, percent in measured] == list(truth.values())
    if name != "hostile":
        assert [label for label, _, _ in measured] == list(truth)


@pytest.mark.parametrize("source", [s for s in WITH_TRUTH if s.endswith((".c", ".cpp"))])
def test_named_functions_are_in_the_symbol_table(build: Path, source: str) -> None:
    programs = [source.partition(".")[0]]
    if source == "exec_chain.c":
        programs += ["exec_chain_a", "exec_chain_b"]
    wanted = {**shares(header_line(source, "truth") or "")}
    wanted |= shares(header_line(source, "leaf") or "")
    wanted |= shares(header_line(source, "waker") or "")
    wanted |= dict.fromkeys((header_line(source, "chain") or "").split(), 0)
    wanted.pop("[timer]", None)
    for kind in KINDS:
        listed = [run("nm", "-C", build / kind / program).stdout for program in programs]
        names = {line.split(" ", 2)[-1] for text in listed for line in text.splitlines()}
        assert wanted.keys() <= names


@pytest.mark.parametrize("source", WITH_STACKS)
def test_promised_functions_are_in_the_symbol_tables(build: Path, source: str) -> None:
    stacks = promised(source)
    files = (source.partition(".")[0], *LIBRARIES.get(source, ()))

    assert stacks
    assert all(stack[0] in {"main", "run_thread", "run_thread(int)"} for stack in stacks)
    for kind in KINDS:
        listed = [run("nm", "-C", build / kind / file).stdout for file in files]
        names = {line.split(" ", 2)[-1] for text in listed for line in text.splitlines()}
        assert {name for stack in stacks for name in stack} <= names


@pytest.mark.parametrize("what", ["spin", "nanosleep", "futex", "read", "poll", "mixed"])
def test_deep_does_it_at_the_bottom_of_many_threads(build: Path, what: str) -> None:
    for name, bytes_ in zip(DEEP, ("16", "9000", "100"), strict=True):
        start = time.monotonic()
        done = run(
            build / "nofp" / name, "0.2", "100", what, bytes_, "1" if what == "spin" else "9"
        )
        took = time.monotonic() - start
        assert (done.returncode, done.stderr) == (0, "")
        assert 0.15 < took < 0.2 * 3 + 1


def test_deep_refuses_what_it_cannot_do(build: Path) -> None:
    for arguments in [("0",), ("9", "dance"), ("9", "spin", "16", "1001")]:
        assert run(build / "fp" / "deep", "0.1", *arguments).returncode == 2


@pytest.mark.parametrize(
    "name",
    [
        *("callbacks", "deep", "exec_chain", "exec_chain_a", "fork_burn", "fork_storm"),
        *("late_library", "odd_frames", "three_paths", "throwing"),
    ],
)
def test_ends_on_time(build: Path, name: str) -> None:
    start = time.monotonic()
    done = run(build / "nofp" / name, "0.3")
    took = time.monotonic() - start

    assert done.returncode == 0, done.stderr
    assert 0.25 < took < 0.3 * 3 + 1


def test_scripts_end_on_time(tmp_path: Path) -> None:
    start = time.monotonic()
    interpreted = run(sys.executable, SOURCES / "interpreted.py", "0.3")
    pipeline = run("env", f"TMPDIR={tmp_path}", "sh", SOURCES / "pipeline.sh", "1")

    assert (interpreted.returncode, interpreted.stderr) == (0, "")
    assert (pipeline.returncode, pipeline.stderr) == (0, "")
    assert time.monotonic() - start < 15
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_fork_storm_reaps_every_child(build: Path, kind: str) -> None:
    done = run(build / kind / "fork_storm", "0.3", "100", "2")
    counts = shares(done.stdout)

    assert counts["started"] >= 4
    assert counts["reaped"] == counts["started"]
    assert counts["failed"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_exec_chain_pair_shares_an_address(build: Path, kind: str) -> None:
    before = symbols(build / kind / "exec_chain_a")
    after = symbols(build / kind / "exec_chain_b")

    assert before["before_exec"] == after["after_exec"]
    assert "after_exec" not in before
    assert "before_exec" not in after


@pytest.mark.parametrize("name", PROGRAMS)
def test_wrong_seconds_are_refused(build: Path, name: str) -> None:
    done = run(build / "fp" / name, "soon")
    assert done.returncode == 2
    assert "soon" in done.stderr


def told(printed: str) -> dict[str, dict[str, int]]:
    """What lines ``NAME key=number ...`` say."""
    lines = [line.partition(" ") for line in printed.splitlines()]
    assert len({name for name, _, _ in lines}) == len(lines)
    return {name: shares(rest) for name, _, rest in lines}


def measured(program: Path, *arguments: str | Path) -> dict[str, dict[str, int]]:
    """Run a workload for 0.3 seconds: what it prints about its waits."""
    start = time.monotonic()
    done = run(program, "0.3", *arguments)
    took = time.monotonic() - start

    assert (done.returncode, done.stderr) == (0, "")
    assert 0.25 < took < 0.3 * 3 + 1
    return told(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("program", "lengths"),
    [
        ("sleeper", {"sleep_long": 100, "sleep_middle": 40, "sleep_short": 10}),
        ("self_timer", {"wait_timerfd": 10, "wait_nanosleep": 10, "wait_signal": 10}),
    ],
)
def test_sleeps_have_their_shares(
    build: Path, kind: str, program: str, lengths: dict[str, int]
) -> None:
    sleeps = measured(build / kind / program)
    truth = shares(header_line(f"{program}.c", "truth") or "")
    wanted = {name: lengths[name] * values["waits"] for name, values in sleeps.items()}

    assert {name: 100 * ms // sum(wanted.values()) for name, ms in wanted.items()} == truth
    for name, values in sleeps.items():
        assert 0.5 < values["ns"] / (wanted[name] * 1e6) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_convoy_waits_for_its_mutex(build: Path, kind: str) -> None:
    threads = measured(build / kind / "convoy")

    assert list(threads) == ["convoy-0", "convoy-1", "convoy-2"]
    for values in threads.values():
        assert values["waits"] > 0
        assert values["ns"] < 2e9
    assert sum(values["ns"] for values in threads.values()) > 0.1e9


@pytest.mark.parametrize("kind", KINDS)
def test_pipe_chain_hands_every_token_on(build: Path, kind: str) -> None:
    processes = measured(build / kind / "pipe_chain")

    assert processes.keys() == {"a_waits", "b_waits", "c_waits", "d_waits"}
    assert len({values["waits"] for values in processes.values()}) == 1
    assert processes["d_waits"]["waits"] >= 3
    assert all(0.1e9 < values["ns"] < 2e9 for values in processes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_busy_pair_shares_a_cpu(build: Path, kind: str) -> None:
    processes = measured(build / kind / "busy_pair", str(max(os.sched_getaffinity(0))))

    assert processes.keys() == {"busy-A", "busy-B"}
    for values in processes.values():
        assert 0 < values["cpu_ns"] < 0.9 * values["wall_ns"]
        assert values["wall_ns"] < 2e9


@pytest.mark.parametrize("cpu", ["one", "-1", "100000"])
def test_busy_pair_refuses_a_wrong_cpu(build: Path, cpu: str) -> None:
    done = run(build / "fp" / "busy_pair", "0.1", cpu)
    assert done.returncode == 2
    assert cpu in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_conserve_has_two_times_of_each_thread(build: Path, kind: str) -> None:
    threads = measured(build / kind / "conserve")

    assert threads.pop("stolen")["ns"] >= 0
    assert list(threads) == [f"conserve-{i}" for i in range(4)]
    for values in threads.values():
        assert 0 < values["cpu_ns"] < values["wall_ns"]
        assert 0.2e9 < values["wall_ns"] < 2e9


@pytest.mark.parametrize("kind", KINDS)
def test_direct_read_reads_a_disk(build: Path, kind: str) -> None:
    file = build / "disk"
    file.write_bytes(os.urandom(1 << 20))
    program = build / kind / "direct_read"
    if run(program, "0.1", file).returncode == 3:
        return  # no disk: the refusal is what it should say
    reads = measured(program, file)["read_block"]

    assert reads["waits"] > 0
    assert 0 < reads["ns"] < 2e9


def test_direct_read_says_what_it_cannot_read(build: Path, tmp_path: Path) -> None:
    program = build / "fp" / "direct_read"
    refused = run(program, "0.1", "/proc/version")
    (tmp_path / "small").write_bytes(b"few")

    assert refused.returncode == 3
    assert "O_DIRECT" in refused.stderr
    for arguments in [(), ("0.1", tmp_path / "small"), ("0.1", tmp_path / "absent")]:
        assert run(program, *arguments).returncode in {2, 3}
    assert run(program, "soon", "/proc/version").returncode == 2


@pytest.mark.parametrize("kind", KINDS)
def test_thread_life_sees_every_end(build: Path, kind: str) -> None:
    lives = measured(build / kind / "thread_life")
    rounds = lives["life-thread"]["lives"]

    assert lives.pop("failed") == {"lives": 0}
    assert lives.pop("reused")["ids"] >= 0
    assert {name: values["lives"] for name, values in lives.items()} == {
        "life-child": 8 * rounds,
        "life-killed": rounds,
        "life-executes": rounds,
        "life-thread": rounds,
    }
    assert all(1e6 < values["ns"] / values["lives"] < 2e9 for values in lives.values())
