"""The tables of mapped files: what the programs are told of an address space."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from bpflame.bpf.unwind.arena import CHUNK_WORDS, MAX_MAPPINGS
from bpflame.bpf.unwind.cache import TableCache
from bpflame.bpf.unwind.rules import Cfa, pack
from bpflame.bpf.unwind.table import MAX_RULES, Table
from bpflame.bpf.unwind.walk import WHY_FRAMES, WHY_LATER, WHY_NO_TABLE
from bpflame.profile import Reason
from bpflame.profilers import unwind_tables
from bpflame.profilers.unwind_tables import UnwindTables
from bpflame.raw import AddressSpace, FileKey, Mapping
from tests.unit import elf_builder, unwind_fakes
from tests.unit.eh_frame_builder import ADDRESS, Frames, elf
from tests.unit.elf_builder import RX, R, Section, Segment, note
from tests.unit.walk_harness import library

SP8, SP16 = pack(Cfa.SP, 8), pack(Cfa.SP, 16)
PUSHED = b"\x41\x0e\x10"  # from the second byte on, 16
START = 0x7F0000000000
ANONYMOUS = FileKey("//anon")


class Cache(TableCache):
    """In memory; for the rest it is tested by itself."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Table] = {}

    def load(self, build_id: bytes) -> Table | None:
        return self.kept.get(build_id)

    def store(self, build_id: bytes, table: Table) -> None:
        self.kept[build_id] = table


class Tables(UnwindTables):
    """Without BPF.

    Attributes:
        bpf: What was written.
        kept: The descriptors of files.
        cached: The tables kept between recordings.
    """

    def __init__(self, bpf: unwind_fakes.FakeBpf, most: int) -> None:
        self.bpf, self.cached = bpf, Cache()
        self.kept: dict[FileKey, int] = {}
        super().__init__(bpf, most, self.kept, self.cached)

    def told(self, *mappings: Mapping) -> list[tuple[int, ...]]:
        """The records, and that nothing is to come."""
        records, later = self.records(AddressSpace(1, 0, list(mappings)))
        assert not later
        return [tuple(row) for row in records.tolist()]

    def rule(self, mapping: Mapping, address: int) -> int | None:
        """What the programs find at an address; None where there is no table."""
        ((start, end, delta, pages, count),) = self.told(mapping)
        assert start <= address < end
        offset = (address + delta) % 2**64
        if not pages or offset // 4096 >= count:
            return None
        return self.rules[library().find_row(pages, offset)]


@contextlib.contextmanager
def opened(most: int = 4) -> Iterator[Tables]:
    with (
        unwind_fakes.fake_bpf() as bpf,
        mock.patch.object(unwind_tables, "BpfMap", bpf.map),
        contextlib.closing(Tables(bpf, most)) as made,
    ):
        yield made


@pytest.fixture
def tables() -> Iterator[Tables]:
    with opened() as made:
        yield made


def frames_of(*begins: int) -> bytes:
    """Functions of 64 bytes that push in their first byte."""
    frames = Frames()
    cie = frames.cie()
    for begin in begins:
        frames.fde(cie, begin, 64, PUSHED)
    return frames.data


def build_id(content: bytes) -> Section:
    return Section(flags=0, kind=elf_builder.NOTE, data=note(b"GNU\0", 3, content))


def file(path: Path, data: bytes, mode: int = 0o644) -> FileKey:
    path.write_bytes(data)
    path.chmod(mode)
    return FileKey(str(path), inode=path.stat().st_ino)


def at(key: FileKey, start: int = START, size: int = 0x1000, offset: int = 0x1000) -> Mapping:
    return Mapping(start, start + size, offset, key)


