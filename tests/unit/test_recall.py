"""Where the return addresses of a kernel stack lie: the true places, or none, never wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.bpf import kallsyms
from bpflame.bpf.kallsyms import KernelEntries
from bpflame.errors import BpflameError
from bpflame.profilers import recall
from bpflame.profilers.recall import Distances, Recall, above_program
from bpflame.raw import AbsoluteAddress

BASE = 0xFFFFFFFF81000000
OUTERMOST = AbsoluteAddress(BASE + 0x10)
"""In the kernel's entry: the last frame of every stack."""
SYSCALL = AbsoluteAddress(BASE + 0x20)
"""In what the entry calls, whose frame has a variable part: CONFIG_RANDOMIZE_KSTACK_OFFSET."""
CALLS = tuple(AbsoluteAddress(BASE + 0x100 * i) for i in range(1, 9))

Stack = tuple[list[AbsoluteAddress], list[int], list[int]]
"""Return addresses, leaf first; where they lie; the words of the stack."""

sizes = st.fixed_dictionaries({ip: st.integers(1, 5) for ip in CALLS})
calls = st.lists(st.sampled_from(CALLS), max_size=8)
gaps = st.integers(0, 4)
JUNK = st.sampled_from((0, 7, BASE, *CALLS, SYSCALL, OUTERMOST))


def lay_out(ips: list[AbsoluteAddress], size: dict[AbsoluteAddress, int], gap: int) -> list[int]:
    """Places, the leaf's at 0. The address fixes how far up the caller's is, but for the last."""
    places = [0]
    for ip in ips[:-1]:
        places.append(places[-1] + (1 + gap if ip == SYSCALL else size[ip]))
    return places


@st.composite
def littered(draw: st.DrawFn) -> Iterator[Stack]:
    """Stacks of one kernel among random words, many of which are copies of addresses."""
    size, stacks = draw(sizes), []
    for _ in range(draw(st.integers(1, 5))):
        ips = [*draw(calls), SYSCALL, OUTERMOST]
        start, gap = draw(st.integers(0, 3)), draw(gaps)
        places = [start + place for place in lay_out(ips, size, gap)]
        length = places[-1] + 3
        words = draw(st.lists(JUNK, min_size=length, max_size=length))
        for ip, place in zip(ips, places, strict=True):
            words[place] = ip
        stacks.append((ips, places, words))
    return stacks


@given(littered())
def test_among_any_words_the_true_places_are_found_or_none(stacks: list[Stack]) -> None:
    distances = Distances()
    for ips, places, words in stacks:
        assert distances.find(ips, words) in (None, places)


@st.composite
def used(draw: st.DrawFn) -> Iterator[Stack]:
    """Stacks in the same memory, one after the other: what is not overwritten stays, as it does."""
    size, stacks = draw(sizes), []
    memory = [0] * 64
    top = len(memory) - 2
    for _ in range(draw(st.integers(1, 12))):
        ips = [*draw(calls), SYSCALL, OUTERMOST]
        places = lay_out(ips, size, draw(gaps))
        begin = top - places[-1]
        for ip, place in zip(ips, places, strict=True):
            memory[begin + place] = ip
        here = begin - draw(st.integers(0, 3))
        stacks.append((ips, [begin + place - here for place in places], memory[here:]))
    return stacks


@given(used(), st.integers(1, 64))
def test_what_earlier_calls_left_on_the_stack_is_not_taken_for_this_one(
    stacks: list[Stack], window: int
) -> None:
    """Also where the stack goes on beyond the words that are looked at."""
    distances = Distances()
    for ips, places, words in stacks:
        found = distances.find(ips, words[:window])
        assert found in (None, places)
        assert found is None or places[-1] < window


@given(sizes, calls, gaps, st.integers(0, 3))
def test_without_copies_every_stack_is_found(
    size: dict[AbsoluteAddress, int], inner: list[AbsoluteAddress], gap: int, start: int
) -> None:
    ips = [*dict.fromkeys(inner), SYSCALL, OUTERMOST]
    places = [start + place for place in lay_out(ips, size, gap)]
    words = [7] * (places[-1] + 3)
    for ip, place in zip(ips, places, strict=True):
        words[place] = ip
    assert Distances().find(ips, words) == places


