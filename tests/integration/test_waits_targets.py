"""Whose waits are recorded, and in which shape: targets, kinds of threads and stacks, outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from recording import Folded, Running, bpflame

from bpflame.profilers.target import cgroup_mount

pytestmark = pytest.mark.bpf

SECOND = 1e9
QUESTIONS = ("offcpu", "wakeup", "offwake", "chain")
OF_WAITERS = ("offcpu", "offwake", "chain")
"""Where the root is who waits; for ``wakeup`` it is who wakes."""
WAITS = ("[blocked]", "[run queue]", "[preempted]", "[partial]")
# Three threads that sleep most of the time.
NAPS = """
import ctypes, threading, time
def nap(number):
    ctypes.CDLL(None).prctl(15, b"nap-%d" % number)
    while True:
        time.sleep(0.01)
for number in range(3):
    threading.Thread(target=nap, args=(number,)).start()
"""


@contextmanager
def background(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_asleep(pid: int) -> None:
    """Until the process has started, and its first thread waits for something."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)


def recorded(question: str, *arguments: str | Path) -> Folded:
    result = bpflame(question, "-o", "-", *arguments)
    assert result.code == 0, result.stderr
    assert " 0 lost" in result.stderr
    return Folded(result.stdout)


def leaves(seen: Folded) -> set[str]:
    return {stack[-1] for stack in seen.stacks}


def known(names: Iterable[str]) -> set[str]:
    """Without that of a wakeup nobody saw: there are kernels that now and then do not tell."""
    return {name for name in names if not name.startswith("[unknown waker]")}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_process_and_nothing_else(workloads: Path, question: str) -> None:
    """Of two of the same name: what is there is the time of one."""
    sleeper = workloads / "fp" / "sleeper"
    with background(sleeper, "60") as mine, background(sleeper, "60"):
        until_asleep(mine.pid)
        seen = recorded(question, "-d", "1", "-p", str(mine.pid), "--by", "pid")
    if question == "wakeup":
        assert known(seen.roots()) == {"[timer]"}
        assert leaves(seen) == {"sleeper"}
    else:
        assert set(seen.roots()) == {f"sleeper-{mine.pid}"}
    assert 0.7 * SECOND < seen.total < 1.2 * SECOND


@pytest.mark.parametrize("question", ["offcpu", "wakeup", "chain"])
def test_one_thread(workloads: Path, question: str) -> None:
    with background(workloads / "fp" / "convoy", "60") as process:
        until_asleep(process.pid)
        worker = next(
            int(task.name)
            for task in Path(f"/proc/{process.pid}/task").iterdir()
            if (task / "comm").read_text() == "convoy-1\n"
        )
        seen = recorded(question, "-d", "1", "-t", str(worker), "--by", "tid")
    if question == "wakeup":
        assert leaves(seen) == {"convoy-1"}
        assert {root.partition("/")[0] for root in known(seen.roots())} == {
            f"convoy-{i}-{process.pid}" for i in (0, 2)
        }
    else:
        assert set(seen.roots()) == {f"convoy-1-{process.pid}/{worker}"}
        assert seen.share("acquire") > 5
    assert 0.1 * SECOND < seen.total < 1.2 * SECOND


@pytest.mark.parametrize("question", ["offcpu", "wakeup"])
def test_threads_by_name(question: str) -> None:
    with background(sys.executable, "-c", NAPS) as process:
        until_asleep(process.pid)
        seen = recorded(question, "-d", "1", "-n", "^nap-[12]$")
    who = leaves(seen) if question == "wakeup" else set(seen.roots())
    assert who == {"nap-1", "nap-2"}


def account_by_name(workloads: Path) -> dict[str, Any]:
    with background(workloads / "fp" / "sleeper", "60") as process:
        until_asleep(process.pid)
        result = bpflame("offcpu", "-d", "1", "-n", "^sleeper$", "--json", "-o", os.devnull)
    assert result.code == 0, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_by_name_the_doubts_are_about_the_threads_of_that_name(workloads: Path) -> None:
    summary = account_by_name(workloads)
    assert summary["counters"]["partial_ns"] <= summary["total"]


