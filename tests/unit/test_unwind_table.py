"""Tables: which rule an address has in the end, and that no file breaks that."""

from __future__ import annotations

import contextlib
import functools
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bpflame.bpf.unwind import build, cfa, columns, eh_frame, frame_rows
from bpflame.bpf.unwind.build import build_table
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.bpf.unwind.table import Table
from bpflame.symbolize.elf_file import BadElf, ElfFile
from tests.unit.eh_frame_builder import CODE, CODE_SIZE, Frames, elf, lookup, table_of, uleb

GAP, FRAME, END = pack(Cfa.GAP), pack(Cfa.FRAME), pack(Cfa.END)
LEFT = pack(Cfa.UNSUPPORTED)
SP8, SP16 = pack(Cfa.SP, 8), pack(Cfa.SP, 16)
PUSHED = b"\x41\x0e\x10"
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def frames_of(*places: tuple[int, int]) -> Frames:
    """FDEs (begin, size) of functions that push once in their first byte."""
    frames = Frames()
    cie = frames.cie()
    for begin, size in places:
        frames.fde(cie, begin, size, PUSHED)
    return frames


def at(table: Table, *addresses: int) -> list[int]:
    return [lookup(table, address) for address in addresses]


def test_rules_hold_from_row_to_row(tmp_path: Path) -> None:
    table = table_of(elf(frames_of((0x1100, 0x40), (0x1140, 0x40)).data), tmp_path)
    found = at(table, 0x10FF, 0x1100, 0x1101, 0x113F, 0x1140, 0x1141, 0x117F, 0x1180)
    assert found == [GAP, SP8, SP16, SP16, SP8, SP16, SP16, FRAME]
    assert (table.first, len(table.pages)) == (0x1000, 4)


def test_a_rule_is_carried_over_pages(tmp_path: Path) -> None:
    table = table_of(elf(frames_of((0x1FF0, 0x2100)).data), tmp_path)
    assert at(table, 0x1FF0, 0x1FFF, 0x2000, 0x3000, 0x40EF, 0x40F0) == [SP8, *[SP16] * 4, GAP]
    assert table.pages["count"].tolist() == [3, 0, 0, 1]


def test_short_gaps_are_padding(tmp_path: Path) -> None:
    table = table_of(elf(frames_of((0x1100, 0x40), (0x114F, 0x10), (0x116F, 8)).data), tmp_path)
    assert at(table, 0x1140, 0x114E, 0x114F, 0x115F, 0x116E) == [SP16, SP16, SP8, GAP, GAP]


def test_large_gaps_are_walked_by_frame_pointer(tmp_path: Path) -> None:
    end = CODE + CODE_SIZE
    table = table_of(elf(frames_of((0x1FFF, 1), (0x3000, 0x10)).data), tmp_path)
    assert at(table, 0x1000, 0x1FFE, 0x2000, 0x2FFF) == [GAP, GAP, FRAME, FRAME]
    assert at(table, 0x3010, end - 1) == [FRAME, FRAME]
    table = table_of(elf(frames_of((0x1FFF, 2), (0x3000, 0x10)).data), tmp_path)
    assert at(table, 0x2001, 0x2FFF) == [GAP, GAP]


@pytest.mark.parametrize("frames", [b"", bytes(4)])
def test_files_without_frames_are_walked_by_frame_pointer(tmp_path: Path, frames: bytes) -> None:
    code = ((0x1000, 8), (0x3008, 0x800))
    table = table_of(elf(frames, code), tmp_path)
    assert at(table, 0x1000, 0x1007, 0x3008, 0x3807) == [FRAME] * 4
    assert at(table, 0x1008, 0x2000, 0x3007, 0x3808, 0x3FFF) == [GAP] * 5


def test_between_segments_is_no_code(tmp_path: Path) -> None:
    code = ((0x1000, 0x100), (0x9000, 0x100))
    table = table_of(elf(frames_of((0x1080, 0x200), (0x9000, 0x40)).data, code), tmp_path)
    assert at(table, 0x1081, 0x10FF, 0x1100, 0x2000, 0x8FFF) == [SP16, SP16, GAP, GAP, GAP]
    assert at(table, 0x9000, 0x9040) == [SP8, GAP]
    assert len(table.pages) == 9


