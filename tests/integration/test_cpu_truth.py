"""Workloads with a known truth, recorded with real BPF: the profile must tell it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from recording import ROOT, Folded, bpflame, truth

pytestmark = pytest.mark.bpf

SOURCES = ROOT / "samples" / "workloads"
SECONDS = "5"
POINTS = 3.0
"""How far a share may be off, in points, at 5 s and 999 Hz."""


def record(*command: str | Path, options: tuple[str, ...] = ()) -> Folded:
    """Record a command at 999 Hz; it must succeed, and nothing may be lost."""
    result = bpflame("cpu", "-F", "999", *options, "-o", "-", "--", *command)
    assert result.code == 0, result.stderr
    assert "; 0 lost;" in result.audit
    assert "without room" not in result.audit
    return Folded(result.stdout)


@pytest.mark.parametrize("build", ["fp", "nofp"])
def test_three_paths_have_their_shares(workloads: Path, build: str) -> None:
    folded = record(workloads / build / "three_paths", SECONDS)
    assert folded.total > 0.5 * 999 * float(SECONDS)
    if build == "fp":
        for name, share in truth(SOURCES / "three_paths.c").items():
            assert folded.share(name) == pytest.approx(share, abs=POINTS), name
            # The whole path, from the process down, in its order.
            stem = name.removeprefix("path_")
            path = ["three_paths", "main", "take_a_path", name, f"mid_{stem}", f"spin_{stem}"]
            found = [[f for f in stack if f in path] for stack in folded.stacks if name in stack]
            assert path in found
    # The leaf is known also where no frame pointer leads on from it.
    for name, share in truth(SOURCES / "three_paths.c", "leaf").items():
        leaf = sum(n for stack, n in folded.stacks.items() if name in stack) / folded.total * 100
        assert leaf == pytest.approx(share, abs=POINTS), name


def test_cpp_names_are_demangled(workloads: Path) -> None:
    folded = record(workloads / "fp" / "virtual_calls", SECONDS)
    for name, share in truth(SOURCES / "virtual_calls.cpp").items():
        assert folded.share(name) == pytest.approx(share, abs=POINTS), name


def test_threads_are_told_apart(workloads: Path) -> None:
    folded = record(workloads / "fp" / "threads", SECONDS, options=("--by", "tid"))
    for name, share in truth(SOURCES / "threads.c").items():
        assert folded.share(name) == pytest.approx(share, abs=POINTS), name
        # A thread has the name of its process until it takes its own.
        roots = {stack[0].rpartition("/")[2] for stack in folded.stacks if name in stack}
        assert len(roots) == 1, f"{name} ran in one thread, but is under {roots}"
    workers = {root.rpartition("-")[0] for root in folded.roots() if root.startswith("worker")}
    assert workers == {f"worker-{i}" for i in range(4)}


def test_system_calls_show_kernel_frames_under_their_callers(workloads: Path) -> None:
    folded = record(workloads / "fp" / "syscalls", SECONDS)
    in_kernel = sum(n for stack, n in folded.stacks.items() if stack[-1].endswith("_[k]"))
    assert in_kernel / folded.total > 0.3
    reading = [stack for stack in folded.stacks if any("vfs_read" in frame for frame in stack)]
    assert reading
    for stack in reading:
        kernel = [i for i, frame in enumerate(stack) if frame.endswith("_[k]")]
        assert kernel == list(range(kernel[0], len(stack))), "user frames below kernel frames"
    assert any("read_file" in stack for stack in reading)
    assert not any(
        "bpf_prog" in frame and "bpflame" in frame for stack in folded.stacks for frame in stack
    )


def test_python_is_sampled_where_it_burns(tmp_path: Path) -> None:
    folded = record("/usr/bin/python3", SOURCES / "interpreted.py", "3")
    assert folded.roots()["python3"] / folded.total > 0.97
    assert folded.share("_PyEval_EvalFrameDefault") > 5


def test_a_pipeline_shows_each_of_its_processes() -> None:
    folded = record("sh", SOURCES / "pipeline.sh", "4")
    roots = folded.roots()
    assert roots["gzip"] / folded.total > 0.6
    assert roots["tar"] > 0


@pytest.mark.parametrize("build", ["fp", "nofp"])
def test_processes_of_a_few_milliseconds_have_their_names(workloads: Path, build: str) -> None:
    folded = record(workloads / build / "fork_storm", "4")
    expected = truth(SOURCES / "fork_storm.c")["short_lived_work"]
    children = {stack: n for stack, n in folded.stacks.items() if len(stack) > 1}
    named = sum(n for stack, n in children.items() if "short_lived_work" in stack)
    in_user = sum(n for stack, n in children.items() if not stack[-1].endswith("_[k]"))
    assert named / in_user > 0.95, f"{named} of {in_user}, the truth is {expected} %"
    assert folded.share("[unknown]") == 0, "samples of a process whose mappings were not kept"


def test_one_pid_with_two_programs_has_the_names_of_both(workloads: Path) -> None:
    """Both are mapped at the same addresses: only the time tells them apart."""
    folded = record(workloads / "fp" / "exec_chain_a", SECONDS)
    for name, share in truth(SOURCES / "exec_chain.c").items():
        assert folded.share(name) == pytest.approx(share, abs=POINTS), name


def test_hostile_names_break_neither_format(workloads: Path, tmp_path: Path) -> None:
    command = workloads / "fp" / "hostile"
    folded = record(command, "3")
    for name in truth(SOURCES / "hostile.c"):
        assert folded.share(name) > 5, name
    picture = tmp_path / "hostile.svg"
    result = bpflame("cpu", "-F", "999", "-o", picture, "--", command, "2")
    assert result.code == 0
    tree = ET.parse(picture)
    names = "".join(tree.getroot().itertext())
    assert "<script>alert(1)</script>" in names
    scripts = tree.getroot().findall(".//{http://www.w3.org/2000/svg}script")
    assert len(scripts) == 1
    assert "alert(1)" not in (scripts[0].text or "")
    assert "\x1b" not in result.stderr