@pytest.mark.xfail(reason="the waits of others are in the counters, though not in the profile")
def test_by_name_the_waits_of_threads_of_other_names_are_not_counted(workloads: Path) -> None:
    counters = account_by_name(workloads)["counters"]
    assert counters["unfinished_waits"] <= 1
    assert counters["samples"] < 100


@contextmanager
def control_group() -> Iterator[Path]:
    """A version 2 group in a group."""
    mount = cgroup_mount()
    assert mount is not None, "this machine has no version 2 control groups"
    group = mount / f"bpflame-test-{os.getpid()}"
    inner = group / "inner"
    inner.mkdir(parents=True)
    try:
        yield inner
    finally:
        inner.rmdir()
        group.rmdir()


@pytest.mark.parametrize("question", ["offcpu", "wakeup", "chain"])
def test_a_control_group(workloads: Path, question: str) -> None:
    sleeper = workloads / "fp" / "sleeper"
    with control_group() as group, background(sleeper, "60") as mine, background(sleeper, "60"):
        until_asleep(mine.pid)
        (group / "cgroup.procs").write_text(str(mine.pid))
        seen = recorded(question, "-d", "1", "--cgroup", group.parent.name, "--by", "pid")
    if question == "wakeup":
        assert leaves(seen) == {"sleeper"}
    else:
        assert set(seen.roots()) == {f"sleeper-{mine.pid}"}
    assert 0.7 * SECOND < seen.total < 1.2 * SECOND


@pytest.mark.parametrize("question", ["offcpu", "chain"])
def test_root_frames_by_control_group(workloads: Path, question: str) -> None:
    with control_group() as group, background(workloads / "fp" / "sleeper", "60") as mine:
        until_asleep(mine.pid)
        (group / "cgroup.procs").write_text(str(mine.pid))
        pid = ("-p", str(mine.pid))
        seen = recorded(question, "-d", "1", *pid, "--by", "cgroup", "--whole-only")
    path = f"/{group.parent.name}/{group.name}"
    assert {stack[:2] for stack in seen.stacks} == {(path, "sleeper")}


def test_the_control_group_of_one_who_was_away(workloads: Path) -> None:
    with control_group() as group, background("sleep", "60") as mine:
        until_asleep(mine.pid)
        (group / "cgroup.procs").write_text(str(mine.pid))
        time.sleep(0.1)
        seen = recorded("offcpu", "-d", "0.3", "-p", str(mine.pid), "--by", "cgroup")
    path = f"/{group.parent.name}/{group.name}"
    assert {stack[:2] for stack in seen.stacks} == {(path, "sleep")}


def test_wakers_by_control_group_where_all_are_interrupts(workloads: Path) -> None:
    with background(workloads / "fp" / "sleeper", "60") as mine:
        until_asleep(mine.pid)
        seen = recorded("wakeup", "-d", "0.5", "-p", str(mine.pid), "--by", "cgroup")
    assert known(seen.roots()) == {"[timer]"}


def test_wakers_by_control_group(workloads: Path) -> None:
    seen = recorded("wakeup", "--by", "cgroup", "--", workloads / "fp" / "pipe_chain", "0.5")
    roots = known(seen.roots()) - {"[timer]"}
    assert roots
    assert all(root.startswith("/") for root in roots), roots


@pytest.mark.parametrize("question", ["offcpu", "chain"])
def test_root_frames_tell_processes_or_threads_apart(question: str) -> None:
    with background(sys.executable, "-c", NAPS) as process:
        until_asleep(process.pid)
        tasks = Path(f"/proc/{process.pid}/task")
        names = {int(t.name): (t / "comm").read_text().strip() for t in tasks.iterdir()}
        pid = ("-d", "1", "-p", str(process.pid))
        by_thread = recorded(question, *pid, "--by", "tid")
        by_process = recorded(question, *pid, "--by", "pid")
    found = set(by_thread.roots())
    assert found == {f"{name}-{process.pid}/{tid}" for tid, name in names.items()}
    assert set(by_process.roots()) == {f"{name}-{process.pid}" for name in names.values()}


