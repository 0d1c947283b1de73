"""Stacks of threads that wait, address by address as gdb finds them."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from unwinding import background, until

from bpflame.profile import Metadata
from bpflame.profilers.sched import OFFCPU, SchedOptions, prepare
from bpflame.profilers.signals import StopSignals
from bpflame.profilers.target import Target
from bpflame.profilers.unwind_choice import Unwind
from bpflame.raw import RawProfile, RawSample, StackEnd

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="tables are of x86-64"),
]

Addresses = tuple[int, ...]

SECONDS = "7"
"""How long the waits are brief: until the recording is over, which is compiled first."""

BY_GDB = """
import gdb, json
def addresses():
    frame, found = gdb.newest_frame(), []
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            found.append(frame.pc())
        frame = frame.older()
    return found
stacks = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    stacks[thread.ptid[1] or thread.ptid[0]] = addresses()
with open(%r, "w") as file:
    json.dump(stacks, file)
"""
"""One entry for each thread: its frames, leaf first, but for what gdb adds from debug information:
functions that are inlined, and that jumped to another one."""

# Each waits 20 ms at a time for as many seconds as the first argument says, and then for good, in
# the same call: while it is recorded as well as when gdb looks.
PYTHON = """
import os, select, sys, threading, time
end = time.monotonic() + float(sys.argv[1])
def length():
    return 0.02 if time.monotonic() < end else 1e6
def sleeps():
    while True:
        time.sleep(length())
def locks():
    lock = threading.Lock()
    lock.acquire()
    while True:
        lock.acquire(True, length())
def selects():
    while True:
        select.select([], [], [], length())
def reads(pipe):
    while True:
        os.read(pipe, 1)
pipes = [os.pipe() for _ in range(8)]
for pipe, _ in pipes:
    for what in ((sleeps,), (locks,), (selects,), (reads, pipe)):
        threading.Thread(target=what[0], args=what[1:]).start()
while time.monotonic() < end:
    for _, pipe in pipes:
        os.write(pipe, b".")
    time.sleep(0.02)
sleeps()
"""
PERL = """
use Time::HiRes qw(time nanosleep sleep);
my ($end, $what) = (time + shift, shift);
sub wait_time { time < $end ? 0.02 : 1e6 }
sub by_sleep { while (1) { nanosleep(1e9 * wait_time()) } }
sub by_select { while (1) { select(undef, undef, undef, wait_time()) } }
sub by_sysread {
    pipe(my $from, my $to);
    if (!fork) { while (time < $end) { syswrite($to, "."); sleep(0.02) } exit }
    while (1) { sysread($from, my $byte, 1) }
}
sub nested { my $depth = shift; $depth ? map { nested($depth - 1) } 1 : main->can($what)->() }
nested(5);
"""
CPP = """
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;
static Clock::time_point end;

static std::chrono::milliseconds length()
{
    return std::chrono::milliseconds(Clock::now() < end ? 20 : 1000000000);
}

struct Waiter {
    virtual void wait(int calls) = 0;
    virtual ~Waiter() = default;
};

struct Sleeper : Waiter {
    void wait(int calls) override
    {
        std::function<void()> next = [=, this] { wait(calls - 1); };

        while (!calls)
            std::this_thread::sleep_for(length());
        next();
    }
};

struct Listener : Waiter {
    std::mutex mutex;
    std::condition_variable condition;

    void wait(int calls) override
    {
        if (calls)
            return wait(calls - 1);
        std::unique_lock<std::mutex> lock(mutex);
        while (true)
            condition.wait_for(lock, length());
    }
};

