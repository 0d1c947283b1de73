"""Whom `bpflame cpu` samples: processes, threads, names, control groups, CPUs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recording import Folded, Running, bpflame

from bpflame.profilers.target import cgroup_mount

pytestmark = pytest.mark.bpf


@contextmanager
def background(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def folded(*arguments: str | Path) -> Folded:
    result = bpflame("cpu", "-F", "499", "-d", "2", "-o", "-", *arguments)
    assert result.code == 0, result.stderr
    return Folded(result.stdout)


def test_a_process_and_nothing_else(workloads: Path) -> None:
    with (
        background(workloads / "fp" / "three_paths", "60") as mine,
        background(workloads / "fp" / "syscalls", "60"),
    ):
        seen = folded("-p", str(mine.pid))
    assert set(seen.roots()) == {"three_paths"}
    assert seen.share("spin_sixty") > 45
    assert seen.total > 200


def test_children_of_a_process_on_request(workloads: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"read x <{gate}; {workloads / 'fp' / 'three_paths'} 2; read x <{gate}"
    with background("sh", "-c", script) as shell:
        common = ("cpu", "-p", str(shell.pid), "-d", "5", "-F", "499", "-o", "-")
        both = Running(*common, "--children")
        alone = Running(*common)
        gate.write_text("go\n")  # now that both sample
        outputs = [running.process.communicate(timeout=60)[0] for running in (both, alone)]
    assert Folded(outputs[0].decode()).share("spin_sixty", of="three_paths") > 45
    assert "three_paths" not in Folded(outputs[1].decode()).roots()


def test_one_thread(workloads: Path) -> None:
    with background(workloads / "fp" / "threads", "60") as process:
        tasks = Path(f"/proc/{process.pid}/task")
        worker = next(
            int(task.name)
            for _ in range(100_000)
            for task in tasks.iterdir()
            if (task / "comm").read_text() == "worker-0\n"
        )
        seen = folded("-t", str(worker), "--by", "tid")
    assert set(seen.roots()) == {f"worker-0-{process.pid}/{worker}"}
    assert seen.share("work_forty") > 90


def test_threads_by_name(workloads: Path) -> None:
    with (
        background(workloads / "fp" / "threads", "60"),
        background(workloads / "fp" / "three_paths", "60"),
    ):
        seen = folded("-n", "^worker-[12]$")
    assert set(seen.roots()) == {"worker-1", "worker-2"}


def test_a_control_group(workloads: Path) -> None:
    mount = cgroup_mount()
    assert mount is not None, "this machine has no version 2 control groups"
    group = mount / f"bpflame-test-{os.getpid()}"
    inner = group / "inner"
    inner.mkdir(parents=True)
    try:
        with (
            background(workloads / "fp" / "three_paths", "60") as mine,
            background(workloads / "fp" / "syscalls", "60"),
        ):
            (inner / "cgroup.procs").write_text(str(mine.pid))
            seen = folded("--cgroup", group.name, "--by", "cgroup")
    finally:
        inner.rmdir()
        group.rmdir()
    assert {stack[:2] for stack in seen.stacks} == {(f"/{group.name}/inner", "three_paths")}


def test_a_cpu(workloads: Path) -> None:
    with (
        background("taskset", "-c", "0", workloads / "fp" / "three_paths", "60"),
        background("taskset", "-c", "1", workloads / "fp" / "syscalls", "60"),
    ):
        seen = folded("-C", "1", "-n", "^(three_paths|syscalls)$")
    assert set(seen.roots()) == {"syscalls"}


def test_the_whole_system_and_its_idle_time(workloads: Path) -> None:
    with background(workloads / "fp" / "three_paths", "60") as mine:
        seen = folded("-n", "^(three_paths|swapper/.*)$", "--by", "pid")
    assert set(seen.roots()) == {f"three_paths-{mine.pid}"}
    for _ in range(5):  # until a moment when the machine is not busy
        idle = folded("-I", "-n", "^swapper/", "--by", "pid")
        if idle.stacks:
            break
    assert all(root.startswith("swapper/") and root.endswith("-0") for root in idle.roots())
    assert idle.stacks


@pytest.mark.parametrize(("option", "kernel"), [("-U", False), ("-K", True)])
def test_one_kind_of_stacks(workloads: Path, option: str, kernel: bool) -> None:
    result = bpflame(
        "cpu", "-F", "999", option, "-o", "-", "--", workloads / "fp" / "syscalls", "2"
    )
    frames = {frame for stack in Folded(result.stdout).stacks for frame in stack[1:]}
    assert frames
    assert all(frame.endswith("_[k]") == kernel for frame in frames)


def test_a_summary_for_machines(workloads: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out.folded"
    command = [str(workloads / "fp" / "three_paths"), "1"]
    result = bpflame("cpu", "-F", "499", "--json", "-o", picture, "--", *command)
    summary = json.loads(result.stdout)
    assert summary["schema"] == 1
    assert summary["output"] == str(picture)
    assert summary["target"] == " ".join(command)
    assert summary["counters"]["lost_samples"] == 0
    assert summary["total"] == Folded(picture.read_text()).total
    assert summary["total"] == summary["counters"]["samples"]
    assert summary["exit_code"] == 0


def test_a_recording_is_drawn_in_many_ways(workloads: Path, tmp_path: Path) -> None:
    recording = tmp_path / "run.bpflame"
    result = bpflame("cpu", "-F", "499", "-o", recording, "--", workloads / "fp" / "threads", "2")
    assert result.code == 0
    assert recording.stat().st_mode & 0o777 == 0o600
    by_name = Folded(bpflame("render", recording, "-o", "-").stdout)
    by_thread = Folded(bpflame("render", recording, "--by", "tid", "-o", "-").stdout)
    assert "worker-0" in by_name.roots()
    assert by_name.total == by_thread.total
    assert all("/" in root for root in by_thread.roots())
    picture = tmp_path / "run.svg"
    assert bpflame("render", recording, "-o", picture, "--title", "A & B").code == 0
    assert "A &amp; B" in picture.read_text()