A, B, C = CALLS[:3]
CLEAN = [A, 0, 0, B, 0, C, OUTERMOST]
PLACES = [0, 3, 5, 6]
IPS = [A, B, C, OUTERMOST]


def test_a_copy_is_told_from_the_real_one_once_the_distance_is_known() -> None:
    distances = Distances()
    littered = [A, 0, B, B, 0, C, OUTERMOST]
    assert distances.find(IPS, littered) is None
    assert distances.find(IPS, CLEAN) == PLACES
    assert distances.find(IPS, littered) == PLACES


def test_a_function_that_calls_itself_is_found_once_its_frame_is_known() -> None:
    distances = Distances()
    twice = [A, B, B, OUTERMOST]
    words = [A, 0, 0, B, 0, B, 0, OUTERMOST]
    assert distances.find(twice, words) is None
    assert distances.find([B, OUTERMOST], [B, 0, OUTERMOST]) == [0, 2]
    assert distances.find([A, B, OUTERMOST], [A, 0, 0, B, 0, OUTERMOST]) == [0, 3, 5]
    assert distances.find(twice, words) == [0, 3, 5, 7]


def test_a_distance_that_turns_out_to_vary_is_never_used_again() -> None:
    distances = Distances()
    assert distances.find([A, B, OUTERMOST], [A, B, OUTERMOST]) == [0, 1, 2]
    assert distances.find([A, B, OUTERMOST], [A, 0, B, OUTERMOST]) == [0, 2, 3]
    assert distances.find([A, B, OUTERMOST], [A, B, B, OUTERMOST]) is None


def test_a_copy_of_the_last_address_where_that_was_with_another_gap() -> None:
    distances = Distances()
    stack = [SYSCALL, OUTERMOST]
    assert distances.find(stack, [SYSCALL, OUTERMOST, 0, 0]) == [0, 1]
    assert distances.find(stack, [SYSCALL, OUTERMOST, OUTERMOST, 0]) in (None, [0, 2])


@pytest.mark.parametrize(
    ("ips", "words"),
    [
        ([], CLEAN),
        ([A], []),
        (IPS, []),
        (IPS, CLEAN[:-1]),
        (IPS[::-1], CLEAN),
        ([OUTERMOST] * 33, [OUTERMOST] * 33),
    ],
)
def test_what_is_not_there_is_not_found(ips: list[AbsoluteAddress], words: list[int]) -> None:
    assert Distances().find(ips, words) is None


def test_the_deepest_stack_that_can_be_noted() -> None:
    ips = [AbsoluteAddress(BASE + i) for i in range(32)]
    assert Distances().find(ips, ips) == [*range(32)]


TEXT = b"""\
ffffffff81000100 t asm_exc_page_fault
ffffffff81000200 t asm_sysvec_apic_timer_interrupt
ffffffff81000300 T entry_SYSCALL_64_after_hwframe
ffffffff81000400 T bpf_trace_run3
ffffffff81000500 T bpf_trace_run4
ffffffff81000600 t __traceiter_sched_switch
ffffffff81000700 T schedule
ffffffff81000800 T preempt_schedule_irq
ffffffff81000900 T bpf_get_stack_raw_tp
"""
PROGRAM = AbsoluteAddress(0xFFFFFFFFC0001000)
FAULT, TIMER, ENTRY, RUN3, RUN4, GLUE, SCHEDULE, PREEMPT, HELPER = (
    AbsoluteAddress(int(line.split()[0], 16) + 0x10) for line in TEXT.splitlines()
)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> KernelEntries:
    monkeypatch.setattr(kallsyms.platform, "machine", lambda: "x86_64")
    return KernelEntries(TEXT)


def test_what_lies_above_the_program_begins_at_its_caller(entries: KernelEntries) -> None:
    stack = (HELPER, PROGRAM, RUN4, GLUE, SCHEDULE, ENTRY)
    assert above_program(stack, entries) == (GLUE, SCHEDULE, ENTRY)
    assert above_program(stack[1:], entries) == (GLUE, SCHEDULE, ENTRY)


