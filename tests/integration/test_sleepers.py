"""Threads that are asleep: found with real BPF, with the stacks that a recording takes of them."""

from __future__ import annotations

import bisect
import os
import platform
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bpflame.bpf import load, task_iterator
from bpflame.bpf.btf import Btf
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.task_iterator import MAX_DEPTH
from bpflame.profilers import sleepers as module
from bpflame.profilers.sleepers import ProcThreads, Sleeper, Sleepers, Way
from bpflame.symbolize.kernel import KernelSymbols

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is of x86-64"),
]

INTERRUPTIBLE = 1
SWITCHES = ("nvcsw", "nivcsw")
WHERE = ("nap", "inner", "outer")
"""Where the program sleeps, leaf first; ``outer`` is called by itself as often as was asked for."""

# Arguments: milliseconds of each nap, calls of outer(), threads besides the first.
PROGRAM = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NANOSLEEP 35

static struct timespec period;
static int depth;

void nap(void)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(NANOSLEEP), "D"(&period), "S"(0)
		: "rcx", "r11", "memory");
}

void inner(void)
{
	nap();
}

void outer(int calls)
{
	calls > 1 ? outer(calls - 1) : inner();
}

static void *sleeper(void *unused)
{
	for (;;)
		outer(depth);
	return unused;
}

int main(int count, char **arguments)
{
	long milliseconds = atol(arguments[1]);
	pthread_attr_t small;
	pthread_t thread;

	period.tv_sec = milliseconds / 1000;
	period.tv_nsec = milliseconds % 1000 * 1000000;
	depth = atoi(arguments[2]);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 1 << 16);
	for (int i = atoi(arguments[3]); i; i--)
		if (pthread_create(&thread, &small, sleeper, NULL))
			return 1;
	puts("ready");
	fflush(stdout);
	sleeper(NULL);
}
"""

# The stacks of one thread as it goes to sleep, kept with how often it did so before.
RECORDER = """
struct departure {
	u64 voluntary;
	u64 involuntary;
	s64 user_bytes;
	s64 kernel_bytes;
	u64 user[127];
	u64 kernel[127];
};

BPF_ARRAY(departures, struct departure, 1);

int bpflame_departure(void *ctx)
{
	u32 zero = 0;
	struct departure *last = departures.lookup(&zero);

	if (!last || (u32)bpf_get_current_pid_tgid() != TID)
		return 0;
	void *task = (void *)bpf_get_current_task();

	bpf_probe_read_kernel(&last->voluntary, 8, task + TASK_NVCSW);
	bpf_probe_read_kernel(&last->involuntary, 8, task + TASK_NIVCSW);
	last->user_bytes = bpf_get_stack(ctx, last->user, sizeof(last->user), BPF_F_USER_STACK);
	last->kernel_bytes = bpf_get_stack(ctx, last->kernel, sizeof(last->kernel), 0);
	return 0;
}
"""
_DEPARTURE = struct.Struct("<QQqq127Q127Q")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sleeping program, at fixed addresses and with frame pointers."""
    path = tmp_path_factory.mktemp("sleepers") / "sleeping"
    flags = ["-O0", "-fno-omit-frame-pointer", "-no-pie", "-pthread"]  # -O1 leaves some out
    subprocess.run(
        ["gcc", *flags, "-x", "c", "-", "-o", path], input=PROGRAM, text=True, check=True
    )
    return path


Start = Callable[..., int]


