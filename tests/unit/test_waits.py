"""Waits in user space: how they begin, what the program's sums become, and those without an end."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.profile import BLOCKED, PARTIAL, PREEMPTED, RUN_QUEUE, Task
from bpflame.profilers import counting, waits
from bpflame.profilers.assemble import uncertain
from bpflame.profilers.counting import WHO, Who
from bpflame.profilers.sleepers import Sleeper
from bpflame.profilers.waits import STATES, Room, State, WaitCounts, WaitRules
from bpflame.raw import Context, RawSample

NOLOAD, NEW, WAKEKILL, RTLOCK = 0x400, 0x800, 0x100, 0x1000  # include/linux/sched.h


@pytest.fixture(autouse=True)
def threads_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads but number 404 are there when the recording ends."""
    monkeypatch.setattr(waits, "exists", lambda tid: tid != 404)


@pytest.mark.parametrize(
    ("bits", "state"),
    [
        (0, State.RUNNABLE),
        (0x1, State.INTERRUPTIBLE),
        (0x2, State.UNINTERRUPTIBLE),
        (0x2 | WAKEKILL, State.UNINTERRUPTIBLE),
        (0x2 | NOLOAD, State.IDLE),
        (0x2 | NOLOAD | WAKEKILL, State.IDLE),
        (0x4, State.STOPPED),
        (0x4 | WAKEKILL, State.STOPPED),
        (0x8, State.TRACED),
        (0x8 | WAKEKILL, State.TRACED),
        (0x40, State.PARKED),
        (RTLOCK, State.UNINTERRUPTIBLE),
        (NOLOAD, State.UNINTERRUPTIBLE),
    ],
)
def test_a_state_by_its_bits(bits: int, state: State) -> None:
    assert State.of(bits) is state


@given(st.integers(0, 0xFFFF))
def test_all_states_but_the_runnable_ones_want_a_wakeup(bits: int) -> None:
    assert State.of(bits).blocking == (bits != 0)


def test_every_state_has_a_letter() -> None:
    assert sorted(state for states in STATES.values() for state in states) == sorted(State)


class FakeMap:
    """A map in memory, with the sizes that user space asks for."""

    def __init__(self, key_size: int, value_size: int) -> None:
        self.key_size, self.value_size = key_size, value_size
        self.content: dict[bytes, bytes] = {}

    def update(self, key: bytes, value: bytes) -> None:
        assert (len(key), len(value)) == (self.key_size, self.value_size)
        self.content[key] = value

    def insert(self, key: bytes, value: bytes) -> bool:
        if key in self.content:
            return False
        self.update(key, value)
        return True

    def lookup(self, key: bytes) -> bytes | None:
        return self.content.get(key)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        if self.content:
            yield b"".join(self.content), b"".join(self.content.values())

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self.entries()
        self.content.clear()


class FakeProgram:
    """What stands for a loaded program: its maps by name."""

    def __init__(self) -> None:
        self.maps: dict[str, FakeMap] = {}

    def map_fd(self, name: str) -> tuple[FakeProgram, str]:
        return self, name


class FakeCounters:
    def __init__(self, fd: object, names: tuple[str, ...]) -> None:
        self.totals = dict.fromkeys(names, 0)

    def total(self, name: str) -> int:
        return self.totals[name]


def fake_map(fd: tuple[FakeProgram, str], key_size: int, value_size: int) -> FakeMap:
    program, name = fd
    return program.maps.setdefault(name, FakeMap(key_size, value_size))


class NoSpaces:
    def find(self, pid: int, born: int) -> None:
        return None


WAITER = Who(0, 0, 10, 11, b"waiter".ljust(16, b"\0"))
NEAR = Who(0, 0, 20, 21, b"near".ljust(16, b"\0"))
FAR = Who(0, 0, 30, 31, b"far".ljust(16, b"\0"))
END = 1_000_000
NONE, LOST, UNKNOWN = 0, 1, 2
"""Ids of chains; as ids of stacks, the first two mean the same."""


