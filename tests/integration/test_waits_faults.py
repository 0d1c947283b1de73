"""Waits where things go wrong: sudden ends, full maps, lacking kernels, crowds, other tracers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recording import ROOT, Folded, Result, Running, bpflame

pytestmark = pytest.mark.bpf

SECOND = 1e9
UNFINISHED = "waits still going on at the end"


@contextlib.contextmanager
def background(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def no_traceback(text: str) -> bool:
    return "Traceback" not in text and "error:" in text


def until(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_recording_and_saves_it(
    workloads: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out.folded"
    with background(workloads / "fp" / "sleeper", "60") as load:
        running = Running("chain", "-p", str(load.pid), "-o", out)
        assert "Ctrl-C stops and saves" in running.first_line
        result = running.finish(number)
    assert result.code == 0
    assert f"wrote {out}" in result.stderr
    assert Folded(out.read_text()).share("take_a_path") > 40
    assert os.listdir(tmp_path) == ["out.folded"]


def programs_of(pid: int) -> set[int]:
    """The ids of the BPF programs that a process holds."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found |= set(map(int, re.findall(r"^prog_id:\t(\d+)$", info.read_text(), re.MULTILINE)))
    return found


def loaded() -> set[int]:
    listing = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True)
    return {program["id"] for program in json.loads(listing.stdout)}


def test_nothing_stays_attached_after_a_kill(tmp_path: Path) -> None:
    running = Running("chain", "-p", "1", "-o", tmp_path / "x.folded")
    programs = programs_of(running.process.pid)
    assert len(programs) >= 3
    assert programs <= loaded()
    running.process.kill()
    running.process.communicate()
    deadline = time.monotonic() + 10
    while programs & loaded() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not programs & loaded()
    assert os.listdir(tmp_path) == []


