"""Workloads whose waits are known, recorded with real BPF: the profile must tell these."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recording import ROOT, Running, Wait, Waits, printed, record_waits, total, truth

pytestmark = pytest.mark.bpf

SOURCES = ROOT / "samples" / "workloads"
SLEEPS = {name: f"path_{name.removeprefix('sleep_')}" for name in truth(SOURCES / "sleeper.c")}
"""The functions that sleep, and their callers."""
A_ROUND = "0.3"
"""Seconds of sleeper that give all its sleeps once."""
EXACT = 0.5
"""How far a sum may be off, in percent."""


def holds(what: str, measured: float, expected: float, within: float) -> None:
    """Hold a measure to its truth; with ``pytest -rP`` all of them are shown."""
    text = f"{what}: {measured:,.2f}, expected {expected:,.2f} to within {within:,.2f}"
    print(text)
    assert abs(measured - expected) <= within, text


def at_least(what: str, measured: float, expected: float) -> None:
    text = f"{what}: {measured:,.3f}, expected {expected:,} or more"
    print(text)
    assert measured >= expected, text


def at_most(what: str, measured: float, expected: float) -> None:
    text = f"{what}: {measured:,.3f}, expected {expected:,} or less"
    print(text)
    assert measured <= expected, text


def sums(what: str, measured: int, expected: int, percent: float = EXACT) -> None:
    """Hold nanoseconds to what a workload measured itself."""
    holds(f"{what}, ms", measured / 1e6, expected / 1e6, expected / 1e6 * percent / 100)


def share(what: str, part: list[Wait], whole: list[Wait], percent: float) -> None:
    """Hold waits to be at least so much of the time of others."""
    assert whole, f"{what}: no such waits"
    of = total(whole)
    at_least(f"{what}, % of {of / 1e6:,.1f} ms", 100 * total(part) / of, percent)


def woken_by_timers(waits: list[Wait]) -> None:
    """Hold the wakers of blocked threads to be timers, and nobody else ever.

    What a timer wakes while an agent runs unseen, nobody is seen to wake.
    """
    share("by [timer]", [wait for wait in waits if wait.woken_by("[timer]")], waits, 99)
    names = {wait.wakers[0][-1] for wait in waits}
    assert names <= {"[timer]", "[unknown waker]"}, f"expected [timer] alone, found {names}"


def exact(record: Callable[[], Waits], check: Callable[[Waits], None]) -> None:
    """Check a recording whose sums are exact only if no switch was missed; else check another one.

    There are virtual machines with an agent during which no tracepoint fires: the switch from it to
    the next thread is not seen, nor is whom an interrupt wakes meanwhile.
    """
    recorded = record()
    try:
        check(recorded)
    except AssertionError:
        if not recorded.counters["missed_ends"]:
            raise
        print(f"{recorded.counters['missed_ends']} ends were missed: once more")
        check(record())


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs in the background; those that still run are ended, with their children."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str | Path) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, start_new_session=True)
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until_asleep(pid: int, comm: str) -> None:
    for _ in range(1000):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(") ")
        if rest.startswith("S ") and name.endswith(f"({comm}"):
            return
        time.sleep(0.005)
    raise AssertionError(f"{comm} does not sleep")


def cpus() -> list[str]:
    return [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]


def check_sleeps(
    recorded: Waits, names: tuple[str, ...] = tuple(SLEEPS), comm: str = "sleeper"
) -> None:
    """Hold the paths of sleeper to what it printed."""
    for name in names:
        path = ("main", "take_a_path", SLEEPS[name], name)
        waits = recorded.of(comm, name)
        assert waits == recorded.of(comm, *path), f"{name} is not below {path}"
        sums(name, total(waits), recorded.printed[name]["ns"])
        share(f"{name} in nanosleep", recorded.of(comm, name, "*nanosleep"), waits, 98)


def test_sleeps_are_as_long_as_they_were(workloads: Path, tmp_path: Path) -> None:
    exact(
        lambda: record_waits("offcpu", tmp_path, "--", workloads / "fp" / "sleeper", "1"),
        check_sleeps,
    )


def test_who_waits_for_a_mutex_waits_for_who_releases_it(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits("offwake", tmp_path, "--", workloads / "fp" / "convoy", "2")
    names = {f"convoy-{i}" for i in range(3)}
    for name in sorted(names):
        blocked = recorded.of(name, "run_convoy", how="blocked")
        acquire = recorded.of(
            name, "run_convoy", "lock_and_work", "acquire", "*futex_wait", how="blocked"
        )
        share(f"{name} in acquire", acquire, blocked, 99)
        released = [
            wait
            for wait in acquire
            for other in names - {name}
            if wait.woken_by(other, "*futex_wake", "release", "lock_and_work", "run_convoy")
        ]
        share(f"{name} woken in release", released, acquire, 99)


CHAIN = (
    ("c_sends", "run_c", "main", "chain-C"),
    ("b_sends", "run_b", "main", "chain-B"),
    ("a_sends", "run_a", "main", "chain-A"),
    ("[timer]",),
)
"""Who ends the waits of chain-D, of chain-C and so on."""


def check_chains(blocked: list[Wait], links: tuple[tuple[str, ...], ...]) -> None:
    """Hold chains to lead from link to link, and mostly to the last.

    On a busy machine one is delayed at times until the one before it need not wait any more: there
    a chain rightly ends.
    """
    begun = [
        wait for wait in blocked if any(wait.chain(*links[: n + 1]) for n in range(len(links)))
    ]
    names = " ".join(link[-1] for link in links)
    share(f"{blocked[0].stack[0]}, then {names}, to some link", begun, blocked, 99)
    whole = [wait for wait in blocked if wait.chain(*links)]
    share(f"{blocked[0].stack[0]}, then {names}, to the last", whole, blocked, 75)


def test_a_chain_leads_to_the_timer_at_its_end(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits("chain", tmp_path, "--", workloads / "fp" / "pipe_chain", "2")
    for i, (name, waits) in enumerate((("D", "d_waits"), ("C", "c_waits"), ("B", "b_waits"))):
        check_chains(recorded.of(f"chain-{name}", "main", waits, how="blocked"), CHAIN[i:])


def test_the_next_waker_is_who_sends(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits("offwake", tmp_path, "--", workloads / "fp" / "pipe_chain", "2")
    for i, (name, waits) in enumerate((("D", "d_waits"), ("C", "c_waits"), ("B", "b_waits"))):
        blocked = recorded.of(f"chain-{name}", how="blocked")
        path = ("main", f"run_{name.lower()}", waits, "*pipe_read")
        found = [
            wait
            for wait in blocked
            if wait.has(*path) and wait.woken_by(CHAIN[i][-1], "*pipe_write", *CHAIN[i][:-1])
        ]
        share(f"chain-{name} woken by {CHAIN[i][0]}", found, blocked, 99.5)


def test_who_sends_is_who_wakes(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits("wakeup", tmp_path, "--", workloads / "fp" / "pipe_chain", "1")
    for woken, waker, path in zip("DCB", "CBA", CHAIN, strict=False):
        # The waker's stack, from its root to whom it woke.
        waits = [wait for wait in recorded.waits if wait.stack[-1] == f"chain-{woken}"]
        path = (f"chain-{waker}", *path[-2::-1], "*pipe_write")
        found = [wait for wait in waits if wait.stack[0] == path[0] and wait.has(*path)]
        share(f"chain-{woken} woken in {path}", found, waits, 99)
        blocked = recorded.printed[f"{woken.lower()}_waits"]["ns"]
        at_most(f"chain-{woken} woken, ms", total(waits) / 1e6, blocked / 1e6)


def test_a_chain_is_cut_at_the_depth_that_was_asked_for(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits(
        "chain", tmp_path, "--depth", "2", "--", workloads / "fp" / "pipe_chain", "1"
    )
    blocked = recorded.of("chain-D", "d_waits", how="blocked")
    check_chains(blocked, (*CHAIN[:2], ("[deeper]",)))
    ends = [wait for wait in recorded.waits if len(wait.wakers) > 3]
    assert not ends, f"more than two wakers and an end: {ends}"


def test_tar_and_gzip_wait_for_each_other(tmp_path: Path) -> None:
    """As distributions build them, without frame pointers: the kernel's part is to be right."""
    data = tmp_path / "data"
    data.mkdir()
    for i in range(60):
        (data / str(i)).write_bytes(os.urandom(500_000))
    command = f"tar cf - -C {tmp_path} data%s | gzip -c > /dev/null"
    subprocess.run(["sh", "-c", command % "/0"], check=True)  # both programs are in memory then
    recorded = record_waits("offwake", tmp_path, "--", "sh", "-c", command % "")
    for one, other, doing, undoing in (
        ("gzip", "tar", "*pipe_read", "*pipe_write"),
        ("tar", "gzip", "*pipe_write", "*pipe_read"),
    ):
        blocked = recorded.of(one, how="blocked")
        found = [
            wait for wait in blocked if wait.has("*vfs_", doing) and wait.woken_by(other, undoing)
        ]
        share(f"{one} in {doing} woken by {other} in {undoing}", found, blocked, 80)