class Recording:
    """The maps of a program that user space drains."""

    def __init__(self, **rules: object) -> None:
        self.rules = dataclasses.replace(WaitRules(), **rules)
        self.program = FakeProgram()
        self.counts = WaitCounts(self.program, self.rules, Room())
        self.counts.end = END

    def map(self, name: str) -> FakeMap:
        return self.program.maps[name]

    def add_stack(self, number: int, *ips: int) -> int:
        content = struct.pack("<128Q", len(ips), *ips, *[0] * (127 - len(ips)))
        self.map("stacks").update(number.to_bytes(8, "little"), content)
        return number

    def add_link(
        self, number: int, who: Who, context: int = 0, user: int = 0, kernel: int = 0
    ) -> int:
        content = struct.pack("<QQ", user, kernel) + WHO.pack(*who) + struct.pack("<II", context, 0)
        self.map("links").update(number.to_bytes(8, "little"), content)
        return number

    def chain(self, *links: int, end: int = 0) -> bytes:
        depth = self.rules.depth
        return struct.pack(f"<{depth}QII", *links, *[0] * (depth - len(links)), len(links), end)

    def add_chain(self, number: int, *links: int, end: int = 0) -> int:
        self.map("chains").update(number.to_bytes(8, "little"), self.chain(*links, end=end))
        return number

    def add_sums(
        self, *sums: int, chain: int = 0, partial: int = 0, user: int = 0, kernel: int = 0
    ) -> None:
        """What the program makes of waits that are over: blocked, in the run queue, preempted."""
        key = struct.pack("<QQ", user, kernel) + WHO.pack(*WAITER)
        key += struct.pack("<QII", chain, partial, 0)
        active = self.map("active").content.get(bytes(4), bytes(4))
        name = "counts_odd" if any(active) else "counts_even"
        self.map(name).update(key, struct.pack("<3Q", *sums))

    def add_thread(
        self,
        state: State,
        out: int,
        came: int = 0,
        woken: int = 0,
        kept: bool = True,
        partial: bool = False,
        wakers: bytes = b"",
        tid: int = 11,
    ) -> None:
        """A thread as the program has it when the recording ends."""
        record = struct.pack("<5Q", came, out, woken, 0, 0) + WHO.pack(*WAITER)
        record += struct.pack("<IBBxx", state, kept, partial) + wakers
        threads = self.map("threads")
        threads.update(tid.to_bytes(4, "little"), record.ljust(threads.value_size, b"\0"))

    def samples(self) -> list[RawSample]:
        self.counts.drain_last()
        return list(self.counts.samples(NoSpaces(), dict))

    def parts(self) -> Mapping[tuple[str, ...], int]:
        """The values by how the wait went."""
        found = self.samples()
        parts = {(*sample.waits, *map(name_of, sample.wakers)): sample.value for sample in found}
        assert len(parts) == len(found)
        return parts


def name_of(waker: object) -> str:
    task = getattr(waker, "task", None)
    return task.comm if task is not None else waker.context.name


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BpfMap", fake_map)
    monkeypatch.setattr(waits, "BpfMap", fake_map)
    monkeypatch.setattr(counting, "PerCpuCounters", FakeCounters)
    monkeypatch.setattr(counting, "_wait_for_programs", lambda: None)


def test_a_wait_has_up_to_three_parts() -> None:
    recording = Recording()
    recording.add_sums(500, 30, 7)
    assert recording.parts() == {(BLOCKED,): 500, (RUN_QUEUE,): 30, (PREEMPTED,): 7}


def test_parts_of_no_length_are_left_out() -> None:
    recording = Recording()
    recording.add_sums(0, 30, 0)
    assert recording.parts() == {(RUN_QUEUE,): 30}


def test_the_parts_can_stay_together() -> None:
    recording = Recording(split=False)
    recording.add_sums(500, 30, 7)
    assert recording.parts() == {(): 537}


def test_what_is_drained_at_different_times_adds_up() -> None:
    recording = Recording()
    recording.add_sums(500, 30, 7)
    recording.counts.drain()
    recording.add_sums(100, 0, 3)
    recording.counts.drain()
    recording.add_sums(1, 1, 1)
    assert recording.parts() == {(BLOCKED,): 601, (RUN_QUEUE,): 31, (PREEMPTED,): 11}


def test_a_wait_keeps_who_and_where() -> None:
    recording = Recording()
    user, kernel = recording.add_stack(100, 1, 2, 3), recording.add_stack(200, 9)
    recording.add_sums(500, 0, 0, user=user, kernel=kernel)
    (sample,) = recording.samples()
    assert sample.task == Task(10, 11, "waiter")
    assert (sample.user, sample.kernel, sample.lost) == ((1, 2, 3), (9,), False)


@pytest.mark.parametrize("number", [LOST, 12345])
def test_a_stack_that_is_not_there_is_lost_and_its_time_is_not(number: int) -> None:
    recording = Recording()
    recording.add_sums(500, 0, 0, user=number)
    (sample,) = recording.samples()
    assert (sample.user, sample.lost, sample.value) == ((), True, 500)