def test_children_of_a_process_on_request(workloads: Path, tmp_path: Path) -> None:
    gate, done = tmp_path / "gate", tmp_path / "done"
    os.mkfifo(gate)
    script = f"read x <{gate}; {workloads / 'fp' / 'sleeper'} 1; touch {done}; read x <{gate}"
    with background("sh", "-c", script) as shell:
        common = ("offcpu", "-p", str(shell.pid), "-o", "-")
        both = [Running(*common, "--children"), Running(*common)]
        gate.write_text("go\n")  # now that both record
        deadline = time.monotonic() + 30
        while not done.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with_children, without = (Folded(running.finish(after=0).stdout) for running in both)
    assert set(without.roots()) == {"sh"}
    assert {"sh", "sleeper"} <= set(with_children.roots()) <= {"sh", "sleeper", "touch"}
    assert 1 * SECOND < with_children.roots()["sleeper"] < 2 * SECOND


def slept(text: str, name: str) -> int:
    """The nanoseconds that workloads say they were in a wait."""
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1].removeprefix("ns=")) for words in lines if words and words[0] == name)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_command_and_what_it_starts(workloads: Path, question: str) -> None:
    """All of it from the first wait to the last, so what they measured themselves is there."""
    sleeper = workloads / "fp" / "sleeper"
    script = f"{sleeper} 0.5 & {sleeper} 0.5 & wait"
    result = bpflame(question, "-o", "-", "--", "sh", "-c", script)
    assert result.code == 0, result.stderr
    seen = Folded(result.stdout)
    expected = sum(slept(result.stderr, f"sleep_{name}") for name in ("long", "middle", "short"))
    assert expected > 1 * SECOND
    if question == "wakeup":  # not what they wait for a CPU
        found = sum(ns for stack, ns in seen.stacks.items() if stack[-1] == "sleeper")
        assert leaves(seen) == {"sh", "sleeper"}
        assert 0.8 * expected < found < 1.02 * expected
    else:
        found = sum(ns for stack, ns in seen.stacks.items() if "take_a_path" in stack)
        assert set(seen.roots()) == {"sh", "sleeper"}
        assert found == pytest.approx(expected, rel=0.05)
    assert "[partial]" not in leaves(seen)