def test_code_need_not_begin_with_a_page(tmp_path: Path) -> None:
    table = table_of(elf(frames_of((0x1234, 0x40)).data, ((0x1230, 0x4000),)), tmp_path)
    assert (table.first, len(table.pages)) == (0x1000, 5)
    assert at(table, 0x1000, 0x1230, 0x1234) == [GAP, GAP, SP8]


def test_unsorted_and_overlapping_fdes(tmp_path: Path) -> None:
    frames = frames_of((0x1200, 0x40), (0x1100, 0x200))
    table = table_of(elf(frames.data), tmp_path)
    assert at(table, 0x1100, 0x11FF, 0x1200, 0x123F, 0x1240) == [SP8, SP16, SP8, SP16, FRAME]


def test_rows_past_the_end_of_an_fde_are_left_out(tmp_path: Path) -> None:
    frames = Frames()
    frames.fde(frames.cie(), 0x1100, 0x10, b"\x4f\x0e\x10\x41\x0e\x18")
    table = table_of(elf(frames.data), tmp_path)
    assert at(table, 0x110E, 0x110F, 0x1110) == [SP8, SP16, FRAME]


def test_repeated_rules_take_one_row(tmp_path: Path) -> None:
    frames = Frames()
    frames.fde(frames.cie(), 0x1100, 0x40, b"\x41\x83\x02\x41\x8c\x03\x41\x0e\x10")
    assert len(table_of(elf(frames.data), tmp_path).rows) == 4  # gap, two rules, frame


def test_programs_with_addresses_and_twins(tmp_path: Path) -> None:
    frames = Frames()
    cie = frames.cie(augmentation_data=b"\0")
    for begin in (0x1100, 0x1200, 0x1300):
        program = b"\x41\x01" + struct.pack("<Q", 0x1220) + b"\x0e\x10"
        frames.fde(cie, begin, 0x40, program, "<Q", 0)
    table = table_of(elf(frames.data), tmp_path)
    # The first jumps past its end, the last back.
    assert at(table, 0x1100, 0x113F, 0x1200, 0x121F, 0x1220) == [SP8, SP8, SP8, SP8, SP16]
    assert at(table, 0x1300) == [LEFT]


def test_an_unsound_program_is_not_understood(tmp_path: Path) -> None:
    frames = frames_of((0x1100, 0x40))
    frames.fde(0, 0x1200, 0x40, b"\x0b")
    frames.fde(frames.cie(b"\x0b"), 0x1300, 0x40)
    table = table_of(elf(frames.data), tmp_path)
    assert at(table, 0x1101, 0x1200, 0x1300) == [SP16, LEFT, LEFT]


def test_signal_and_outermost_frames(tmp_path: Path) -> None:
    frames = Frames()
    frames.fde(frames.cie(b"\x0f\x04\x77\xa0\x01\x06", b"zRS"), 0x10FF, 0x10)
    frames.fde(frames.cie(b"\x0c\x07\x08\x07\x10"), 0x110F, 0x10)
    table = table_of(elf(frames.data), tmp_path)
    assert at(table, 0x10FF, 0x110E, 0x110F) == [pack(Cfa.SIGNAL)] * 2 + [END]


def test_other_factors_than_the_usual(tmp_path: Path) -> None:
    frames = Frames()
    cie = frames.cie(b"\x0c\x07\x08\x90\x02", data_align=-4, code_align=4)
    frames.fde(cie, 0x1100, 0x40, b"\x41\x0e\x10\x86\x04")
    table = table_of(elf(frames.data), tmp_path)
    assert at(table, 0x1103, 0x1104) == [SP8, pack(Cfa.SP, 16, Bp.AT_CFA, -16)]


# Too much