def test_a_waker_stands_for_blocked_time() -> None:
    """And for nothing else: waiting for a CPU is over when one is free."""
    recording = Recording(depth=1)
    stack = recording.add_stack(100, 5)
    link = recording.add_link(7, NEAR, kernel=stack)
    recording.add_sums(500, 30, 0, chain=link)
    recording.add_sums(0, 0, 9)
    assert recording.parts() == {("near",): 500, (RUN_QUEUE,): 30, (PREEMPTED,): 9}
    (waker,) = next(sample.wakers for sample in recording.samples() if sample.wakers)
    assert (waker.context, waker.kernel, waker.lost) == (Context.TASK, (5,), False)


def test_an_interrupt_is_a_waker_without_a_task() -> None:
    recording = Recording(depth=1)
    stack = recording.add_stack(100, 5)
    recording.add_sums(500, 0, 0, chain=recording.add_link(7, NEAR, context=1, kernel=stack))
    ((waker,),) = (sample.wakers for sample in recording.samples())
    assert (waker.context, waker.task, waker.kernel) == (Context.INTERRUPT, None, (5,))
    assert not waker.bare


def test_without_kernel_stacks_an_interrupts_own_only_names_it() -> None:
    recording = Recording(depth=1, kernel=False)
    recording.add_sums(500, 0, 0, chain=recording.add_link(7, NEAR, context=1))
    ((waker,),) = (sample.wakers for sample in recording.samples())
    assert waker.bare


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("chain", [LOST, UNKNOWN, 12345])
def test_a_waker_that_nobody_saw_or_kept_is_unknown(depth: int, chain: int) -> None:
    recording = Recording(depth=depth)
    recording.add_sums(500, 30, 0, chain=chain)
    assert recording.parts() == {("UNKNOWN",): 500, (RUN_QUEUE,): 30}
    assert uncertain(recording.samples())["unknown_waker_ns"] == 500


def test_a_chain_has_its_links_nearest_first() -> None:
    recording = Recording(depth=4)
    links = recording.add_link(7, NEAR), recording.add_link(8, FAR), recording.add_link(9, FAR, 1)
    recording.add_sums(500, 0, 0, chain=recording.add_chain(77, *links))
    assert recording.parts() == {("near", "far", "INTERRUPT"): 500}


@pytest.mark.parametrize(
    ("end", "names"),
    [
        (0, ("near",)),
        (1, ("near", "UNKNOWN")),
        (2, ("near", "CYCLE")),
        (3, ("near", "DEEPER")),
    ],
)
def test_a_chain_says_how_it_ends(end: int, names: tuple[str, ...]) -> None:
    recording = Recording(depth=4)
    recording.add_sums(
        500, 0, 0, chain=recording.add_chain(77, recording.add_link(7, NEAR), end=end)
    )
    assert recording.parts() == {names: 500}


def test_a_link_of_a_chain_that_was_not_kept_is_unknown() -> None:
    recording = Recording(depth=4)
    link = recording.add_link(7, NEAR)
    recording.add_sums(500, 0, 0, chain=recording.add_chain(77, link, LOST))
    assert recording.parts() == {("near", "UNKNOWN"): 500}
    assert uncertain(recording.samples())["unknown_waker_ns"] == 0


def test_a_chain_whose_first_link_was_not_kept_has_no_known_waker() -> None:
    recording = Recording(depth=4)
    recording.add_sums(500, 0, 0, chain=recording.add_chain(77, LOST, recording.add_link(7, FAR)))
    assert recording.parts() == {("UNKNOWN", "far"): 500}
    assert uncertain(recording.samples())["unknown_waker_ns"] == 500


def test_wakeups_are_blocked_time_that_somebody_ended() -> None:
    recording = Recording(depth=1, wakeups=True)
    recording.add_sums(500, 30, 7, chain=recording.add_link(7, NEAR))
    recording.add_sums(60, 30, 7)
    assert recording.parts() == {("near",): 500}


def test_a_wait_that_was_seen_in_part_says_so() -> None:
    recording = Recording()
    recording.add_sums(500, 30, 7, partial=1)
    recording.add_sums(100, 0, 0)
    assert recording.parts() == {
        (BLOCKED, PARTIAL): 500,
        (RUN_QUEUE, PARTIAL): 30,
        (PREEMPTED, PARTIAL): 7,
        (BLOCKED,): 100,
    }
    assert uncertain(recording.samples())["partial_ns"] == 537