def is_kernel_thread(pid: str) -> bool | None:
    """Whether it has no user space; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return bool(int(fields[6]) & 0x200000)  # PF_KTHREAD


@pytest.mark.parametrize(("option", "kernel"), [("-u", False), ("-k", True)])
def test_one_kind_of_threads(workloads: Path, option: str, kernel: bool) -> None:
    with background(workloads / "fp" / "sleeper", "60") as process:
        until_asleep(process.pid)
        seen = recorded("offcpu", "-d", "1", option, "--by", "pid")
        kinds = {root: is_kernel_thread(root.rpartition("-")[2]) for root in seen.roots()}
    kinds = {root: kind for root, kind in kinds.items() if kind is not None}
    assert kinds
    assert set(kinds.values()) == {kernel}, kinds
    assert (f"sleeper-{process.pid}" in kinds) != kernel
    if kernel:
        inner = {name for stack in seen.stacks for name in stack[1:] if name not in WAITS}
        assert inner
        assert all(name.endswith("_[k]") for name in inner)


@pytest.mark.parametrize("question", ["offcpu", "chain"])
@pytest.mark.parametrize("option", ["-U", "-K"])
def test_one_kind_of_stacks(workloads: Path, option: str, question: str) -> None:
    """Also of who wakes; what kind of interrupt it was is told all the same."""
    command = ("--", workloads / "fp" / "pipe_chain", "1")
    seen = recorded(question, option, *command)
    frames = {name for stack in seen.stacks for name in stack[1:]}
    of_kernel = {name for name in frames if name.startswith(("schedule", "do_syscall_64", "vfs_"))}
    of_user = {name for name in frames if name.startswith(("main", "run_a", "d_waits", "c_sends"))}
    assert bool(of_kernel) == (option == "-K")
    assert bool(of_user) == (option == "-U")
    assert not any(name.startswith(("asm_", "hrtimer")) for name in frames) or option == "-K"
    if question == "chain":
        wakers = {stack[-1] for stack in seen.stacks if stack[0] == "chain-A" and "--" in stack}
        assert known(wakers) == {"[timer]_[w]"}
        ends = {
            tuple(name for name in stack if name.startswith(("chain-", "[timer]", "--")))
            for stack in seen.stacks
            if stack[0] == "chain-D"
        }
        whole = ("chain-D", "--", "chain-C_[w]", "--", "chain-B_[w]", "--", "chain-A_[w]", "--",
                 "[timer]_[w]")  # fmt: skip
        assert whole in ends


@pytest.mark.parametrize(("option", "kernel"), [("-U", False), ("-K", True)])
def test_wakeups_with_one_kind_of_stacks(workloads: Path, option: str, kernel: bool) -> None:
    seen = recorded("wakeup", option, "--", workloads / "fp" / "pipe_chain", "1")
    timer = [stack for stack in seen.stacks if stack[0] == "[timer]"]
    assert timer
    assert all(bool(stack[1:-1]) == kernel for stack in timer)
    sends = [stack for stack in seen.stacks if stack[0] == "chain-C"]
    assert any("c_sends" in stack for stack in sends) != kernel
    inner = {name for stack in seen.stacks for name in stack[1:-1]}
    assert all(name.endswith("_[k]") == kernel for name in inner)


@pytest.mark.parametrize("question", ["offcpu", "chain"])
def test_a_summary_for_machines(workloads: Path, tmp_path: Path, question: str) -> None:
    out = tmp_path / "out.folded"
    command = [str(workloads / "fp" / "self_timer"), "0.5"]
    result = bpflame(question, "--json", "-o", out, "--", *command)
    summary = json.loads(result.stdout)
    assert summary["schema"] == 1
    assert (summary["kind"], summary["unit"]) == (question, "ns")
    assert summary["output"] == str(out)
    assert summary["target"] == " ".join(command)
    assert summary["event"] == "sched_switch"
    assert summary["exit_code"] == 0
    assert summary["total"] == Folded(out.read_text()).total
    counters = summary["counters"]
    lost = [name for name in counters if name.startswith("lost_")]
    assert {"lost_samples", "lost_value", "lost_stacks"} <= {*lost}
    assert not any(counters[name] for name in lost)
    assert counters["partial_ns"] == counters["unfinished_waits"] == 0
    told = sum(map(int, re.findall(r"waits=(\d+)", result.stderr)))
    assert counters["samples"] >= told - counters.get("missed_ends", 0) > 0


@pytest.mark.parametrize("question", ["offcpu", "wakeup", "chain"])
def test_a_recording_is_drawn_in_many_ways(workloads: Path, tmp_path: Path, question: str) -> None:
    recording = tmp_path / "run.bpflame"
    result = bpflame(question, "-o", recording, "--", workloads / "fp" / "pipe_chain", "0.5")
    assert result.code == 0, result.stderr
    assert recording.stat().st_mode & 0o777 == 0o600
    ways = {
        by: Folded(bpflame("render", recording, "--by", by, "-o", "-").stdout)
        for by in ("comm", "pid", "tid", "cgroup")
    }
    assert len({way.total for way in ways.values()}) == 1
    roots = {by: known(way.roots()) - {"[timer]", "[irq]"} for by, way in ways.items()}
    assert "chain-B" in roots["comm"]
    assert any(root.startswith("chain-B-") for root in roots["pid"])
    assert all("/" in root for root in roots["tid"])
    assert all(root.startswith("/") for root in roots["cgroup"])
    picture = tmp_path / "run.svg"
    assert bpflame("render", recording, "-o", picture, "--title", "A & B").code == 0
    text = " ".join(ET.parse(picture).getroot().itertext())
    assert "A & B" in text
    assert "chain-C" in text
    if question != "offcpu":
        assert "[timer]" in text


def test_a_picture_at_once(workloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    command = ("--", workloads / "fp" / "self_timer", "0.5")
    result = bpflame("offwake", "-o", out, "--title", "Who ends it?", *command)
    assert f"wrote {out}" in result.stderr
    text = " ".join(ET.parse(out).getroot().itertext())
    assert "Who ends it?" in text
    assert "wait_nanosleep" in text
    assert "hrtimer_wakeup" in text


def test_new_threads_wait_for_their_first_cpu_and_on(tmp_path: Path) -> None:
    """Of a process that is recorded: threads that begin and end within the recording."""
    script = (
        "import sys, threading, time\n"
        "sys.stdin.readline()\n"
        "threads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(5)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "sys.stdin.readline()\n"
    )
    with background(sys.executable, "-c", script) as process:
        assert process.stdin is not None
        until_asleep(process.pid)
        running = Running("offcpu", "-d", "1.5", "-p", str(process.pid), "--by", "tid", "-o", "-")
        process.stdin.write(b"go\n")
        process.stdin.flush()
        seen = Folded(running.process.communicate(timeout=60)[0].decode())
    threads = {root for root in seen.roots() if not root.endswith(f"/{process.pid}")}
    assert len(threads) == 5
    for root in threads:
        mine = {stack: ns for stack, ns in seen.stacks.items() if stack[0] == root}
        assert {stack[-1] for stack in mine} >= {"[blocked]", "[run queue]"}
        blocked = sum(ns for stack, ns in mine.items() if stack[-1] == "[blocked]")
        assert 0.19 * SECOND < blocked < 0.4 * SECOND


NAME = b"a;b \x1b[31m\n\xff&<"


@pytest.mark.parametrize("question", ["offcpu", "wakeup", "chain"])
def test_a_hostile_name_is_printed_without_harm(question: str, tmp_path: Path) -> None:
    """Of a thread that waits and of the one that wakes it."""
    script = (
        "import ctypes, os, sys, threading, time\n"
        f"name = {NAME!r}\n"
        "there, back = os.pipe(), os.pipe()\n"
        "def answer():\n"
        "    ctypes.CDLL(None).prctl(15, name)\n"
        "    while os.read(there[0], 1):\n"
        "        os.write(back[1], b'x')\n"
        "threading.Thread(target=answer, daemon=True).start()\n"
        "ctypes.CDLL(None).prctl(15, name)\n"
        "for _ in range(200):\n"
        "    os.write(there[1], b'x'); os.read(back[0], 1); time.sleep(0.001)\n"
    )
    recording = tmp_path / "x.bpflame"
    result = bpflame(question, "-o", recording, "--", sys.executable, "-c", script)
    assert result.code == 0, result.stderr
    folded = tmp_path / "x.folded"
    assert bpflame("render", recording, "-o", folded).code == 0
    text = folded.read_text()
    assert "\x1b" not in result.stderr + text
    name = os.fsdecode(NAME)
    names = {each for stack in Folded(text).stacks for each in stack}
    assert any(each.encode(errors="surrogateescape").startswith(b"a;b ") for each in names)
    assert {name, name + "_[w]"} & names, names
    picture = tmp_path / "x.svg"
    assert bpflame("render", recording, "-o", picture).code == 0
    ET.parse(picture)
    assert bpflame("render", folded, "-o", picture).code == 0
    ET.parse(picture)