def test_a_mapping_leads_to_the_table_of_its_file(tables: Tables, tmp_path: Path) -> None:
    key = file(tmp_path / "image", elf(frames_of(0x1100, 0x2F00)))
    mapping = at(key, size=0x4000)
    records, later = tables.records(AddressSpace(1, 0, [mapping]))
    assert records.tolist() == [(START, START + 0x4000, 0, 0, WHY_LATER)]
    assert later == [mapping]
    tables.load(key)
    assert key in tables.known
    ((start, end, _, pages, count),) = tables.told(mapping)
    assert (start, end, count) == (START, START + 0x4000, 4)
    assert pages
    expected = {0x100: SP8, 0x101: SP16, 0x13F: SP16, 0x1F00: SP8, 0x1F01: SP16}
    assert {low: tables.rule(mapping, START + low) for low in expected} == expected
    assert tables.loaded == 1
    assert not tables.missing


def test_part_of_a_file_may_be_mapped(tables: Tables, tmp_path: Path) -> None:
    key = file(tmp_path / "image", elf(frames_of(0x1100, 0x2F00)))
    tables.load(key)
    second = at(key, START + 0x5000, offset=0x2000)
    assert tables.rule(second, START + 0x5F01) == SP16
    assert tables.rule(at(key, offset=0x4000), START) not in (None, SP8, SP16)


def test_the_segment_that_a_mapping_shows_the_most_of_counts(
    tables: Tables, tmp_path: Path
) -> None:
    """Segments of different distance between file and address, two of them in one page."""
    data = elf_builder.build(
        code=(),
        segments=[
            Segment(0, 0, 0x1080, R),
            Segment(0x1080, 0x3080, 0x800),
            Segment(0x1880, 0x5880, 0x1000, RX),
        ],
        more=[Section(ADDRESS, flags=2, data=frames_of(0x3100, 0x5900), name=b".eh_frame")],
    )
    key = file(tmp_path / "image", data.ljust(0x3000, b"\0"))
    tables.load(key)
    first = at(key, START, 0x1000, 0x1000)
    second = at(key, START + 0x2000, 0x2000, 0x1000)
    assert tables.rule(first, START + 0x101) == SP16
    assert tables.rule(second, START + 0x2901) == SP16
    outside = at(key, START, 0x1000, 0)
    assert tables.told(outside) == [(START, START + 0x1000, 0, 0, WHY_NO_TABLE)]


@pytest.mark.parametrize("name", ["//anon", "", "[heap]", "[stack]", "/dev/zero", "/SYSV00000000"])
def test_code_of_no_file_is_walked_by_frames(tables: Tables, name: str) -> None:
    key = FileKey(name)
    tables.load(key)
    assert tables.told(at(key)) == [(START, START + 0x1000, 0, 0, WHY_FRAMES)]
    assert not tables.missing


def test_memory_that_has_a_descriptor_is_no_file(tables: Tables) -> None:
    key = FileKey("/memfd:jit (deleted)", inode=1)
    fd = os.memfd_create("jit")
    try:
        os.write(fd, b"\xc3" * 4096)
        tables.kept[key] = fd
        tables.load(key)
        assert tables.told(at(key))[0][3:] == (0, WHY_FRAMES)
    finally:
        os.close(fd)


def test_the_vdso_has_a_table(tables: Tables) -> None:
    key = FileKey("[vdso]")
    tables.load(key)
    ((_, _, _, pages, count),) = tables.told(at(key, size=0x2000, offset=0))
    assert pages
    assert count >= 1


def test_files_without_a_table_are_counted_by_reason(tables: Tables, tmp_path: Path) -> None:
    gone = FileKey(str(tmp_path / "nowhere"), inode=5)
    bad = file(tmp_path / "text", b"#!/bin/sh\n")
    narrow = file(tmp_path / "narrow", elf(frames_of(0x1100), bits=32, machine=3))
    for key in (gone, bad, narrow):
        tables.load(key)
        assert tables.told(at(key)) == [(START, START + 0x1000, 0, 0, WHY_NO_TABLE)]
    assert tables.missing == {Reason.FILE_GONE: 1, Reason.BAD_FILE: 2}
    assert tables.gone == {gone}