def test_one_wait_in_so_many_stands_for_the_others() -> None:
    """One that began before the recording does not: all of these are known."""
    recording = Recording(sample=10, depth=1)
    recording.add_sums(500, 30, 7, chain=UNKNOWN)
    recording.add_sums(100, 0, 0, partial=1)
    assert recording.parts() == {
        ("UNKNOWN",): 5000,
        (RUN_QUEUE,): 300,
        (PREEMPTED,): 70,
        (BLOCKED, PARTIAL): 100,
    }
    extra = uncertain(recording.samples())
    assert (extra["unknown_waker_ns"], extra["partial_ns"]) == (5000, 100)


@pytest.mark.parametrize(
    ("state", "parts"),
    [
        (State.PREEMPTED, {(PREEMPTED, PARTIAL): 1000}),
        (State.RUNNABLE, {(RUN_QUEUE, PARTIAL): 1000}),
        (State.INTERRUPTIBLE, {(BLOCKED, PARTIAL): 1000}),
        (State.IDLE, {(BLOCKED, PARTIAL): 1000}),
    ],
)
def test_a_wait_that_goes_on_counts_up_to_the_end(
    state: State, parts: Mapping[tuple[str, ...], int]
) -> None:
    recording = Recording()
    recording.add_thread(state, END - 1000)
    assert recording.parts() == parts
    assert recording.counts.extra()["unfinished_waits"] == 1


def test_one_who_was_woken_and_waits_for_a_cpu_at_the_end() -> None:
    recording = Recording()
    recording.add_thread(State.INTERRUPTIBLE, END - 1000, came=END - 1100, woken=END - 300)
    assert recording.parts() == {(BLOCKED, PARTIAL): 700, (RUN_QUEUE, PARTIAL): 300}


def test_one_who_was_woken_before_it_had_left_was_never_blocked() -> None:
    recording = Recording()
    recording.add_thread(State.INTERRUPTIBLE, END - 1000, came=END - 1100, woken=END - 1050)
    assert recording.parts() == {(RUN_QUEUE, PARTIAL): 1000}


def test_a_wakeup_before_it_last_came_has_no_part_in_it() -> None:
    recording = Recording()
    recording.add_thread(State.INTERRUPTIBLE, END - 1000, came=END - 1100, woken=END - 1200)
    assert recording.parts() == {(BLOCKED, PARTIAL): 1000}


def test_who_woke_one_that_waits_for_a_cpu_at_the_end() -> None:
    one = Recording(depth=1)
    wakers = one.chain(one.add_link(7, NEAR))
    one.add_thread(State.INTERRUPTIBLE, END - 1000, END - 1100, END - 300, wakers=wakers)
    assert one.parts() == {(PARTIAL, "near"): 700, (RUN_QUEUE, PARTIAL): 300}
    many = Recording(depth=4)
    wakers = many.chain(many.add_link(7, NEAR), many.add_link(8, FAR), end=3)
    many.add_thread(State.INTERRUPTIBLE, END - 1000, END - 1100, END - 300, wakers=wakers)
    assert many.parts() == {(PARTIAL, "near", "far", "DEEPER"): 700, (RUN_QUEUE, PARTIAL): 300}


def test_nobody_is_blamed_for_a_wait_that_goes_on() -> None:
    recording = Recording(depth=4)
    recording.add_thread(State.INTERRUPTIBLE, END - 1000)
    assert recording.parts() == {(BLOCKED, PARTIAL): 1000}
    assert uncertain(recording.samples())["unknown_waker_ns"] == 0
    wakeups = Recording(depth=1, wakeups=True)
    wakeups.add_thread(State.INTERRUPTIBLE, END - 1000)
    assert wakeups.parts() == {}


def test_a_thread_that_does_not_wait_or_does_not_matter() -> None:
    recording = Recording()
    recording.add_thread(State.INTERRUPTIBLE, 0, came=END - 10, tid=1)
    recording.add_thread(State.INTERRUPTIBLE, END - 1000, kept=False, tid=2)
    recording.add_thread(State.INTERRUPTIBLE, END + 5, tid=3)
    assert recording.parts() == {}
    assert recording.counts.extra()["unfinished_waits"] == 0


def test_whole_waits_only() -> None:
    recording = Recording(whole_only=True)
    recording.add_thread(State.INTERRUPTIBLE, END - 1000)
    recording.add_sums(500, 0, 0)
    assert recording.parts() == {(BLOCKED,): 500}