int main(int, char **arguments)
{
    std::vector<std::thread> threads;
    std::vector<Sleeper> sleepers(8);
    std::vector<Listener> listeners(8);

    end = Clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
    for (int i = 0; i < 8; i++) {
        threads.emplace_back([&, i] { sleepers[i].wait(i); });
        threads.emplace_back([&, i] { listeners[i].wait(i); });
    }
    for (auto &thread : threads)
        thread.join();
}
"""


def by_gdb(pid: int, folder: Path) -> dict[int, Addresses]:
    """The stacks of all threads of a process, by tid."""
    script, out = folder / "stacks.py", folder / f"{pid}.json"
    script.write_text(BY_GDB % str(out))
    settings = ["backtrace past-main on", "backtrace past-entry on", "debuginfod enabled off"]
    command = ["gdb", "-q", "-nx", "-batch"]
    for setting in settings:
        command += ["-iex", f"set {setting}"]
    command += ["-p", str(pid), "-x", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert out.exists(), done.stdout + done.stderr
    return {int(tid): tuple(found) for tid, found in json.loads(out.read_text()).items()}


def recorded(pids: tuple[int, ...], seconds: float) -> dict[int, list[RawSample]]:
    """Waits of processes, by tid."""
    options = SchedOptions(
        OFFCPU, Target(pids=pids), threads=True, unwind=Unwind.DWARF, max_depth=255
    )
    recorder = prepare(options).recorder(None, Metadata())
    try:
        with StopSignals() as signals:
            raw: RawProfile = recorder.run(seconds, signals, lambda _: None, lambda: None)
    finally:
        recorder.close()
    found = defaultdict(list)
    for sample in raw.samples:
        assert not sample.lost
        found[sample.task.tid].append(sample)
    return found


def all_asleep(pid: int) -> bool:
    """Whether every thread waits, and has done so for a while: none switches."""
    before = switches(pid)
    subprocess.run(["sleep", "0.1"], check=True)
    return switches(pid) == before


def switches(pid: int) -> list[str]:
    return [
        line
        for task in sorted(Path(f"/proc/{pid}/task").iterdir())
        for line in (task / "status").read_text().splitlines()
        if "ctxt_switches" in line or line.startswith(("Pid", "State"))
    ]


def compare(found: dict[int, list[RawSample]], expected: dict[int, Addresses], only: bool) -> int:
    """Hold the stack of each thread to be that of gdb; returns how many there were.

    Args:
        found: What was recorded, by tid.
        expected: What gdb says, by tid.
        only: A thread waits at one place only: whatever else it was seen to wait at, not there.
    """
    assert expected
    for tid, stack in expected.items():
        stacks = {sample.user: sample.end for sample in found[tid]}
        assert stacks.get(stack) is StackEnd.COMPLETE, difference(tid, stack, stacks)
        if only:
            there = [(user, end) for user, end in stacks.items() if user[:1] == stack[:1]]
            for user, end in there:
                as_far = stack if end is StackEnd.COMPLETE else stack[: len(user)]
                assert user == as_far, difference(tid, stack, stacks)
    return len(expected)


def difference(tid: int, stack: Addresses, stacks: dict[Addresses, StackEnd]) -> str:
    """What a failure says: the stack of gdb, and those that were recorded."""
    rows = [f"thread {tid}", "gdb " + " ".join(map(hex, stack))]
    rows += [f"{end.name} " + " ".join(map(hex, user)) for user, end in stacks.items()]
    return "\n".join(rows)


@pytest.fixture
def waiting(workloads: Path, tmp_path: Path) -> Iterator[dict[str, int]]:
    """Processes that wait briefly for some seconds, and then for good: their pids."""
    (tmp_path / "waits.py").write_text(PYTHON)
    (tmp_path / "waits.pl").write_text(PERL)
    compiler = ["g++", "-O2", "-std=c++20", "-pthread", "-x", "c++", "-", "-o", tmp_path / "waits"]
    subprocess.run(compiler, input=CPP, text=True, check=True)
    deep, perl = workloads / "nofp" / "deep", ("/usr/bin/perl", tmp_path / "waits.pl")
    commands: dict[str, tuple[str | Path, ...]] = {
        "C": (deep, SECONDS, "1", "mixed", "16", "120", "stay"),
        "C, large frames": (deep, SECONDS, "20", "mixed", "1000", "12", "stay"),
        "C++": (tmp_path / "waits", SECONDS),
        "Python": ("/usr/bin/python3", tmp_path / "waits.py", SECONDS),
        **{
            f"Perl {what}": (*perl, SECONDS, f"by_{what}")
            for what in ("sleep", "select", "sysread")
        },
    }
    with contextlib.ExitStack() as running:
        yield {
            name: running.enter_context(background(*command)).pid
            for name, command in commands.items()
        }


def test_stacks_of_waits_are_those_of_gdb(waiting: dict[str, int], tmp_path: Path) -> None:
    pids = tuple(waiting.values())
    during = recorded(pids, 1.5)
    for name, pid in waiting.items():
        until(lambda pid=pid: all_asleep(pid), f"{name} does not rest")  # type: ignore[misc]
    before = recorded(pids, 0.2)
    compared = 0
    for name, pid in waiting.items():
        expected = by_gdb(pid, tmp_path)
        # The threads of Python also wait for its lock, some by the same call.
        compared += compare(during, expected, only=name.startswith("C"))
        compared += compare(before, expected, only=True)
    print(f"{compared} stacks")
    assert compared >= 300