def test_a_file_that_is_gone_may_still_be_opened_by_another_process(
    tables: Tables, tmp_path: Path
) -> None:
    data = elf(frames_of(0x1100))
    key = file(tmp_path / "image", data)
    os.rename(tmp_path / "image", tmp_path / "moved")
    tables.load(key)
    assert tables.told(at(key))[0][3:] == (0, WHY_NO_TABLE)
    fd = os.open(tmp_path / "moved", os.O_RDONLY)
    try:
        tables.kept[key] = fd
        _, later = tables.records(AddressSpace(1, 0, [at(key)]))
        assert later == [at(key)]
        tables.load(key)
        assert tables.rule(at(key), START + 0x101) == SP16
        assert not tables.gone
    finally:
        os.close(fd)


def test_what_jit_compilers_map_piece_by_piece_is_one(tables: Tables, tmp_path: Path) -> None:
    bad = file(tmp_path / "text", b"no ELF file")
    other = FileKey("[heap]")
    for key in (ANONYMOUS, other, bad):
        tables.load(key)
    pieces = [
        at(ANONYMOUS, START, 0x1000),
        at(ANONYMOUS, START + 0x1000, 0x1000),
        at(other, START + 0x2000, 0x3000),
        at(ANONYMOUS, START + 0x6000, 0x1000),  # not beside it
        at(bad, START + 0x7000, 0x1000),
        at(ANONYMOUS, START + 0x8000, 0x1000),
    ]
    assert tables.told(*pieces) == [
        (START, START + 0x5000, 0, 0, WHY_FRAMES),
        (START + 0x6000, START + 0x7000, 0, 0, WHY_FRAMES),
        (START + 0x7000, START + 0x8000, 0, 0, WHY_NO_TABLE),
        (START + 0x8000, START + 0x9000, 0, 0, WHY_FRAMES),
    ]


def test_what_is_still_to_come_is_not_merged(tables: Tables) -> None:
    tables.load(ANONYMOUS)
    unknown = FileKey("/somewhere", inode=7)
    pieces = [at(ANONYMOUS), at(unknown, START + 0x1000), at(unknown, START + 0x2000)]
    records, later = tables.records(AddressSpace(1, 0, pieces))
    assert records["count"].tolist() == [WHY_FRAMES, WHY_LATER, WHY_LATER]
    assert later == pieces[1:]


def test_the_kernels_half_and_empty_mappings_are_left_out(tables: Tables) -> None:
    tables.load(ANONYMOUS)
    vsyscall = Mapping(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, 0, FileKey("[vsyscall]"))
    assert tables.told(at(ANONYMOUS, size=0), vsyscall) == []
    last = Mapping((1 << 63) - 4096, 1 << 63, 0, ANONYMOUS)
    assert len(tables.told(last, vsyscall)) == 1


def test_one_file_at_two_paths_has_one_table(tables: Tables, tmp_path: Path) -> None:
    data = elf(frames_of(0x1100), more=[build_id(b"A" * 20)])
    keys = [file(tmp_path / name, data) for name in ("one", "two")]
    for key in keys:
        tables.load(key)
    assert tables.loaded == 1
    assert [*tables.cached.kept] == [b"A" * 20]
    assert tables.told(at(keys[0])) == tables.told(at(keys[1]))


def test_a_table_that_was_kept_is_not_made_again(tmp_path: Path) -> None:
    key = file(tmp_path / "one", elf(frames_of(0x1100), more=[build_id(b"A" * 20)]))
    with opened() as first:
        first.load(key)
        kept = first.cached.kept
    with opened() as second:
        second.cached.kept = kept
        with mock.patch.object(unwind_tables, "build_table", side_effect=AssertionError):
            second.load(key)
        assert second.rule(at(key), START + 0x101) == SP16


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_build_id_that_anyone_can_write_stands_for_nothing(
    tables: Tables, tmp_path: Path, mode: int
) -> None:
    """A file with the build id of libc, and other tables, must not change those of libc."""
    same = [build_id(b"A" * 20)]
    forged = file(tmp_path / "forged", elf(frames_of(0x1200), more=same), mode)
    right = file(tmp_path / "right", elf(frames_of(0x1100), more=same))
    tables.load(forged)
    assert b"A" * 20 not in tables.cached.kept
    tables.load(right)
    assert tables.rule(at(right), START + 0x101) == SP16
    assert tables.rule(at(forged), START + 0x201) == SP16
    assert tables.rule(at(forged), START + 0x101) != SP16
    assert len(tables.cached.kept) == 2