def test_the_commands_exit_code_is_passed_on(tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    assert bpflame("offcpu", "-o", out, "--", "false").code == 1
    assert out.exists()
    assert bpflame("chain", "-o", out, "--", "sh", "-c", "kill -9 $$").code == 128 + 9


def test_a_target_that_is_killed_while_it_waits(tmp_path: Path) -> None:
    """Its wait ends with it, by the hand of who killed it, and the recording goes on."""
    with background("sleep", "60") as victim:
        before = time.monotonic()
        arguments = ("-p", str(victim.pid), "-d", "2.5", "--json", "-o", tmp_path / "x.folded")
        running = Running("offwake", *arguments)
        after = time.monotonic()
        time.sleep(0.7)
        victim.kill()
        killed = time.monotonic()
        out, err = running.process.communicate(timeout=60)
    assert running.process.returncode == 0, err
    assert json.loads(out)["duration"] > 2.2
    waits = Folded((tmp_path / "x.folded").read_text())
    assert (killed - after) * SECOND * 0.9 < waits.total < (killed - before) * SECOND
    longest, _ = waits.stacks.most_common(1)[0]
    assert longest[0] == "sleep"
    ours = Path("/proc/self/comm").read_text().strip()
    assert longest[-1] == f"{ours}_[w]"
    assert (
        any(name.startswith("__x64_sys_kill") for name in longest) or os.uname().machine != "x86_64"
    )


def test_one_that_is_gone_before_it_is_asked_for(tmp_path: Path) -> None:
    with background("sleep", "60") as victim:
        pass
    result = bpflame("wakeup", "-p", str(victim.pid), "-o", tmp_path / "x.svg")
    assert result.code == 2
    assert no_traceback(result.stderr)
    assert f"no process {victim.pid}" in result.stderr


def test_no_waits_give_a_valid_picture(tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    result = bpflame("wakeup", "-d", "0.3", "-n", "^no such name$", "-o", out)
    assert result.code == 0
    assert "no samples: nobody woke anything" in result.stderr
    text = "".join(ET.parse(out).getroot().itertext())
    assert "nobody woke anything" in text


def hiding(*folders: str) -> tuple[str, ...]:
    """What goes before a command that is not to see what is in some folders."""
    script = "".join(f"[ ! -d {each} ] || mount -t tmpfs none {each}; " for each in folders)
    return ("unshare", "-m", "sh", "-c", script + 'exec "$@"', "sh")


def test_neither_kernel_headers_nor_tracefs_are_needed(workloads: Path) -> None:
    hidden = hiding("/lib/modules", "/usr/src", "/sys/kernel/debug", "/sys/kernel/tracing")
    command = ("--", workloads / "fp" / "pipe_chain", "0.3")
    result = bpflame("chain", "-o", "-", *command, prefix=hidden)
    assert result.code == 0, result.stderr
    assert Folded(result.stdout).roots()["chain-D"] > 0.1 * SECOND


def test_a_kernel_without_type_information(tmp_path: Path) -> None:
    result = bpflame(
        "offcpu", "-d", "1", "-o", "x.svg", prefix=hiding("/sys/kernel/btf"), cwd=tmp_path
    )
    assert result.code == 1
    assert no_traceback(result.stderr)
    assert "no kernel type information: /sys/kernel/btf/vmlinux" in result.stderr
    assert "CONFIG_DEBUG_INFO_BTF" in result.stderr
    assert os.listdir(tmp_path) == []


def patched(patch: str, *arguments: str | Path, timeout: float = 90) -> Result:
    """The real command line, in a process where something is not as it should be."""
    script = "import sys\n" + patch + "\nfrom bpflame.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_kernel_without_the_tracepoint_of_wakeups(tmp_path: Path) -> None:
    patch = (
        "from bpflame.profilers import sched, sched_events as events\n"
        "events.TRACEPOINTS = sched.TRACEPOINTS = tuple(\n"
        "    (function, name.replace('sched_waking', 'sched_not_there'))\n"
        "    for function, name in events.TRACEPOINTS\n"
        ")\n"
    )
    out = tmp_path / "x.svg"
    for more in ((), ("--", "touch", tmp_path / "ran")):
        result = patched(patch, "offwake", "-d", "1", "-o", out, *more)
        assert result.code == 1
        assert no_traceback(result.stderr)
        assert "cannot attach to the raw tracepoint sched_not_there" in result.stderr
        assert "CONFIG_TRACEPOINTS" in result.stderr
        assert os.listdir(tmp_path) == []


def test_a_kernel_that_hides_its_addresses(workloads: Path, tmp_path: Path) -> None:
    """What interrupts are cannot be told, and who waits can."""
    patch = (
        "from pathlib import Path\n"
        "from bpflame.bpf import kallsyms\n"
        "kallsyms.KALLSYMS = Path('/dev/null')\n"
    )
    command = ("--", workloads / "fp" / "pipe_chain", "0.5")
    result = patched(patch, "offwake", "-o", tmp_path / "x.folded", *command)
    assert result.code == 0, result.stderr
    waits = Folded((tmp_path / "x.folded").read_text())
    mine = {
        stack: ns
        for stack, ns in waits.stacks.items()
        if stack[0] == "chain-C" and "c_waits" in stack
    }
    assert sum(ns for stack, ns in mine.items() if stack[-1] == "chain-B_[w]") > 0.3 * SECOND


# No map is drained before the end.
FULL = """
import functools
from bpflame.profilers import recorder, sched, waits
recorder._DRAIN_SECONDS = 3600.0
waits.WaitCounts.pressed = lambda self: False
"""
ROOM = FULL + "sched.Room = functools.partial(waits.Room, {}={})\n"
THREADS = FULL + "sched.thread_entries = lambda: {}\n"


def printed(text: str, what: str) -> dict[str, int]:
    """Of lines ``name lives=3 ns=5`` the numbers by name."""
    return {
        words[0]: int(value)
        for words in map(str.split, text.splitlines())
        for key, _, value in (word.partition("=") for word in words[1:])
        if key == what
    }


def check_lives(waits: Folded, text: str) -> None:
    """That nobody waited longer than it lived: samples/workloads/thread_life.c says how long."""
    lived, found = printed(text, "ns"), Counter[str]()
    for stack, ns in waits.stacks.items():
        found[stack[0]] += ns
    assert lived["life-child"] > 0
    for name, times in (("life-child", 1), ("life-thread", 1), ("life-killed", 3)):
        assert found[name] <= times * lived[name], name
    assert found["life-executes"] + found["life-executed"] <= 3 * lived["life-executes"]


@pytest.mark.parametrize(
    ("patch", "counter", "says"),
    [
        (ROOM.format("counts", 16), "lost_samples", r"; [\d,]+ lost \(\d+\.\d%\);"),
        (ROOM.format("stacks", 8), "lost_stacks", "stacks without room"),
        (ROOM.format("links", 8), "lost_wakers", "wakers without room"),
        (ROOM.format("chains", 8), "lost_wakers", "wakers without room"),
        (THREADS.format(8), "lost_threads", "threads without room"),
    ],
    ids=["counts", "stacks", "links", "chains", "threads"],
)
def test_a_full_map_is_reported(
    workloads: Path, tmp_path: Path, patch: str, counter: str, says: str
) -> None:
    """Time is lost or has no names then, and it never grows."""
    out = tmp_path / "x.folded"
    command = ("--", workloads / "fp" / "thread_life", "1")
    result = patched(patch, "chain", "--json", "-o", out, *command)
    assert result.code == 0, result.stderr
    summary = json.loads(result.stdout)
    counters = summary["counters"]
    assert counters[counter] > 0
    assert re.search(says, result.stderr), result.stderr
    others = {"lost_samples", "lost_stacks", "lost_wakers", "lost_threads"} - {counter}
    assert not any(counters.get(name) for name in others)
    waits = Folded(out.read_text())
    if counter != "lost_threads":  # see the next test
        check_lives(waits, result.stderr)
    assert (counters["lost_value"] > 0) == (counter == "lost_samples")
    frames = {name for stack in waits.stacks for name in stack}
    assert ("[stack lost]" in frames) == (counter == "lost_stacks")
    if counter == "lost_wakers":
        unknown = sum(ns for stack, ns in waits.stacks.items() if "[unknown waker]_[w]" in stack)
        assert unknown > 0
        assert counters["unknown_waker_ns"] > 0


def test_who_found_no_room_was_not_away_since_the_beginning(
    workloads: Path, tmp_path: Path
) -> None:
    """What the command starts is all new."""
    out = tmp_path / "x.folded"
    command = ("--", workloads / "fp" / "thread_life", "1")
    result = patched(THREADS.format(11), "offcpu", "--json", "-o", out, *command)
    assert result.code == 0, result.stderr
    counters = json.loads(result.stdout)["counters"]
    assert counters["lost_threads"] > 0
    assert counters["partial_ns"] == counters["unfinished_waits"] == 0
    check_lives(Folded(out.read_text()), result.stderr)


def test_maps_that_are_small_are_drained_in_time(workloads: Path, tmp_path: Path) -> None:
    """What would fill them ten times over."""
    patch = (
        "import functools\n"
        "from bpflame.profilers import sched, waits\n"
        "small = dict(counts=512, stacks=512, links=512, chains=512)\n"
        "sched.Room = functools.partial(waits.Room, **small)\n"
    )
    out = tmp_path / "x.folded"
    command = ("--", workloads / "fp" / "thread_life", "2")
    result = patched(patch, "chain", "--json", "-o", out, *command)
    assert result.code == 0, result.stderr
    counters = json.loads(result.stdout)["counters"]
    assert not any(
        counters.get(f"lost_{name}") for name in ("samples", "stacks", "wakers", "threads")
    )
    check_lives(Folded(out.read_text()), result.stderr)


def test_nobody_waits_longer_than_the_recording_is(workloads: Path, tmp_path: Path) -> None:
    """Of the whole system, while threads come and go from before the beginning to after the end."""
    out = tmp_path / "x.folded"
    with background(workloads / "fp" / "thread_life", "60"):
        result = bpflame("offcpu", "-d", "1", "--by", "tid", "--json", "-o", out)
    assert result.code == 0, result.stderr
    duration = json.loads(result.stdout)["duration"] * SECOND
    waits: Counter[str] = Counter()
    for root, ns in Folded(out.read_text()).roots().items():
        waits[root.rpartition("/")[2]] += ns  # a thread can change its name
    assert len(waits) > 50
    assert max(waits.values()) < duration + 0.1 * SECOND


def test_who_dies_while_the_sleepers_are_counted_does_not_wait_on(tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    with background("sleep", "60") as victim:
        patch = (
            "import os, time\n"
            "from bpflame.profilers.sleepers import Sleepers\n"
            "read = Sleepers.read\n"
            "def read_and_kill(self, wanted=None):\n"
            "    found = read(self, wanted)\n"
            f"    os.kill({victim.pid}, 9)\n"
            "    time.sleep(0.2)\n"
            "    return found\n"
            "Sleepers.read = read_and_kill\n"
        )
        result = patched(patch, "offcpu", "-p", str(victim.pid), "-d", "1", "-o", out)
        assert victim.wait() == -signal.SIGKILL
    assert result.code == 0, result.stderr
    assert Folded(out.read_text()).total < 0.5 * SECOND


def test_two_recordings_at_once(workloads: Path, tmp_path: Path) -> None:
    with background(workloads / "fp" / "self_timer", "60") as load:
        outs = [tmp_path / f"{i}.folded" for i in range(2)]
        both = [Running("offwake", "-p", str(load.pid), "-o", out) for out in outs]
        time.sleep(1)
        results = [running.finish(after=0) for running in both]
    for result, out in zip(results, outs, strict=True):
        assert result.code == 0, result.stderr
        waits = Folded(out.read_text())
        assert 40 < waits.share("wait_timerfd") < 60
        assert waits.total > 0.7 * SECOND
        assert sum(ns for stack, ns in waits.stacks.items() if stack[-1] == "[timer]_[w]") > (
            0.7 * waits.total
        )


# Arguments: how many threads, and how many milliseconds to live when they are there; 0 for ever.
CROWD = r"""
#include "waiting.h"

#include <pthread.h>

VISIBLE void *blocked_here(void *unused);

VISIBLE void *blocked_here(void *unused)
{
    for (;;)
        system_call(SYS_ppoll, 0, 0, 0, 0);
    return unused;
}

int main(int count, char **arguments)
{
    pthread_attr_t small;
    pthread_t thread;
    int life = atoi(arguments[2]);

    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 15);
    for (int i = atoi(arguments[1]); i; i--) {
        if (pthread_create(&thread, &small, blocked_here, NULL))
            return 1;
    }
    puts("ready");
    fflush(stdout);
    if (!life)
        blocked_here(NULL);
    usleep(life * 1000);
    return count != 3;
}
"""

# Two threads on one CPU that wake each other, so many times; it begins when it is told to.
PING_PONG = r"""
#define _GNU_SOURCE
#include "waiting.h"

#include <pthread.h>
#include <sched.h>

static int there[2], back[2], rounds;

static void *answer(void *unused)
{
    struct waits waits = {0, 0};

    for (int i = 0; i < rounds; i++)
        send_token(back[1], receive(&waits, there[0]));
    return unused;
}

int main(int count, char **arguments)
{
    struct waits waits = {0, 0};
    cpu_set_t one;
    pthread_t thread;

    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof(one), &one);
    rounds = atoi(arguments[count - 1]);
    if (pipe(there) || pipe(back) || pthread_create(&thread, NULL, answer, NULL))
        return 1;
    receive(&waits, 0);
    for (int i = 0; i < rounds; i++) {
        send_token(there[1], 'x');
        receive(&waits, back[0]);
    }
    return pthread_join(thread, NULL);
}
"""

Build = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("programs")
    headers = f"-I{ROOT}/samples/workloads"

    def program(name: str, source: str) -> Path:
        flags = ("-O1", "-fno-omit-frame-pointer", "-pthread", headers, "-x", "c", "-")
        subprocess.run(["gcc", *flags, "-o", folder / name], input=source, text=True, check=True)
        return folder / name

    return program


CROWD_SIZE = 5000


def test_a_crowd_that_sleeps_is_seen_to_the_last(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    with background(build("crowd", CROWD), str(CROWD_SIZE), "0") as crowd:
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        result = bpflame("chain", "-p", str(crowd.pid), "-d", "1", "--json", "-o", out)
    assert result.code == 0, result.stderr
    summary = json.loads(result.stdout)
    counters = summary["counters"]
    assert counters["unfinished_waits"] == CROWD_SIZE + 1
    assert not any(value for name, value in counters.items() if name.startswith("lost_"))
    assert f"{CROWD_SIZE + 1:,} {UNFINISHED}" in result.stderr
    each = summary["total"] / (CROWD_SIZE + 1) / SECOND
    assert 0.5 < each < summary["duration"] + 0.5  # it takes a moment to note them all
    assert Folded(out.read_text()).share("blocked_here") > 99


def test_a_crowd_that_comes_and_goes_while_it_is_recorded(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    command = ("--", build("crowd", CROWD), str(CROWD_SIZE), "300")
    result = bpflame("offcpu", "--by", "tid", "--json", "-o", out, *command)
    assert result.code == 0, result.stderr
    counters = json.loads(result.stdout)["counters"]
    assert not any(value for name, value in counters.items() if name.startswith("lost_"))
    assert counters["unfinished_waits"] == 0
    blocked: Counter[str] = Counter()
    for stack, ns in Folded(out.read_text()).stacks.items():
        if "blocked_here" in stack and stack[-1] == "[blocked]":
            blocked[stack[0]] += ns
    assert CROWD_SIZE * 0.99 < len(blocked) <= CROWD_SIZE
    assert min(blocked.values()) > 0.25 * SECOND


ROUNDS = 3000


class PerfCrashedError(Exception):
    """As perf 6.1 does now and then, with nobody else there too."""


@contextlib.contextmanager
def perf_recording(data: Path) -> Iterator[None]:
    """While perf records the switches of all CPUs."""
    ready = data.with_suffix(".ready")
    ready.unlink(missing_ok=True)
    options = f"-q -m 4096 -a -e sched:sched_switch -o {data}"
    workload = f"touch {ready}; exec sleep 60"
    script = (
        "mount -t tracefs tracefs /sys/kernel/tracing && "
        f"exec perf record {options} -- sh -c '{workload}'"
    )
    perf = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline and perf.poll() is None:
            time.sleep(0.01)
        if not ready.exists():
            raise PerfCrashedError("it did not begin")
        yield
    finally:
        perf.send_signal(signal.SIGINT)
        _, err = perf.communicate(timeout=60)
    if perf.returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
        raise PerfCrashedError(err.decode())


def count_switches(program: Path, folder: Path, record: bool) -> tuple[int, dict[str, Any]]:
    """How many switches from a program perf sees, and what bpflame tells of the same ones."""
    data, summary = folder / "perf.data", {}
    with background(program, str(ROUNDS)) as pair, perf_recording(data):
        if record:
            out = folder / "x.folded"
            running = Running("offcpu", "-p", str(pair.pid), "--json", "-o", out)
        pair.communicate(b"x")
        if record:
            summary = json.loads(running.finish(after=0).stdout)
    script = ("perf", "script", "-i", data, "-F", "comm")
    done = subprocess.run(script, capture_output=True, check=False)
    if done.returncode:
        raise PerfCrashedError(done.stderr.decode())
    lines = done.stdout.splitlines()
    return sum(line.strip() == program.name.encode() for line in lines), summary


def test_perf_has_its_samples_all_the_same(build: Build, tmp_path: Path) -> None:
    """At the tracepoint that both use."""
    program = build("pingpong", PING_PONG)

    def switches(record: bool) -> tuple[int, dict[str, Any]]:
        for _ in range(4):
            with contextlib.suppress(PerfCrashedError):
                return count_switches(program, tmp_path, record)
        return count_switches(program, tmp_path, record)

    alone, _ = switches(False)
    beside, summary = switches(True)
    assert 2 * ROUNDS * 0.99 < alone < 2 * ROUNDS * 1.2
    assert 2 * ROUNDS * 0.99 < beside < 2 * ROUNDS * 1.2
    counters = summary["counters"]
    assert counters["samples"] + counters.get("missed_ends", 0) == pytest.approx(beside, rel=0.02)
    assert not any(value for name, value in counters.items() if name.startswith("lost_"))
    assert summary["total"] < 2 * (summary["duration"] + 0.1) * SECOND