@pytest.mark.parametrize("entry", [FAULT, TIMER])
def test_an_exception_in_user_code_has_fixed_places_and_one_in_the_kernel_has_not(
    entries: KernelEntries, entry: AbsoluteAddress
) -> None:
    assert above_program((PROGRAM, RUN4, SCHEDULE, entry), entries) == (SCHEDULE, entry)
    assert above_program((PROGRAM, RUN4, PREEMPT, entry, SCHEDULE, ENTRY), entries) == ()


def test_a_program_under_a_program_ends_below_the_outer_one(entries: KernelEntries) -> None:
    """What the places are counted from is the outermost caller's frame: nothing below it."""
    stack = (PROGRAM, RUN3, GLUE, PROGRAM, RUN4, SCHEDULE, ENTRY)
    assert above_program(stack, entries) == (SCHEDULE, ENTRY)


@pytest.mark.parametrize("stack", [(), (SCHEDULE, ENTRY), (PROGRAM, RUN4)])
def test_without_the_caller_or_anything_above_it_there_is_nothing(
    entries: KernelEntries, stack: tuple[AbsoluteAddress, ...]
) -> None:
    assert above_program(stack, entries) == ()


def test_a_kernel_that_hides_its_addresses_has_no_places() -> None:
    hidden = KernelEntries(b"0000000000000000 T bpf_trace_run4\n")
    assert above_program((PROGRAM, RUN4, SCHEDULE, ENTRY), hidden) == ()


class FakeMap:
    """A map in memory."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.content: dict[bytes, bytes] = {}

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        content, self.content = self.content, {}
        yield b"".join(content), b"".join(content.values())

    def update(self, key: bytes, value: bytes) -> None:
        if key not in self.content and len(self.content) >= self.room:
            raise BpflameError("full")
        self.content[key] = value


class FakeProgram:
    def map_fd(self, name: str) -> str:
        return name


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeMap]:
    made = {"lessons": FakeMap(), "recalls": FakeMap()}
    monkeypatch.setattr(recall, "BpfMap", lambda name, key_size, value_size: made[name])
    return made


def lesson(stack_id: int, words: list[int]) -> bytes:
    return struct.pack("<QQ256Q", stack_id, len(words), *words, *[7] * (256 - len(words)))


KEY = b"key.key."


def test_a_lesson_becomes_a_note(maps: dict[str, FakeMap], entries: KernelEntries) -> None:
    stack = (PROGRAM, RUN4, GLUE, SCHEDULE, ENTRY)
    learner = Recall(FakeProgram(), entries, {5: stack}.__getitem__)
    maps["lessons"].update(KEY, lesson(5, [0, GLUE, 0, SCHEDULE, 0, 0, ENTRY, 0]))
    learner.learn()
    note = struct.unpack("<QII32Q32H", maps["recalls"].content[KEY])
    assert note[:3] == (5, 3, 7)
    assert note[3:6] == (GLUE, SCHEDULE, ENTRY)
    assert note[35:38] == (1, 3, 6)
    assert maps["lessons"].content == {}


def test_words_beyond_a_lesson_are_not_looked_at(
    maps: dict[str, FakeMap], entries: KernelEntries
) -> None:
    stack = (PROGRAM, RUN4, AbsoluteAddress(7))
    learner = Recall(FakeProgram(), entries, {5: stack}.__getitem__)
    maps["lessons"].update(KEY, lesson(5, [0, 0, 0]))
    learner.learn()
    assert maps["recalls"].content == {}


def test_a_stack_that_cannot_be_recognised_is_given_up_in_the_end(
    maps: dict[str, FakeMap], entries: KernelEntries
) -> None:
    """One by its nature at once; one with stale copies after some more looks at it."""
    stacks = {
        1: (PROGRAM, RUN4, PREEMPT, TIMER, SCHEDULE, ENTRY),
        2: (PROGRAM, RUN4, SCHEDULE, ENTRY),
    }
    learner = Recall(FakeProgram(), entries, stacks.__getitem__)
    maps["lessons"].update(KEY, lesson(1, [PREEMPT, TIMER, SCHEDULE, ENTRY]))
    learner.learn()
    assert not any(maps["recalls"].content[KEY])
    looks, other = 0, b"another."
    while other not in maps["recalls"].content:
        maps["lessons"].update(other, lesson(2, [SCHEDULE, SCHEDULE, ENTRY]))
        learner.learn()
        looks += 1
    assert 1 < looks < 20
    assert not any(maps["recalls"].content[other])