def test_a_page_of_too_many_rows_is_a_gap(tmp_path: Path) -> None:
    program = b"".join(b"\x41\x0e" + bytes([8 + 8 * (number % 2)]) for number in range(3 * 4096))
    frames = Frames()
    frames.fde(frames.cie(), 0x1001, 0x2800, program)
    table = table_of(elf(frames.data), tmp_path)
    assert table.pages["count"].tolist() == [4094, 0, 2050, 0]
    assert at(table, 0x1FFF, 0x2000, 0x2FFF) == [SP16, GAP, GAP]
    assert at(table, 0x3000, 0x3001, 0x3800) == [SP8, SP16, SP8]


def test_too_many_rules_are_not_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MAX_RULES", 5)
    frames = Frames()
    cie = frames.cie()
    for place in range(0x1100, 0x1200, 0x10):
        frames.fde(cie, place, 0x10, b"\x41\x0e\x10")
    frames.fde(cie, 0x1200, 0x10, b"\x0e\x18\x41\x0e\x20")
    table = table_of(elf(frames.data), tmp_path)
    assert len(table.rules) == 5
    assert at(table, 0x1100, 0x1101, 0x1200) == [SP8, SP16, LEFT]


def test_more_rules_than_fit_are_not_understood(tmp_path: Path) -> None:
    frames = Frames()
    cie = frames.cie()
    for place in range(70):
        program = b"".join(b"\x41\x0e" + uleb(1000 * place + row) for row in range(1000))
        frames.fde(cie, CODE + 0x400 * place, 0x400, program)
    table = table_of(elf(frames.data, ((CODE, 0x400 * 70),)), tmp_path)
    assert len(table.rules) == 1 << 16
    found = at(table, *(CODE + 0x400 * place + row for place in range(70) for row in (5, 999)))
    wanted = [pack(Cfa.SP, 1000 * place + row - 1) for place in range(70) for row in (5, 999)]
    assert found[:120] == wanted[:120]
    assert set(found[134:]) <= {LEFT, *wanted}
    assert LEFT in found


def test_too_much_code_is_refused(tmp_path: Path) -> None:
    for code in (((0x1000, 1 << 33),), ((0x1000, 0x1000), (1 << 40, 0x1000)), ((0, 2**64 - 1),)):
        with pytest.raises(BadElf, match=r"code over|a segment at"):
            table_of(elf(frames_of((0x1100, 0x40)).data, code), tmp_path)


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_ROWS", 99)
    monkeypatch.setattr(frame_rows, "MAX_ROWS", 99)
    data = elf(frames_of(*((CODE + 0x40 * number, 0x40) for number in range(50))).data)
    with pytest.raises(BadElf, match="100 rows"):
        table_of(data, tmp_path)
    frames = Frames()
    frames.fde(frames.cie(), 0x1000, 0x400, b"\x41" * 100)
    with pytest.raises(BadElf, match="too many rows"):
        table_of(elf(frames.data), tmp_path)


def test_too_many_odd_programs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_rows, "_MAX_SINGLY", 300)
    frames = Frames()
    cie = frames.cie(data_align=-4)
    for number in range(100):
        frames.fde(cie, CODE + 0x40 * number, 0x40, b"\x41\x0e" + bytes([number + 1]))
    with pytest.raises(BadElf, match="odd programs"):
        table_of(elf(frames.data), tmp_path)


def test_a_giant_program_is_not_understood(tmp_path: Path) -> None:
    frames = frames_of((0x1100, 0x40))
    frames.fde(0, 0x1200, 0x40, b"\x0e\x10" * (1 << 16))
    assert at(table_of(elf(frames.data), tmp_path), 0x1101, 0x1200) == [SP16, LEFT]


# Hostile files

_HUGE = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@functools.cache
def _real() -> tuple[bytes, int, int]:
    """libc, and from where to where its .eh_frame is."""
    content = Path(LIBC).read_bytes()
    with ElfFile.open(LIBC) as image:
        section = image.section(b".eh_frame")
    assert section is not None
    return content, int(section["offset"]), int(section["offset"]) + int(section["size"])


def table_or_refusal(data: bytes, folder: Path) -> Table | None:
    """As table_of; None for BadElf. Bounded in time."""
    began = time.process_time()
    table = None
    with contextlib.suppress(BadElf):
        table = table_of(data, folder)
    assert time.process_time() - began < 5
    return table