def test_a_file_without_a_build_id_is_known_by_what_it_is(tables: Tables, tmp_path: Path) -> None:
    one = file(tmp_path / "one", elf(frames_of(0x1100)))
    two = file(tmp_path / "two", elf(frames_of(0x1200)))
    for key in (one, two):
        tables.load(key)
    assert tables.rule(at(one), START + 0x101) == SP16
    assert tables.rule(at(two), START + 0x201) == SP16
    assert all(len(name) == 32 for name in tables.cached.kept)


@pytest.mark.parametrize("kept", [False, True])
def test_a_file_that_is_not_the_one_mapped_is_not_used(
    tables: Tables, tmp_path: Path, kept: bool
) -> None:
    path = tmp_path / "image"
    file(path, elf(frames_of(0x1100), more=[build_id(b"B" * 20)]))
    key = FileKey(str(path), b"A" * 20)
    with path.open("rb") as stream:
        if kept:
            tables.kept[key] = stream.fileno()
        tables.load(key)
    assert tables.told(at(key))[0][3:] == (0, WHY_NO_TABLE)
    assert tables.missing == {Reason.FILE_GONE: 1}
    assert not tables.cached.kept


def test_a_file_of_another_inode_is_not_used(tables: Tables, tmp_path: Path) -> None:
    key = file(tmp_path / "image", elf(frames_of(0x1100)))
    other = FileKey(key.path, inode=key.inode + 1)
    tables.load(other)
    assert tables.told(at(other))[0][3:] == (0, WHY_NO_TABLE)


def test_tables_that_there_is_no_room_for_are_counted(tmp_path: Path) -> None:
    key = file(tmp_path / "image", elf(frames_of(0x1100)))
    with opened(most=1) as tables:
        assert tables.arena.take(CHUNK_WORDS - 8, whole=True) == 8
        tables.load(key)
        assert tables.told(at(key))[0][3:] == (0, WHY_NO_TABLE)
        assert tables.missing == {None: 1}


def test_files_share_the_numbers_of_rules(tables: Tables, tmp_path: Path) -> None:
    for n in range(3):
        tables.load(file(tmp_path / f"image{n}", elf(frames_of(0x1100 + 64 * n))))
    assert len(set(tables.rules)) == len(tables.rules)
    written = tables.bpf.updates[tables.bpf.RULES]
    assert written == {
        number.to_bytes(4, "little"): rule.to_bytes(8, "little")
        for number, rule in enumerate(tables.rules)
    }


def test_a_rule_that_there_is_no_room_for_is_one_that_nobody_can_follow(tables: Tables) -> None:
    first = np.array([pack(Cfa.SP, 8 * n) for n in range(MAX_RULES)], np.uint64)
    tables._number(first)
    (number,) = tables._number(np.array([pack(Cfa.BP, 16)], np.uint64)).tolist()
    assert len(tables.rules) <= MAX_RULES
    assert tables.rules[number] == Cfa.UNSUPPORTED


def test_where_there_are_too_many_mappings_files_come_first(tables: Tables, tmp_path: Path) -> None:
    key = file(tmp_path / "image", elf(frames_of(0x1100)))
    for each in (key, ANONYMOUS):
        tables.load(each)
    scattered = [at(ANONYMOUS, START + 0x2000 * n) for n in range(MAX_MAPPINGS)]
    code = at(key, START + 0x2000 * MAX_MAPPINGS)
    space = AddressSpace(1, 0, [*scattered, code])
    for _ in range(2):
        records, _ = tables.records(space)
        assert len(records) <= MAX_MAPPINGS
        assert code.start in records["start"].tolist()
        assert (np.diff(records["start"].astype(np.int64)) > 0).all()
    assert len(tables.crowded) == 1