@pytest.mark.parametrize(("length", "counts"), [(99, 0), (100, 1), (200, 1), (201, 0)])
def test_the_bounds_of_length_hold_for_waits_that_go_on(length: int, counts: int) -> None:
    recording = Recording(shortest=100, longest=200)
    recording.add_thread(State.INTERRUPTIBLE, END - length)
    assert len(recording.samples()) == counts


def test_of_those_followed_one_in_so_many_an_open_wait_weighs_more_too() -> None:
    recording = Recording(sample=10)
    recording.add_thread(State.INTERRUPTIBLE, END - 1000, tid=1)
    recording.add_thread(State.PREEMPTED, END - 50, partial=True, tid=2)
    assert recording.parts() == {(BLOCKED, PARTIAL): 10_000, (PREEMPTED, PARTIAL): 50}


@given(
    state=st.sampled_from(State),
    out=st.integers(1, END),
    came=st.integers(0, END),
    woken=st.integers(0, END),
    split=st.booleans(),
    depth=st.integers(0, 3),
)
def test_an_open_wait_counts_its_length_whatever_came_meanwhile(
    state: State, out: int, came: int, woken: int, split: bool, depth: int
) -> None:
    recording = Recording(split=split, depth=depth)
    wakers = recording.chain(recording.add_link(7, NEAR)) if depth else b""
    recording.add_thread(state, out, came, woken, wakers=wakers)
    assert sum(sample.value for sample in recording.samples()) == END - out


def test_a_thread_that_is_gone_does_not_wait_on() -> None:
    recording = Recording()
    recording.add_thread(State.INTERRUPTIBLE, 1, tid=404)
    assert not list(recording.samples())


def sleeper(tid: int, user: tuple[int, ...], kernel: tuple[int, ...]) -> Sleeper:
    return Sleeper(tid, 10, b"waiter", 1, False, 7, user, kernel, lost=not user)


def test_one_that_was_away_before_has_its_stacks_and_counts_from_the_beginning() -> None:
    recording = Recording(depth=4)
    recording.counts.began = END - 1000
    recording.counts.add_away(WAITER, sleeper(11, (1, 2), (3,)))
    (sample,) = recording.samples()
    assert (sample.user, sample.kernel, sample.lost) == ((1, 2), (3,), False)
    assert (sample.waits, sample.value) == ((BLOCKED, PARTIAL), 1000)
    assert sample.task == Task(10, 11, "waiter")


def test_one_that_came_since_is_not_away() -> None:
    recording = Recording()
    recording.add_thread(State.INTERRUPTIBLE, 0, came=END - 10)
    recording.counts.began = END - 1000
    recording.counts.add_away(WAITER, sleeper(11, (1, 2), (3,)))
    assert recording.samples() == []


def test_a_stack_that_could_not_be_read_is_told_from_none() -> None:
    recording = Recording()
    recording.counts.began = END - 1000
    recording.counts.add_away(WAITER, sleeper(11, (), (3,)))
    (sample,) = recording.samples()
    assert (sample.user, sample.kernel, sample.lost) == ((), (3,), True)


def test_time_before_the_recording_does_not_count() -> None:
    recording = Recording()
    recording.counts.began = END - 100
    recording.add_thread(State.INTERRUPTIBLE, END - 1000)
    assert [sample.value for sample in recording.samples()] == [100]


def test_stacks_of_those_away_are_not_mixed_up() -> None:
    recording = Recording()
    for tid in range(1, 6):
        who = WAITER._replace(tid=tid)
        recording.counts.began = END - tid
        recording.counts.add_away(who, sleeper(tid, (tid,), (tid, tid)))
    recording.counts.began = 0
    found = recording.samples()
    assert sorted(sample.value for sample in found) == [1, 2, 3, 4, 5]
    for sample in found:
        tid = sample.task.tid
        assert (sample.user, sample.kernel, sample.value) == ((tid,), (tid, tid), tid)


def test_the_pids_of_waiters_and_wakers_come_up_in_a_drain() -> None:
    """So that their mappings are kept."""
    recording = Recording(depth=1)
    recording.add_sums(500, 0, 0, chain=recording.add_link(7, NEAR))
    assert recording.counts.drain() == {10, 20}
    assert recording.counts.drain_last() == set()
    recording.add_thread(State.INTERRUPTIBLE, END - 1000)
    assert recording.counts.drain_last() == {10}