def test_who_is_preempted_is_not_blocked(workloads: Path, tmp_path: Path) -> None:
    def check(recorded: Waits) -> None:
        times = [recorded.printed[f"busy-{name}"] for name in "AB"]
        used = sum(time_of["cpu_ns"] / time_of["wall_ns"] for time_of in times)
        others = 100 * max(1 - used, 0)  # other programs there, and other virtual machines
        for name, time_of in zip(("busy-A", "busy-B"), times, strict=True):
            off = recorded.ns(name, "run_busy")
            wall = time_of["wall_ns"]
            holds(f"{name} off the CPU, %", 100 * off / wall, 50, 5 + others)
            sums(f"{name} off the CPU", off, wall - time_of["cpu_ns"], 2 + others)
            share(
                f"{name} preempted in busy_loop",
                recorded.of(name, "main", "run_busy", "busy_loop", how="preempted"),
                recorded.of(name, "run_busy"),
                95,
            )
            blocked = recorded.ns(name, "run_busy", how="blocked")
            at_most(f"{name} blocked, %", 100 * blocked / wall, 0.1)

    exact(
        lambda: record_waits("offcpu", tmp_path, "--", workloads / "fp" / "busy_pair", "2"), check
    )


def test_time_on_the_cpu_and_off_it_add_up(workloads: Path, tmp_path: Path) -> None:
    def check(recorded: Waits) -> None:
        stolen = recorded.printed["stolen"]["ns"]
        for name in (f"conserve-{i}" for i in range(4)):
            wall, cpu = (recorded.printed[name][key] for key in ("wall_ns", "cpu_ns"))
            off = recorded.ns(name, "run_worker", "conserve_body")
            within = 1 + 100 * stolen / wall
            sums(f"{name}, {cpu / 1e6:,.1f} on and {off / 1e6:,.1f} off", cpu + off, wall, within)

    exact(lambda: record_waits("offcpu", tmp_path, "--", workloads / "fp" / "conserve", "2"), check)