@pytest.fixture
def start(program: Path) -> Iterator[Start]:
    """Starts the program, and waits until its first thread sleeps."""
    started: list[subprocess.Popen[bytes]] = []

    def run(milliseconds: int = 1_000_000, calls: int = 1, threads: int = 0) -> int:
        numbers = map(str, (milliseconds, calls, threads))
        process = subprocess.Popen([program, *numbers], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        until(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("35 "))
        return process.pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


@pytest.fixture(scope="module")
def by_iterator() -> Iterator[Sleepers]:
    made = Sleepers(user=True, kernel=True)
    assert made.refusal is None
    assert made.way is Way.ITERATOR
    yield made
    made.close()


@pytest.fixture(scope="module")
def names() -> Callable[[tuple[int, ...]], list[str]]:
    """Names kernel addresses."""
    symbols = KernelSymbols.from_proc()

    def resolve(addresses: tuple[int, ...]) -> list[str]:
        found = symbols.resolve(np.array(addresses, np.uint64))
        return [name[0] if name else "?" for name in found]

    return resolve


Names = Callable[[tuple[int, ...]], list[str]]


def functions(program: Path, addresses: tuple[int, ...]) -> list[str]:
    """Names addresses of the program by what nm tells."""
    text = subprocess.run(["nm", "-n", program], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in text.splitlines()]
    symbols = [(int(line[0], 16), line[2]) for line in lines if len(line) == 3]
    starts = [address for address, _ in symbols]
    return [symbols[bisect.bisect_right(starts, address) - 1][1] for address in addresses]


def of(sleepers: Sleepers, wanted: int) -> list[Sleeper]:
    """The threads of one process."""
    return sleepers.read(lambda pid, _: pid == wanted)


def test_a_thread_is_found_where_it_sleeps(
    start: Start, program: Path, by_iterator: Sleepers, names: Names
) -> None:
    pid = start(calls=2)
    (found,) = of(by_iterator, pid)
    assert (found.tid, found.pid, found.comm) == (pid, pid, b"sleeping")
    assert found.state & INTERRUPTIBLE
    assert not found.kernel_thread
    assert not found.lost
    stack = [*WHERE, "outer", "sleeper", "main"]
    assert functions(program, found.user[: len(stack)]) == stack
    kernel = names(found.kernel)
    assert kernel[:4] == ["__schedule", "schedule", "do_nanosleep", "hrtimer_nanosleep"]
    assert kernel[-1].startswith("entry_SYSCALL_64")
    assert (by_iterator.torn, by_iterator.refused, by_iterator.bare) == (0, 0, 0)


def departure(tid: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """The last departure of a thread, as a recording sees it."""
    (folder / "departure.bpf.c").write_text(RECORDER)
    monkeypatch.setattr(load, "PROGRAMS", folder)
    btf = Btf.of_kernel()
    offsets = {f"TASK_{name.upper()}": btf.offset("task_struct", name) for name in SWITCHES}
    recorder = load.Program("departure", {"TID": tid, **offsets})
    try:
        recorder.attach_raw_tracepoint("bpflame_departure", "sched_switch")
        departures = BpfMap(recorder.map_fd("departures"), 4, _DEPARTURE.size)
        while True:
            yield departures.lookup(bytes(4)) or bytes(_DEPARTURE.size)
    finally:
        recorder.close()


@pytest.mark.parametrize("calls", [1, 20, 200])
def test_stacks_are_those_that_a_recording_takes(
    start: Start,
    by_iterator: Sleepers,
    names: Names,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    pid = start(milliseconds=50, calls=calls)
    for data in departure(pid, tmp_path, monkeypatch):
        voluntary, involuntary, user_bytes, kernel_bytes, *both = _DEPARTURE.unpack(data)
        found = of(by_iterator, pid)
        # On a busy machine memory can be away for a moment: then bpf_get_stack() has nothing.
        same = [(s.switches, s.lost) for s in found] == [(voluntary + involuntary, False)]
        if same and user_bytes:
            break
    user, kernel = both[: user_bytes // 8], both[127 : 127 + kernel_bytes // 8]
    assert found[0].user == tuple(user)
    assert len(user) == MAX_DEPTH if calls == 200 else len(user) > calls
    recorded = names(tuple(kernel))
    ours = recorded.index("__schedule")  # what comes before is there because a program ran
    assert names(found[0].kernel) == recorded[ours:]
    assert list(found[0].kernel[1:]) == kernel[ours + 1 :]


def test_many_threads_are_all_there_and_whole(start: Start, by_iterator: Sleepers) -> None:
    pid = start(threads=400, calls=20)
    tasks = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    until(lambda: len(of(by_iterator, pid)) == 401 and all(s.state for s in of(by_iterator, pid)))
    found = of(by_iterator, pid)
    assert [s.tid for s in found] == sorted(tasks)
    assert len({s.kernel for s in found}) == 1
    assert {s.user[:22] for s in found} == {found[0].user[:22]}
    assert not any(s.lost for s in found)


def test_threads_of_the_kernel_have_no_user_space(by_iterator: Sleepers, names: Names) -> None:
    (kthreadd,) = of(by_iterator, 2)
    assert kthreadd.comm == b"kthreadd"
    assert kthreadd.kernel_thread
    assert kthreadd.user == ()
    assert names(kthreadd.kernel)[:3] == ["__schedule", "schedule", "kthreadd"]


def test_who_runs_and_who_is_dead_is_not_there(by_iterator: Sleepers) -> None:
    zombie = subprocess.Popen(["/bin/true"])
    until(lambda: ") Z " in Path(f"/proc/{zombie.pid}/stat").read_text())
    found = {s.tid for s in by_iterator.read()}
    zombie.wait()
    assert found
    assert not {zombie.pid, os.getpid()} & found


def test_what_is_not_asked_for_is_not_taken(start: Start) -> None:
    pid = start()
    for user, kernel in ((False, True), (True, False)):
        made = Sleepers(user=user, kernel=kernel)
        try:
            (found,) = of(made, pid)
            assert made.way is Way.ITERATOR
            assert (bool(found.user), bool(found.kernel)) == (user, kernel)
        finally:
            made.close()


def test_where_less_is_known_of_the_machine_less_is_told(
    start: Start, by_iterator: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start()
    (full,) = of(by_iterator, pid)
    monkeypatch.setattr(task_iterator, "_REGISTERS", {"x86_64": {"REGS_IP": 128}})
    monkeypatch.setattr(task_iterator, "_kernel_symbols", lambda *names: [0] * len(names))
    made = Sleepers(user=True, kernel=True)
    (less,) = of(made, pid)
    made.close()
    assert made.way is Way.ITERATOR
    assert less.user == full.user[:1]
    assert less.kernel == full.kernel[-len(less.kernel) :]
    assert made.bare == 1


def test_proc_tells_the_same_but_less(
    start: Start, by_iterator: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start()
    (full,) = of(by_iterator, pid)
    monkeypatch.setattr(module, "TaskIterator", ProcThreads)
    made = Sleepers(user=True, kernel=True)
    (less,) = of(made, pid)
    assert less.user == full.user[:1]
    assert less.kernel == full.kernel[-len(less.kernel) :]
    assert made.bare == 1
    same = ("tid", "pid", "comm", "switches", "kernel_thread", "lost")
    assert [getattr(less, name) for name in same] == [getattr(full, name) for name in same]
    (kthreadd,) = of(made, 2)
    assert kthreadd.kernel_thread
    assert kthreadd.user == ()
    made.close()


def test_nothing_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    made = Sleepers(user=True, kernel=True)
    made.read()
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before
