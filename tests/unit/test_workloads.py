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
PROGRAMS = (*VERIFIED, "exec_chain", "exec_chain_a", "exec_chain_b", "fork_storm", "many_stacks")
WITH_TRUTH = (
    "exec_chain.c",
    "fork_storm.c",
    "hostile.c",
    "interpreted.py",
    "many_stacks.c",
    "pipeline.sh",
    "syscalls.c",
    "three_paths.c",
    "threads.c",
    "virtual_calls.cpp",
)
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
    assert programs == set(WITH_TRUTH)


@pytest.mark.parametrize("source", WITH_TRUTH)
def test_truth_can_be_read_and_adds_up(source: str) -> None:
    truth = header_line(source, "truth")
    tolerance = header_line(source, "tolerance")

    assert truth is not None
    assert tolerance is not None
    assert sum(shares(truth).values()) == PARTIAL.get(source, 100)
    assert 0 < int(tolerance) <= 7
    for key in ("leaf", "python"):
        line = header_line(source, key)
        assert line is None or sum(shares(line).values()) == 100


def test_build_makes_every_program_once(build: Path) -> None:
    for kind in KINDS:
        assert {p.name for p in (build / kind).iterdir()} == set(PROGRAMS)
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
    for kind in KINDS:
        listed = [run("nm", "-C", build / kind / program).stdout for program in programs]
        names = {line.split(" ", 2)[-1] for text in listed for line in text.splitlines()}
        assert wanted.keys() <= names


@pytest.mark.parametrize("name", ["exec_chain", "exec_chain_a", "fork_storm", "three_paths"])
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