def test_timers_are_wakers_whomever_they_interrupt(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits("offwake", tmp_path, "--", workloads / "fp" / "self_timer", "3")
    waited = recorded.ns("self_timer", "main", "take_a_way")
    for name, percent in truth(SOURCES / "self_timer.c").items():
        found = recorded.ns("self_timer", "main", "take_a_way", name)
        holds(f"{name}, % of {waited / 1e6:,.1f} ms", 100 * found / waited, percent, 1)
    woken_by_timers(recorded.of("self_timer", "take_a_way", how="blocked"))


@pytest.fixture(scope="module")
def disk_file(workloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that is read from a disk, and waited for."""
    program, tried = workloads / "fp" / "direct_read", []
    for folder in (workloads, Path("/var/tmp"), tmp_path_factory.mktemp("disk"), Path.home()):
        path = folder / f"bpflame-test-{os.getpid()}"
        try:
            with path.open("wb") as file:
                file.write(os.urandom(1 << 24))
                os.fsync(file.fileno())
            pid = os.posix_spawn(program, [program, "0.1", path], os.environ)
            _, status, usage = os.wait4(pid, 0)
            if status == 0 and usage.ru_nvcsw > 10:
                yield path
                return
            tried.append(f"{folder}: status {status}, {usage.ru_nvcsw} waits")
        except OSError as error:
            tried.append(str(error))
        finally:
            path.unlink(missing_ok=True)
    pytest.fail(f"no folder whose files are read from a disk with O_DIRECT: {tried}")


def test_who_is_interrupted_has_woken_nobody(
    workloads: Path, tmp_path: Path, start: Start, disk_file: Path
) -> None:
    for cpu in cpus():
        start("taskset", "-c", cpu, workloads / "fp" / "three_paths", "30")
    command = ("taskset", "-c", cpus()[0], workloads / "fp" / "direct_read", "2", disk_file)
    recorded = record_waits("offwake", tmp_path, "--", *command)
    blocked = recorded.of("direct_read", "read_block", how="blocked")
    named = {wait.wakers[0][-1] for wait in recorded.waits if wait.wakers}
    assert "three_paths" not in named, f"it only computes, and is a waker among {named}"
    by_disk = [
        wait
        for wait in blocked
        if wait.wakers[0][-1] in ("[irq]", "[softirq]") or "ret_from_fork" in wait.wakers[0]
    ]
    share(f"read_block, woken by {named}", by_disk, blocked, 99)
    share(
        "blocked in read_block",
        recorded.of("direct_read", "main", "read_at_random", "read_block", how="blocked"),
        recorded.of("direct_read", "main", how="blocked"),
        99,
    )
    # It shares its CPU with a program that was interrupted whenever a read was done.
    at_least("run queue, ms", recorded.ns("direct_read", "read_block", how="run queue") / 1e6, 1)


@pytest.mark.parametrize("question", ["offcpu", "offwake"])
def test_time_belongs_to_the_stack_of_who_waits(
    workloads: Path, tmp_path: Path, start: Start, question: str
) -> None:
    """Not to that of the thread that came or went when the wait ended."""
    comm = f"sleeper-{os.getpid()}"
    program = tmp_path / comm
    program.symlink_to(workloads / "fp" / "sleeper")

    def record() -> Waits:
        path = tmp_path / "all.folded"
        running = Running(question, "-n", f"^{comm}$", "--json", "-o", path)
        for cpu in cpus():
            start("taskset", "-c", cpu, workloads / "fp" / "three_paths", "1.5")
        text = start(program, "1").communicate(timeout=30)[0].decode()
        recorded = Waits(running.finish(signal.SIGINT, after=0), path)
        recorded.printed = printed(text)
        return recorded

    def check(recorded: Waits) -> None:
        assert {wait.stack[0] for wait in recorded.waits} == {comm}
        blocked = recorded.of(comm, how="blocked")
        elsewhere = [wait for wait in blocked if not wait.has("*nanosleep")]
        away = 100 * total(elsewhere) / total(blocked)
        at_most(f"blocked elsewhere than in nanosleep, % of {total(blocked):,} ns", away, 0.5)
        check_sleeps(recorded, comm=comm)
        if question == "offwake":
            woken_by_timers(recorded.of(comm, "*nanosleep", how="blocked"))

    exact(record, check)


def test_ids_that_are_used_again_have_no_waits_of_before(workloads: Path, tmp_path: Path) -> None:
    recorded = record_waits("offcpu", tmp_path, "--", workloads / "fp" / "thread_life", "2")
    wall = recorded.summary["duration"] * 1e9
    for wait in recorded.waits:
        assert 0 < wait.ns <= 9 * wall, f"of nine threads at most, in {wall:,.0f} ns: {wait}"
    assert recorded.printed["failed"]["lives"] == 0
    at_least("ids used again", recorded.printed["reused"]["ids"], 1)
    # Names in the profile, threads of each life.
    for names, threads in (
        (("life-child",), 1),
        (("life-thread",), 1),
        (("life-killed",), 3),
        (("life-executes", "life-executed"), 3),
    ):
        lives = recorded.printed[names[0]]
        waited = sum(recorded.ns(name) for name in names)
        at_most(f"{names}, ms", waited / 1e6, threads * lives["ns"] / 1e6)
    for name in ("life-child", "life-thread"):
        # Each life slept for a millisecond or more.
        slept = recorded.ns(name, "short_sleep", "*nanosleep")
        at_least(f"{name} asleep, ms", slept / 1e6, 0.99 * recorded.printed[name]["lives"])


def test_a_wait_without_begin_and_end_is_seen_in_part(
    workloads: Path, tmp_path: Path, start: Start
) -> None:
    process = start("sleep", "60")
    until_asleep(process.pid, "sleep")
    recorded = record_waits("offcpu", tmp_path, "-p", str(process.pid), "-d", "1")
    (wait,) = recorded.waits
    assert (wait.how, wait.partial) == ("blocked", True)
    assert wait.has("*nanosleep", "*schedule"), wait.stack
    sums("in sleep", wait.ns, 1_000_000_000, 5)


def test_the_parts_at_both_ends_make_up_the_recording(
    workloads: Path, tmp_path: Path, start: Start
) -> None:
    process = start(workloads / "fp" / "sleeper", "60")
    until_asleep(process.pid, "sleeper")
    target = ("-p", str(process.pid), "-d", "1")

    def check(recorded: Waits) -> None:
        partial = [wait for wait in recorded.waits if wait.partial]
        # Of one that comes on a CPU before it has been noted, no stack is known.
        at_most(
            "in part, without a stack, ms",
            total(wait for wait in partial if len(wait.stack) == 1) / 1e6,
            20,
        )
        known = [wait for wait in partial if len(wait.stack) > 1]
        assert known, f"it slept at the begin and at the end; found only: {recorded.waits}"
        for wait in known:
            assert wait.how in ("blocked", "run queue"), wait
            paths = [("main", "take_a_path", path, name) for name, path in SLEEPS.items()]
            assert any(wait.has(*path, "*nanosleep", "*schedule") for path in paths), wait.stack
        # Two of its longest sleeps, or a little more.
        at_most("in part, ms", total(partial) / 1e6, 250)
        sums("asleep", recorded.ns("sleeper"), 1_000_000_000, 5)

    exact(lambda: record_waits("offcpu", tmp_path, *target), check)
    whole = record_waits("offcpu", tmp_path, "--whole-only", *target)
    assert whole.waits
    assert not any(wait.partial for wait in whole.waits), whole.waits


def test_whole_waits_only_leave_out_the_rest(tmp_path: Path, start: Start) -> None:
    process = start("sleep", "60")
    until_asleep(process.pid, "sleep")
    recorded = record_waits("offcpu", tmp_path, "--whole-only", "-p", str(process.pid), "-d", "0.5")
    assert recorded.waits == []


@pytest.mark.parametrize("workload", ["pipe_chain", "convoy", ""])
def test_kernel_stacks_are_recognised_exactly(
    workloads: Path, tmp_path: Path, start: Start, workload: str
) -> None:
    command: tuple[str | Path, ...] = ("--", workloads / "fp" / workload, "1")
    if not workload:  # the whole system, in which something waits
        start(workloads / "fp" / "pipe_chain", "30")
        command = ("-d", "1")
    recorded = record_waits("chain", tmp_path, "--check-stacks", *command)
    at_least("recognised", recorded.counters["recalled"], 1)
    holds("mistaken", recorded.counters["mistaken"], 0, 0)


def test_a_command_that_executes_another_waits_in_that_one(workloads: Path, tmp_path: Path) -> None:
    def check(recorded: Waits) -> None:
        check_sleeps(recorded)
        for name in SLEEPS:
            assert recorded.of("sh", name) == [], f"{name} is not a function of sh"

    command = f"exec {workloads / 'fp' / 'sleeper'} {A_ROUND}"
    exact(lambda: record_waits("offcpu", tmp_path, "--", "sh", "-c", command), check)


def test_one_wait_in_four_counts_for_four(workloads: Path, tmp_path: Path) -> None:
    """Of some ten thousand, drawn: the sum has a standard deviation below 4 %."""
    recorded = record_waits(
        "offcpu", tmp_path, "--sample", "1/4", "--", workloads / "fp" / "conserve", "2"
    )
    names = [f"conserve-{i}" for i in range(4)]
    times = [recorded.printed[name] for name in names]
    off = sum(time_of["wall_ns"] - time_of["cpu_ns"] for time_of in times)
    found = sum(recorded.ns(name, "conserve_body") for name in names)
    sums("by a sample of one in four", found, off, 25)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (("-m", "80ms"), ("sleep_long",)),
        (("-m", "3ms", "-M", "80ms"), ("sleep_middle", "sleep_short")),
        (("-M", "30ms"), ("sleep_short",)),
        (("--state", "D"), ()),
    ],
)
def test_only_waits_that_were_asked_for_count(
    workloads: Path, tmp_path: Path, options: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    def check(recorded: Waits) -> None:
        check_sleeps(recorded, kept)
        for name in SLEEPS.keys() - set(kept):
            # On the way there it may be preempted, for a short while.
            slept = recorded.ns("sleeper", name, "*nanosleep", how="blocked")
            holds(f"{name}, ms", slept / 1e6, 0, 0)

    command = ("--", workloads / "fp" / "sleeper", A_ROUND)
    exact(lambda: record_waits("offcpu", tmp_path, *options, *command), check)


def test_time_that_is_not_told_apart_is_the_same_time(workloads: Path, tmp_path: Path) -> None:
    def check(recorded: Waits) -> None:
        check_sleeps(recorded)
        assert {(wait.how, wait.partial) for wait in recorded.waits} == {("", False)}

    command = ("--", workloads / "fp" / "sleeper", A_ROUND)
    exact(lambda: record_waits("offcpu", tmp_path, "--no-split", *command), check)