@_HUGE
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=30))
def test_damaged_frames_of_libc(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content, first, last = _real()
    data = bytearray(content)
    for place, value in changes:
        data[first + place % (last - first)] = value
    table_or_refusal(bytes(data), tmp_path)


@_HUGE
@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_headers_of_libc(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(_real()[0])
    for place, value in changes:
        data[place] = value
    table_or_refusal(bytes(data), tmp_path)


@_HUGE
@given(st.integers(0))
def test_truncated_libc(tmp_path: Path, size: int) -> None:
    content, first, _ = _real()
    data = bytearray(content[: size % len(content)])
    data[0x28:0x30] = bytes(8)  # no sections, which stand at the end
    table = table_or_refusal(bytes(data[: size % len(content)]), tmp_path)
    if len(data) < first:
        assert table is None or pack(Cfa.SP, 8) not in table.rules


@_HUGE
@given(st.binary(max_size=2000))
@example(b"\xff" * 100)
@example(b"\x08\0\0\0" + bytes(8) + b"\x04\0\0\0" * 50)
def test_random_frames(tmp_path: Path, frames: bytes) -> None:
    table_or_refusal(elf(frames), tmp_path)


@_HUGE
@given(
    st.lists(
        st.tuples(
            st.integers(0xF00, 0x5100),
            st.integers(-4, 0x5000),
            st.binary(max_size=60),
            st.sampled_from([b"", b"\0", b"\5", b"\xff\xff\xff\xff\x7f"]),
        ),
        max_size=80,
    ),
    st.binary(max_size=12),
    st.sampled_from([(1, -8), (4, -4), (65536, 65536), (1, 0)]),
)
def test_random_programs(
    tmp_path: Path,
    fdes: list[tuple[int, int, bytes, bytes]],
    initial: bytes,
    factors: tuple[int, int],
) -> None:
    frames = Frames()
    cies = [
        frames.cie(),
        frames.cie(initial, b"zRS"),
        frames.cie(initial, code_align=factors[0], data_align=factors[1]),
    ]
    for number, (begin, size, program, augmentation) in enumerate(fdes):
        frames.fde(cies[number % 3], begin, size, program, augmentation=augmentation or b"\0")
    table_or_refusal(elf(frames.data), tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x41" * 60_000,  # rows
        b"\x0e\x08" * 30_000,
        b"\x0a\x0b" * 30_000,
        b"\x08\x03" * 30_000,  # only the slow interpreter knows it
        b"\x0f\x04\x77\xa0\x01\x06" * 10_000,
        b"\x10\x06\x02\x76\x70" * 10_000,
        b"\x0e" + b"\xff" * 60_000,
        b"\x01" + b"\xff" * 60_000,
    ],
    ids=lambda program: program[:2].hex(),
)
def test_long_programs_end(tmp_path: Path, program: bytes) -> None:
    frames = Frames()
    cie = frames.cie()
    for number in range(60):
        frames.fde(cie, CODE + 0x100 * number, 0x100, bytes([0x41, 0x0E, number]) + program)
    began = time.process_time()
    with contextlib.suppress(BadElf):
        table_of(elf(frames.data), tmp_path)
    assert time.process_time() - began < 30


def test_tables_are_sound_for_all_of_a_library() -> None:
    with ElfFile.open(LIBC) as image:
        table = build_table(image)
        rows = frame_rows.frame_rows(image, eh_frame.read(image))
    table.check()
    every = slice(None, None, 17)
    wanted = rows.rules[rows.rule[every]].tolist()
    assert at(table, *rows.address[every].tolist()) == wanted
    assert len(table.rows) < len(rows.address)
    assert np.count_nonzero(table.pages["count"] > 0) > 250


def test_the_state_keeps_what_it_packs() -> None:
    for kind in Cfa:
        assert cfa.KIND & kind == kind
    assert cfa.KIND & cfa.BP & cfa.RA == 0
    assert (cfa.SIGNAL | cfa.FOREIGN) & (cfa.KIND | cfa.BP | cfa.RA) == 0
