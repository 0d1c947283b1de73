"""Call frame programs: each instruction, and that both interpreters agree on all."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpflame.bpf.unwind import expressions, lockstep
from bpflame.bpf.unwind.cfa import Machine, NeedsAddress, program_start
from bpflame.bpf.unwind.cie import ABSOLUTE, PC_RELATIVE, Cie, Unsound
from bpflame.bpf.unwind.frame_rows import _to_rules
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.bpf.unwind.vectors import distinct
from tests.unit.eh_frame_builder import STANDARD, sleb, uleb

CIE = Cie(1, -8, 16, ABSOLUTE, True, False, STANDARD)
START = program_start(CIE)
# Long and all different, so that the numpy loop goes on with a program under test.
CROWD = [bytes([0x41, 0x0E, 16 + number % 64] * (40 + number // 64)) for number in range(128)]

SP8 = pack(Cfa.SP, 8)
LEFT = pack(Cfa.UNSUPPORTED)


def together(program: bytes) -> list[tuple[int, int]] | None:
    """The rows by the numpy loop; None when it leaves the program to the other."""
    programs = [*CROWD, program.rstrip(b"\0")]
    rows, rare = lockstep.run(programs, np.full(len(programs), START))
    if len(CROWD) in rare:
        return None
    count = int(rows.count[-1])
    return list(zip(rows.location[-count:].tolist(), rows.state[-count:].tolist(), strict=True))


def rules(program: bytes, cie: Cie = CIE) -> list[tuple[int, int]]:
    """Locations and rules, from both interpreters where both run it."""
    rows = Machine(program.rstrip(b"\0"), cie, program_start(cie)).run()
    if cie is CIE:
        assert together(program) in (None, rows)
    found = _to_rules(np.array([state for _, state in rows], np.int64)).tolist()
    return [(location, rule) for (location, _), rule in zip(rows, found, strict=True)]


def last(program: bytes, cie: Cie = CIE) -> int:
    return rules(program, cie)[-1][1]


def expression(*parts: bytes) -> bytes:
    return uleb(len(b"".join(parts))) + b"".join(parts)


def test_each_advance_begins_a_row() -> None:
    program = b"\x41\x0e\x10\x02\xff\x0e\x18\x03\x00\x01\x0e\x20\x04\x00\x00\x01\x00\x0e\x28"
    wanted = [(0, 8), (1, 16), (256, 24), (512, 32), (66048, 40)]
    assert rules(program) == [(at, pack(Cfa.SP, offset)) for at, offset in wanted]


def test_an_advance_by_nothing_begins_no_row() -> None:
    assert rules(b"\x40\x0e\x10\x02\x00\x0e\x18") == [(0, pack(Cfa.SP, 24))]


def test_locations_are_multiples_of_the_factor() -> None:
    cie = Cie(4, -4, 16, ABSOLUTE, True, False, b"\x0c\x07\x08\x90\x02")
    assert rules(b"\x42\x0e\x10\x86\x04", cie) == [(0, SP8), (8, pack(Cfa.SP, 16, Bp.AT_CFA, -16))]


@pytest.mark.parametrize(
    ("program", "rule"),
    [
        (b"", SP8),
        (b"\x2d", SP8),  # window_save
        (b"\x2e\x90\x01", SP8),  # args_size
        (b"\x0e\xff\xff\x07", pack(Cfa.SP, 0x1FFFF)),
        (b"\x0c\x06\x10", pack(Cfa.BP, 16)),
        (b"\x0d\x06", pack(Cfa.BP, 8)),
        (b"\x0c\x0a\x00", pack(Cfa.R10, 0)),
        (b"\x0c\x0b\x10", LEFT),  # r11
        (b"\x0c\x0b\x10\x0d\x07", pack(Cfa.SP, 16)),
        (b"\x0c\x80\x02\x10", LEFT),
        (b"\x12\x07\x7e", pack(Cfa.SP, 16)),  # def_cfa_sf, times -8
        (b"\x13\x7d", pack(Cfa.SP, 24)),
        (b"\x13\x02", pack(Cfa.SP, -16)),
        (b"\x0e" + uleb(2**31 - 1), pack(Cfa.SP, 2**31 - 1)),
        (b"\x0e" + uleb(2**31), LEFT),
        (b"\x0e" + uleb(2**63), LEFT),
        (b"\x0e" + uleb(2**31) + b"\x0e\x10", pack(Cfa.SP, 16)),
    ],
)
def test_cfa(program: bytes, rule: int) -> None:
    assert last(program) == rule


@pytest.mark.parametrize(
    ("program", "kind", "offset"),
    [
        (b"\x86\x02", Bp.AT_CFA, -16),
        (b"\x05\x06\x03", Bp.AT_CFA, -24),
        (b"\x11\x06\x04", Bp.AT_CFA, -32),
        (b"\x11\x06\x7c", Bp.AT_CFA, 32),
        (b"\x2f\x06\x02", Bp.AT_CFA, 16),
        (b"\x86" + uleb(4096), Bp.AT_CFA, -(1 << 15)),
        (b"\x86" + uleb(4097), Bp.LOST, 0),
        (b"\x86" + uleb(2**63), Bp.LOST, 0),
        (b"\x83\x02", Bp.SAME, 0),  # rbx
        (b"\x86\x02\xc6", Bp.SAME, 0),
        (b"\x86\x02\x06\x06", Bp.SAME, 0),
        (b"\x86\x02\x08\x06", Bp.SAME, 0),
        (b"\x86\x02\xc3", Bp.AT_CFA, -16),
        (b"\x07\x06", Bp.LOST, 0),
        (b"\x09\x06\x03", Bp.LOST, 0),  # in rbx
        (b"\x14\x06\x02", Bp.LOST, 0),  # val_offset
        (b"\x15\x06\x02", Bp.LOST, 0),
        (b"\x16\x06\x02\x76\x00", Bp.LOST, 0),  # val_expression
        (b"\x10\x06\x02\x76\x00", Bp.AT_BP, 0),
        (b"\x10\x06\x02\x76\x70", Bp.AT_BP, -16),
        (b"\x10\x06" + expression(b"\x76", sleb(-(1 << 15))), Bp.AT_BP, -(1 << 15)),
        (b"\x10\x06" + expression(b"\x76", sleb(1 << 15)), Bp.LOST, 0),
        (b"\x10\x06\x02\x77\x08", Bp.LOST, 0),
        (b"\x10\x06\x03\x76\x00\x06", Bp.LOST, 0),
        (b"\x10\x03\x02\x76\x70", Bp.SAME, 0),
        (b"\x86\x02\x0a\x07\x06\x0b", Bp.AT_CFA, -16),
    ],
)
def test_rbp(program: bytes, kind: Bp, offset: int) -> None:
    far = b"\x0e" + uleb(1 << 20)  # so that no slot is below rsp
    assert last(far + program) == pack(Cfa.SP, 1 << 20, kind, offset)


def test_a_slot_that_was_popped_is_no_slot() -> None:
    pushed = b"\x0e\x10\x86\x02"
    assert last(pushed) == pack(Cfa.SP, 16, Bp.AT_CFA, -16)
    assert last(pushed + b"\x0e\x08") == SP8
    assert last(pushed + b"\x0c\x06\x08") == pack(Cfa.BP, 8, Bp.AT_CFA, -16)


@pytest.mark.parametrize(
    ("program", "rule"),
    [
        (b"\x07\x10", pack(Cfa.END)),
        (b"\x07\x10\x0e\x10\x86\x02", pack(Cfa.END)),
        (b"\x07\x10\xd0", SP8),
        (b"\x90\x02", LEFT),
        (b"\x90\x02\x90\x01", SP8),
        (b"\x05\x10\x01", SP8),
        (b"\x09\x10\x05", pack(Cfa.RDI, 8)),
        (b"\x09\x10\x05\x0e\x00", pack(Cfa.RDI, 0)),
        (b"\x09\x10\x05\x0c\x06\x08", LEFT),
        (b"\x09\x10\x04", LEFT),
        (b"\x08\x10", LEFT),
        (b"\x10\x10\x02\x77\x00", LEFT),
        (b"\x16\x10\x02\x77\x00", LEFT),
        (b"\x14\x10\x01", LEFT),
    ],
)
def test_return_address(program: bytes, rule: int) -> None:
    assert last(program) == rule


PLT = "7708 8000 3f1a 3b 2a33 2422"


@pytest.mark.parametrize(
    ("code", "kind", "offset"),
    [
        (PLT, Cfa.PLT, 11),
        (PLT.replace("3b", "3a"), Cfa.PLT, 10),
        (PLT.replace("3b", "30"), Cfa.PLT, 0),
        (PLT.replace("3b", "40"), Cfa.PLT, 16),
        (PLT.replace("3b", "41"), Cfa.UNSUPPORTED, 0),
        (PLT.replace("3b", "3b96"), Cfa.UNSUPPORTED, 0),
        ("7708", Cfa.SP, 8),
        ("7670", Cfa.BP, -16),
        ("77a00106", Cfa.AT_SP, 160 << 8),
        ("767806", Cfa.AT_BP, -8 * 256),
        ("77e0000623 08", Cfa.AT_SP, 96 << 8 | 8),
        ("76580638 22", Cfa.AT_BP, -40 * 256 + 8),
        ("770006 23ff01", Cfa.AT_SP, 255),
        ("770006 238002", Cfa.UNSUPPORTED, 0),  # 256 is too much
        ("77ffffff03 06", Cfa.AT_SP, (1 << 23) - 1 << 8),
        ("778080800406", Cfa.UNSUPPORTED, 0),
        ("76808080 7c06", Cfa.AT_BP, -(1 << 31)),
        ("7708 79 00 38 1e 22 06 23 08", Cfa.UNSUPPORTED, 0),  # by r9: libcrypto
        ("7908", Cfa.UNSUPPORTED, 0),
        ("", Cfa.UNSUPPORTED, 0),
        ("77", Cfa.UNSUPPORTED, 0),
        ("77ffffffffffffffffffffff", Cfa.UNSUPPORTED, 0),
        ("770006 38", Cfa.UNSUPPORTED, 0),
        ("770006 3823", Cfa.UNSUPPORTED, 0),
        ("770006 23082308", Cfa.UNSUPPORTED, 0),
    ],
)
def test_expressions_for_the_cfa(code: str, kind: Cfa, offset: int) -> None:
    code_bytes = bytes.fromhex(code)
    assert expressions.cfa(code_bytes) == (kind, offset)
    assert last(b"\x0f" + expression(code_bytes) + b"\x41") == pack(kind, offset)


def test_an_offset_after_an_expression_is_not_understood() -> None:
    program = b"\x0f" + expression(bytes.fromhex(PLT))
    assert last(program + b"\x0e\x10") == LEFT
    assert last(program + b"\x0c\x07\x10") == pack(Cfa.SP, 16)


def test_states_are_remembered_as_a_stack() -> None:
    program = b"\x0a\x41\x0e\x10\x86\x02\x0a\x41\x0c\x06\x10\x07\x10\x41\x0b\x41\x0b"
    found = [rule for _, rule in rules(program)]
    pushed = pack(Cfa.SP, 16, Bp.AT_CFA, -16)
    assert found == [SP8, pushed, pack(Cfa.END), pushed, SP8]


@pytest.mark.parametrize("depth", [4, 5, 64])
def test_many_states_are_remembered(depth: int) -> None:
    program = b"\x0a\x41\x0e\x10" * depth + b"\x41\x0b" * depth
    assert rules(program)[-1] == (2 * depth, SP8)


@pytest.mark.parametrize(
    "program", [b"\x0b", b"\x0a" * 65, b"\x1f", b"\x0e" + b"\xff" * 11, b"\x10\x06\xff\xff\x01"]
)
def test_what_no_compiler_writes_is_unsound(program: bytes) -> None:
    with pytest.raises(Unsound):
        Machine(program, CIE, START).run()


def test_set_loc_needs_the_address() -> None:
    cie = Cie(1, -8, 16, PC_RELATIVE | 0xB, True, False, STANDARD)
    program = b"\x41\x01" + (0x1020 - 0x2002).to_bytes(4, "little", signed=True) + b"\x0e\x10"
    with pytest.raises(NeedsAddress):
        Machine(program, cie, START).run()
    rows = Machine(program, cie, START, address=0x2000, begin=0x1000).run()
    assert [location for location, _ in rows] == [0, 1, 0x20]
    with pytest.raises(Unsound):  # backwards
        Machine(program, cie, START, address=0x2000, begin=0x1020).run()


def test_signal_frames_are_known_by_their_cie() -> None:
    cie = Cie(1, -8, 16, ABSOLUTE, True, True, b"")
    for program in (b"", b"\x07\x10", b"\x0f\x04\x77\xa0\x01\x06"):
        assert last(program, cie) == pack(Cfa.SIGNAL)


def test_another_return_column_is_not_understood() -> None:
    cie = Cie(1, -8, 8, ABSOLUTE, True, False, STANDARD)
    assert last(b"\x41\x0e\x10", cie) == LEFT


# Both interpreters

_NUMBER = st.one_of(st.integers(0, 130), st.integers(0, 2**64)).map(uleb)
_REGISTER = st.one_of(st.sampled_from([3, 6, 7, 10, 16]), st.integers(0, 300)).map(uleb)
_BLOCK = st.sampled_from(
    [b"\x02\x76\x70", b"\x02\x77\x08", b"\x00", expression(bytes.fromhex(PLT)), b"\x03\x77\x10\x06"]
)


def _operation(code: int, *operands: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(st.just(bytes([code])), *operands).map(b"".join)


_OPERATION = st.one_of(
    st.integers(0x40, 0x7F).map(lambda code: bytes([code])),
    st.integers(0xC0, 0xFF).map(lambda code: bytes([code])),
    st.tuples(st.integers(0x80, 0xBF).map(lambda code: bytes([code])), _NUMBER).map(b"".join),
    st.sampled_from([b"\x00", b"\x0a", b"\x0b", b"\x2d", b"\x86\x02", b"\x90\x01", b"\xc6"]),
    *(
        _operation(code, st.binary(min_size=size, max_size=size))
        for code, size in ((2, 1), (3, 2), (4, 4))
    ),
    *(_operation(code, _REGISTER) for code in (0x06, 0x07, 0x08, 0x0D)),
    *(_operation(code, _REGISTER, _NUMBER) for code in (0x05, 0x09, 0x0C, 0x11, 0x12, 0x14, 0x2F)),
    *(_operation(code, _NUMBER) for code in (0x0E, 0x13, 0x2E)),
    *(_operation(code, _REGISTER, _BLOCK) for code in (0x10, 0x16)),
    _operation(0x0F, _BLOCK),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(_OPERATION, max_size=60).map(b"".join))
def test_both_interpreters_agree(program: bytes) -> None:
    """On what compilers could write, also where they never do."""
    found = together(program)
    try:
        wanted = Machine(program.rstrip(b"\0"), CIE, START).run()
    except Unsound:
        assert found is None
        return
    assert found in (None, wanted)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=80))
@example([b"\x0f\xff\xff\xff\xff\xff\xff\xff\xff\x7f"] * 60)
def test_no_program_is_too_odd(programs: list[bytes]) -> None:
    programs = [program.rstrip(b"\0") for program in programs]
    rows, rare = lockstep.run(programs, np.full(len(programs), START))
    assert len(rows.location) == len(rows.state) == rows.count.sum()
    for number, program in enumerate(programs):
        assert (rows.count[number] == 0) == (number in rare)
        assert rows.count[number] <= len(program) + 1


def test_a_crowd_of_real_length_agrees() -> None:
    generator = random.Random(1)  # noqa: S311 - the same each time
    common = [b"\x41", b"\x0e\x10", b"\x86\x02", b"\x02\x30", b"\x0a\x0b", b"\x0c\x06\x10", b"\xc6"]
    programs = [b"".join(generator.choices(common, k=generator.randrange(400))) for _ in range(300)]
    rows, rare = lockstep.run(programs, np.full(300, START))
    assert rare == []
    first = 0
    for program, count in zip(programs, rows.count.tolist(), strict=True):
        wanted = Machine(program, CIE, START).run()
        part = slice(first, first + count)
        found = zip(rows.location[part].tolist(), rows.state[part].tolist(), strict=True)
        assert list(found) == wanted
        first += count


@settings(max_examples=100)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=300))
def test_distinct_values(values: list[int]) -> None:
    number, found = distinct(np.array(values, np.int64))
    assert found[number].tolist() == values
    assert sorted(found.tolist()) == sorted(set(values))


def test_distinct_values_in_crowded_slots() -> None:
    values = np.random.default_rng(2).permutation(np.arange(300_000))
    number, found = distinct(values)
    assert np.array_equal(found[number], values)
    assert len(found) == 300_000
