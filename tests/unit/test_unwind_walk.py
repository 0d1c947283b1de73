"""The walk of the BPF programs and the one in Python: each kind of step, and each kind of end."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from bpflame.bpf.unwind.arena import Arena, Placed
from bpflame.bpf.unwind.copies import Copy, Place
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.bpf.unwind.table import PAGE, Table
from bpflame.bpf.unwind.walk import WHY_FRAMES, WHY_LATER, WHY_NO_TABLE, Walked, Walker
from bpflame.raw import StackEnd
from tests.unit import walk_harness
from tests.unit.unwind_fakes import arena, mapped

CODE, STACK = 0x400000, 0x7FFD00000000
VSYSCALL = 0xFFFFFFFFFF600000
NEXT = 0x40  # bytes from one rule of `Machine` to the next


class Machine:
    """A process: one mapping of a file with a table, others without, and a stack.

    The rule of number n holds from ``at(n)`` on, for NEXT bytes.
    """

    def __init__(self, words: Arena, *rules: int) -> None:
        self.rules = list(rules)
        pages = np.zeros(1, PAGE)
        pages[0] = (0, len(rules), 0)
        rows = np.array([NEXT * n << 16 | n for n in range(len(rules))], np.uint32)
        table = Table(0, pages, rows, np.array(rules, np.uint64))
        placed = Placed(words, table, np.arange(len(rules), dtype=np.uint32))
        records = [
            (CODE, CODE + 0x1000, -CODE, placed.pages, 1),
            (CODE + 0x2000, CODE + 0x3000, 0, 0, WHY_NO_TABLE),
            (CODE + 0x3000, CODE + 0x4000, 0, 0, WHY_FRAMES),
            (CODE + 0x4000, CODE + 0x5000, 0, 0, WHY_LATER),
            (CODE + 0x6000, CODE + 0x8000, -CODE - 0x6000, placed.pages, 1),  # two pages
        ]
        self.arena, self.block, self.count = words, mapped(words, records), len(records)

    def at(self, rule: int) -> int:
        """The middle of the code where a rule holds."""
        return CODE + NEXT * self.rules.index(rule) + 0x20

    def walk(self, leaf: Place, stack: list[int], most: int = 127) -> Walked:
        """A stack by C and by Python, if they agree.

        Args:
            leaf: The registers.
            stack: Words from STACK on.
            most: Frames to take.
        """
        data = struct.pack(f"<{len(stack)}Q", *stack).ljust(4096, b"\0")
        return self.walk_memory(leaf, ((STACK, data),), most)

    def walk_memory(
        self, leaf: Place, memory: tuple[tuple[int, bytes], ...], most: int = 127
    ) -> Walked:
        walker = Walker(self.arena, self.block, self.count, self.rules, most)
        python = walker.walk(leaf, Copy(2, 1, 0, leaf, memory).word)
        c = walk_harness.walk(leaf, self.rules, self.block, self.count, memory, most)
        assert c == python
        return c


SP8, SP16, SP24 = (pack(Cfa.SP, offset) for offset in (8, 16, 24))
BP16 = pack(Cfa.BP, 16, Bp.AT_CFA, -16)
END, GAP, SIGNAL = pack(Cfa.END), pack(Cfa.GAP), pack(Cfa.SIGNAL)
UNSUPPORTED, FRAME = pack(Cfa.UNSUPPORTED), pack(Cfa.FRAME)
NO_TABLE, FRAMES, LATER = (CODE + offset for offset in (0x2080, 0x3080, 0x4080))
NOWHERE = CODE + 0x5080


@contextlib.contextmanager
def machine(*rules: int) -> Iterator[Machine]:
    with arena() as words:
        yield Machine(words, *rules)


def check(rule: int, leaf: dict[str, int], stack: list[int], frames: int, end: StackEnd) -> None:
    """The leaf is in code of a rule; callers are at SP8 and then at END."""
    with machine(END, SP8, rule) as process:
        place = Place(process.at(rule), **{"sp": STACK, "bp": 0, **leaf}, exact=True)
        words = [{-1: process.at(SP8), -2: process.at(END)}.get(word, word) for word in stack]
        ips, found, guessed = process.walk(place, words)
        assert (len(ips), found) == (frames, end)
        assert not guessed
        assert ips == (place.ip, process.at(SP8), process.at(END))[:frames]


@pytest.mark.parametrize(
    ("rule", "leaf", "stack"),
    [
        (SP8, {}, [-1, -2]),
        (SP24, {}, [9, 9, -1, -2]),
        (pack(Cfa.BP, 24), {"bp": STACK + 8}, [9, 9, 9, -1, -2]),
        (pack(Cfa.PLT, 0x21 & 15), {}, [-1, -2]),  # the leaf is at a multiple of 16
        (pack(Cfa.PLT, 0), {}, [9, -1, -2]),
        (pack(Cfa.AT_SP, 16 << 8 | 8), {}, [9, 9, STACK + 24, -1, -2]),
        (pack(Cfa.AT_SP, (-8 << 8) | 8), {"sp": STACK + 8}, [STACK + 16, 9, -1, -2]),
        (pack(Cfa.AT_SP, 248), {}, [STACK + 24 - 248, 9, -1, -2]),
        (pack(Cfa.AT_BP, -8 << 8), {"bp": STACK + 8}, [STACK + 24, 9, -1, -2]),
        (pack(Cfa.R10, 8), {"r10": STACK + 16}, [9, 9, -1, -2]),
    ],
)
def test_a_rule_leads_to_the_caller(rule: int, leaf: dict[str, int], stack: list[int]) -> None:
    check(rule, leaf, stack, 3, StackEnd.COMPLETE)


def test_vfork_returns_to_rdi() -> None:
    check_rdi = pack(Cfa.RDI, 8)
    with machine(END, SP8, check_rdi) as process:
        leaf = Place(process.at(check_rdi), STACK, 0, di=process.at(SP8), exact=True)
        found = process.walk(leaf, [9, process.at(END)])
        assert found.ips == (leaf.ip, process.at(SP8), process.at(END))
        assert found.end is StackEnd.COMPLETE


@pytest.mark.parametrize("rule", [pack(Cfa.R10, 8), pack(Cfa.RDI)])
def test_registers_of_the_leaf_are_not_those_of_its_callers(rule: int) -> None:
    with machine(SP8, rule, END) as process:
        leaf = Place(process.at(SP8), STACK, 0, STACK + 16, process.at(END), exact=True)
        found = process.walk(leaf, [process.at(rule), process.at(END), process.at(END)])
        assert found == ((leaf.ip, process.at(rule)), StackEnd.UNSUPPORTED, False)


@pytest.mark.parametrize(
    ("rule", "bp", "stack", "caller_bp"),
    [
        (SP24, STACK + 24, [9, 9, -1], STACK + 24),
        (pack(Cfa.SP, 24, Bp.AT_CFA, -16), 5, [9, STACK + 24, -1], STACK + 24),
        (pack(Cfa.SP, 24, Bp.AT_BP, -8), STACK + 8, [STACK + 24, 9, -1], STACK + 24),
        (pack(Cfa.SP, 24, Bp.LOST), STACK + 24, [9, 9, -1], 0),
    ],
)
def test_the_callers_rbp(rule: int, bp: int, stack: list[int], caller_bp: int) -> None:
    """The caller is found by it; where it is lost, the stack cannot grow from 0 + 16."""
    with machine(END, BP16, rule) as process:
        words = [process.at(BP16) if word == -1 else word for word in stack]
        leaf = Place(process.at(rule), STACK, bp, exact=True)
        found = process.walk(leaf, [*words, 7, process.at(END)])
        if caller_bp:
            assert found.ips == (leaf.ip, process.at(BP16), process.at(END))
        else:
            assert found == ((leaf.ip, process.at(BP16)), StackEnd.NOT_GROWING, False)


def test_a_return_address_belongs_to_the_instruction_before_it() -> None:
    """A call at the very end of a function: behind it other rules hold."""
    with machine(END, SP8, SP16) as process:
        border = process.at(SP16) - 0x20
        leaf = Place(border, STACK, 0, exact=True)
        stack = [process.at(END), border, process.at(END)]
        assert process.walk(leaf, stack).ips == (border, border, process.at(END))
        called = leaf._replace(exact=False)
        found = process.walk(called, [border, process.at(END), 9])
        assert found.ips == (border, border, process.at(END))
        assert process.walk(called, stack).ips == (border, process.at(END))


def test_what_a_signal_interrupted_is_exact_and_given_as_a_call() -> None:
    with machine(END, SP8, SP16, SIGNAL) as process:
        border = process.at(SP16) - 0x20
        stack = [process.at(SIGNAL), *[9] * 40]
        stack[1 + 15] = STACK + 0x110  # rbp
        stack[1 + 20] = STACK + 0x100  # rsp
        stack[1 + 21] = border
        stack[33] = process.at(END)  # the return address at 0x100 + 8
        found = process.walk(Place(process.at(SP8), STACK, 0, exact=True), stack)
        signal = process.at(SIGNAL)
        assert found.ips == (process.at(SP8), signal, border + 1, process.at(END))
        assert found.end is StackEnd.COMPLETE
        stack[1 + 21] = 0
        found = process.walk(Place(process.at(SP8), STACK, 0, exact=True), stack)
        assert (found.ips[1:], found.end) == ((signal,), StackEnd.COMPLETE)


def test_a_signal_may_lead_to_another_stack() -> None:
    """An alternate one may lie above: only calls have to go upwards."""
    with machine(END, SP8, SIGNAL) as process:
        leaf = Place(process.at(SIGNAL), STACK + 0x200, 0, exact=True)
        stack = [process.at(END), *[9] * 127]
        stack[64 + 15], stack[64 + 20], stack[64 + 21] = 0, STACK, process.at(SP8)
        found = process.walk(leaf, stack)
        assert found.ips == (leaf.ip, process.at(SP8) + 1, process.at(END))


def test_code_of_no_file_is_walked_by_frame_pointers() -> None:
    with machine(END, SP8) as process:
        leaf = Place(FRAMES, STACK, STACK + 8, exact=True)
        found = process.walk(leaf, [9, STACK + 32, FRAMES + 8, 9, 0, process.at(END)])
        assert found == ((FRAMES, FRAMES + 8, process.at(END)), StackEnd.COMPLETE, True)
        ended = process.walk(leaf, [9, 0, FRAMES + 8])
        assert ended == ((FRAMES, FRAMES + 8), StackEnd.COMPLETE, True)
        assert process.walk(leaf._replace(bp=0), []) == ((FRAMES,), StackEnd.COMPLETE, False)


def test_a_large_part_of_a_file_without_information_is_walked_by_frame_pointers() -> None:
    with machine(END, FRAME) as process:
        leaf = Place(process.at(FRAME), STACK, STACK + 8, exact=True)
        found = process.walk(leaf, [9, 0, process.at(END)])
        assert found == ((leaf.ip, process.at(END)), StackEnd.COMPLETE, True)


def test_a_gap_ends_a_stack_well_where_rbp_is_zero() -> None:
    with machine(SP8, GAP) as process:
        gap = process.at(GAP)
        leaf = Place(process.at(SP8), STACK, 0, exact=True)
        assert process.walk(leaf, [gap]) == ((leaf.ip, gap), StackEnd.COMPLETE, False)
        found = process.walk(leaf._replace(bp=STACK), [gap])
        assert found == ((leaf.ip, gap), StackEnd.NO_TABLE, False)


@pytest.mark.parametrize(
    ("bp", "sp", "argc", "end"),
    [
        (0, STACK, 3, StackEnd.COMPLETE),
        (0, STACK, 65535, StackEnd.COMPLETE),
        (0, STACK, 65536, StackEnd.NO_TABLE),
        (0, STACK, CODE + 8, StackEnd.NO_TABLE),
        (STACK, STACK, 3, StackEnd.NO_TABLE),
        (0, STACK - 8, 3, StackEnd.NO_TABLE),
    ],
)
def test_a_program_begins_with_its_argument_count(
    bp: int, sp: int, argc: int, end: StackEnd
) -> None:
    with machine(SP8, GAP) as process:
        leaf = Place(process.at(GAP), sp, bp, exact=True)
        assert process.walk(leaf, [argc]) == ((leaf.ip,), end, False)


@pytest.mark.parametrize(
    ("ip", "end", "told_as_caller"),
    [
        (NO_TABLE, StackEnd.NO_TABLE, True),
        (LATER, StackEnd.NOT_READY, True),
        (NOWHERE, StackEnd.NO_MAPPING, False),
        (CODE - 1, StackEnd.NO_MAPPING, False),
        (CODE + 0x7080, StackEnd.NO_TABLE, True),  # beyond its table
        (1 << 63, StackEnd.NO_MAPPING, False),
        (2**64 - 1, StackEnd.NO_MAPPING, False),
    ],
)
def test_where_there_is_no_rule_the_stack_ends(
    ip: int, end: StackEnd, told_as_caller: bool
) -> None:
    """The leaf is where the task is, whatever is known of it; beyond, no mapping is chance."""
    with machine(SP8) as process:
        assert process.walk(Place(ip, STACK, 0, exact=True), [9]) == ((ip,), end, False)
        leaf = Place(process.at(SP8), STACK, 0, exact=True)
        found = process.walk(leaf, [ip])
        assert found == ((leaf.ip, ip) if told_as_caller else (leaf.ip,), end, False)


def test_a_mapping_ends_before_its_end() -> None:
    with machine(SP8, END) as process:
        for ip, exact in ((CODE + 0xFFF, True), (CODE + 0x1000, False)):
            found = process.walk(Place(ip, STACK, 0, exact=exact), [])
            assert found.end is StackEnd.COMPLETE
        assert process.walk(Place(CODE, STACK, 0, exact=False), []).end is StackEnd.NO_MAPPING
        leaf = Place(CODE + 0x1000, STACK, 0, exact=True)
        assert process.walk(leaf, []).end is StackEnd.NO_MAPPING


def test_the_vsyscall_page_returns_at_once() -> None:
    with machine(END) as process:
        for ip in (VSYSCALL, VSYSCALL + 0xFFF):
            found = process.walk(Place(ip, STACK, 0, exact=True), [process.at(END)])
            assert found == ((ip, process.at(END)), StackEnd.COMPLETE, False)
        beyond = Place(VSYSCALL + 0x1000, STACK, 0, exact=True)
        assert process.walk(beyond, [process.at(END)]).end is StackEnd.NO_MAPPING


def test_a_return_address_of_zero_is_the_end() -> None:
    with machine(SP8) as process:
        leaf = Place(process.at(SP8), STACK, 0, exact=True)
        assert process.walk(leaf, [leaf.ip, 0]) == ((leaf.ip,) * 2, StackEnd.COMPLETE, False)


@pytest.mark.parametrize("most", [1, 2, 7, 8, 9, 126, 127])
def test_no_more_frames_than_asked_for(most: int) -> None:
    with machine(SP8) as process:
        leaf = Place(process.at(SP8), STACK, 0, exact=True)
        found = process.walk(leaf, [leaf.ip] * 200, most)
        assert found == ((leaf.ip,) * most, StackEnd.TOO_DEEP, False)
        whole = process.walk(leaf, [*[leaf.ip] * (most - 1), 0], most)
        assert whole == ((leaf.ip,) * most, StackEnd.COMPLETE, False)


@pytest.mark.parametrize("offset", [0, -8, -(2**31)])
def test_the_stack_has_to_grow(offset: int) -> None:
    rule = pack(Cfa.SP, offset)
    with machine(rule) as process:
        leaf = Place(process.at(rule), STACK + 64, 0, exact=True)
        assert process.walk(leaf, [9] * 20) == ((leaf.ip,), StackEnd.NOT_GROWING, False)


@pytest.mark.parametrize(
    ("rule", "sp"),
    [
        (SP8, STACK + 4096),  # the return address
        (pack(Cfa.SP, 8, Bp.AT_CFA, -16), STACK),  # rbp, below the stack
        (pack(Cfa.AT_SP, -8 << 8), STACK),  # the CFA
        (SIGNAL, STACK + 4096 - 120),
        (SIGNAL, STACK + 4096 - 160),
        (SIGNAL, STACK + 4096 - 168),
        (pack(Cfa.SP, 2**31 - 8), STACK),
    ],
)
def test_memory_that_is_not_there_ends_a_stack(rule: int, sp: int) -> None:
    with machine(rule) as process:
        leaf = Place(process.at(rule), sp, 0, exact=True)
        assert process.walk(leaf, [leaf.ip]) == ((leaf.ip,), StackEnd.UNREADABLE, False)


def test_an_unsupported_rule_ends_a_stack() -> None:
    with machine(UNSUPPORTED) as process:
        leaf = Place(process.at(UNSUPPORTED), STACK, 0, exact=True)
        assert process.walk(leaf, [9]) == ((leaf.ip,), StackEnd.UNSUPPORTED, False)


def test_a_stack_over_many_pages() -> None:
    rule = pack(Cfa.SP, 1000)
    with machine(rule) as process:
        data = bytearray(8 * 4096)
        leaf = Place(process.at(rule), STACK + 0x128, 0, exact=True)
        for n in range(30):
            struct.pack_into("<Q", data, 0x128 + 1000 * (n + 1) - 8, leaf.ip if n < 29 else 0)
        pages = tuple((STACK + at, bytes(data[at : at + 4096])) for at in range(0, len(data), 4096))
        assert process.walk_memory(leaf, pages) == ((leaf.ip,) * 30, StackEnd.COMPLETE, False)
        cut = process.walk_memory(leaf, pages[:3])
        assert (len(cut.ips), cut.end) == (12, StackEnd.UNREADABLE)


@pytest.mark.parametrize("shift", [1, 4, 7])
def test_a_word_may_lie_across_pages(shift: int) -> None:
    """Stack pointers need not be aligned; a copy has a page in each of its records."""
    with machine(SP8) as process:
        data = bytearray(2 * 4096)
        sp = STACK + 4096 - shift
        leaf = Place(process.at(SP8), sp, 0, exact=True)
        struct.pack_into("<2Q", data, 4096 - shift, leaf.ip, 0)
        pages = ((STACK, bytes(data[:4096])), (STACK + 4096, bytes(data[4096:])))
        assert process.walk_memory(leaf, pages) == ((leaf.ip,) * 2, StackEnd.COMPLETE, False)
