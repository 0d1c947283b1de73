"""Finding .eh_frame in files, and the FDEs in it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bpflame.bpf.unwind import cie as cie_module
from bpflame.bpf.unwind import eh_frame
from bpflame.bpf.unwind.eh_frame import Fdes
from bpflame.symbolize.elf_file import BadElf, ElfFile
from tests.unit import elf_builder
from tests.unit.eh_frame_builder import (
    ADDRESS,
    CODE,
    CODE_SIZE,
    SDATA4,
    STANDARD,
    Frames,
    elf,
    sleb,
    uleb,
)
from tests.unit.elf_builder import Section, Segment

PUSHED = b"\x41\x0e\x10"


def read(data: bytes, folder: Path) -> Fdes:
    path = folder / "image"
    path.write_bytes(data)
    with ElfFile.open(str(path)) as file:
        return eh_frame.read(file)


def programs(fdes: Fdes) -> list[tuple[int, int, bytes]]:
    """Begin, end and program, without nops at the end."""
    return [
        (begin, end, fdes.data[first:last].rstrip(b"\0"))
        for begin, end, first, last in zip(
            fdes.begin.tolist(),
            fdes.end.tolist(),
            fdes.first.tolist(),
            fdes.last.tolist(),
            strict=True,
        )
    ]


def one(frames: Frames, begin: int = 0x1100) -> Frames:
    frames.fde(frames.cie(), begin, 0x40, PUSHED)
    return frames


WANTED = [(0x1100, 0x1140, PUSHED)]


def test_an_fde_is_found(tmp_path: Path) -> None:
    fdes = read(elf(one(Frames()).data), tmp_path)
    assert programs(fdes) == WANTED
    assert (fdes.cies[0].encoding, fdes.cies[0].program) == (SDATA4, STANDARD + bytes(2))


@pytest.mark.parametrize("name", [b".eh_frame", b"", b".unwind"])
def test_the_section_may_be_of_the_type_for_unwinding(tmp_path: Path, name: bytes) -> None:
    data = elf(one(Frames()).data, name=name, kind=0x70000001)
    assert programs(read(data, tmp_path)) == WANTED


def test_eh_frame_hdr_of_that_type_is_not_eh_frame(tmp_path: Path) -> None:
    header = Section(0x9000, flags=elf_builder.ALLOC, data=b"\xff" * 64, kind=0x70000001)
    data = elf(
        one(Frames()).data,
        name=b"",
        kind=0x70000001,
        more=[header],
        segments=[Segment(0, 0x9000, 64, elf_builder.R, 0x6474E550)],
    )
    assert programs(read(data, tmp_path)) == WANTED


def without_sections(frames: Frames, encoding: int, pointer: bytes, tail: bytes = b"") -> bytes:
    """A file with .eh_frame_hdr at 0x8000 of its segment, and .eh_frame behind at ADDRESS."""
    header = (bytes([1, encoding, 0xFF, 0xFF]) + pointer).ljust(16, b"\0")
    bare = elf(b"", segments=[Segment(0, 0, 0)] * 3)
    at = len(bare)
    content = header + frames.data + tail
    loads = [
        Segment(at, 0x8000, 16, elf_builder.R),
        Segment(at + 16, ADDRESS, len(content) - 16, elf_builder.R),
        Segment(at, 0x8000, 16, elf_builder.R, 0x6474E550),
    ]
    data = bytearray(elf(b"", segments=loads) + content)
    data[0x28:0x30] = bytes(8)
    return bytes(data)


@pytest.mark.parametrize(
    ("encoding", "pointer"),
    [
        (0x1B, struct.pack("<i", ADDRESS - 0x8004)),
        (0x1C, struct.pack("<q", ADDRESS - 0x8004)),
        (0x03, struct.pack("<I", ADDRESS)),
        (0x00, struct.pack("<Q", ADDRESS)),
        (0x01, uleb(ADDRESS)),
        (0x09, sleb(ADDRESS)),
    ],
)
def test_without_sections_the_segment_leads_there(
    tmp_path: Path, encoding: int, pointer: bytes
) -> None:
    frames = one(Frames())
    frames.terminator()
    data = without_sections(frames, encoding, pointer, tail=b"\xee" * 40)
    assert programs(read(data, tmp_path)) == WANTED
    data = without_sections(one(Frames()), encoding, pointer)  # up to the end of the segment
    assert programs(read(data, tmp_path)) == WANTED


@pytest.mark.parametrize(
    ("encoding", "pointer"),
    [(0xFF, b""), (0x9B, bytes(4)), (0x5B, bytes(4)), (0x0F, bytes(4)), (0x3B, bytes(4))],
)
def test_a_header_that_leads_nowhere_is_an_error(
    tmp_path: Path, encoding: int, pointer: bytes
) -> None:
    with pytest.raises(BadElf, match=r"eh_frame_hdr"):
        read(without_sections(one(Frames()), encoding, pointer), tmp_path)


def test_a_pointer_out_of_the_file_is_an_error(tmp_path: Path) -> None:
    data = without_sections(one(Frames()), 0x03, struct.pack("<I", 0x70000000))
    with pytest.raises(BadElf, match="leads nowhere"):
        read(data, tmp_path)


@pytest.mark.parametrize("address", [2**62, 2**63, 2**64 - 1])
def test_absurd_addresses_are_refused(tmp_path: Path, address: int) -> None:
    frames = Frames()
    frames.fde(frames.cie(augmentation_data=b"\x3b"), 0x1100, 0x40, PUSHED, "<i", 0)
    header = Segment(0, address, 64, elf_builder.R, 0x6474E550)
    with pytest.raises(BadElf, match=r"eh_frame_hdr at 0x"):
        read(elf(frames.data, segments=[header]), tmp_path)


def test_no_call_frame_information_is_none(tmp_path: Path) -> None:
    assert len(read(elf(b""), tmp_path)) == 0
    assert len(read(elf(bytes(4)), tmp_path)) == 0
    assert len(read(elf_builder.build(code=()), tmp_path)) == 0


def test_stripped_of_content_is_none(tmp_path: Path) -> None:
    data = elf(one(Frames()).data, kind=elf_builder.NOBITS, size=2**40)
    assert len(read(data, tmp_path)) == 0


# Entries


def test_terminators_in_the_middle_are_passed(tmp_path: Path) -> None:
    frames = Frames()
    frames.terminator()
    one(frames)
    frames.terminator()
    frames.terminator()
    one(frames, 0x1200)
    frames.terminator()
    assert [begin for begin, _, _ in programs(read(elf(frames.data), tmp_path))] == [0x1100, 0x1200]


def test_lengths_of_64_bits(tmp_path: Path) -> None:
    frames = Frames()
    cie = frames.cie(wide=True)
    frames.fde(cie, 0x1100, 0x40, PUSHED, wide=True)
    frames.fde(cie, 0x1200, 0x40, PUSHED)
    assert programs(read(elf(frames.data), tmp_path)) == [*WANTED, (0x1200, 0x1240, PUSHED)]


@pytest.mark.parametrize(
    ("encoding", "kind", "relative"),
    [
        (0x00, "<Q", 0),
        (0x02, "<H", 0),
        (0x03, "<I", 0),
        (0x04, "<Q", 0),
        (0x0A, "<h", 0),
        (0x0B, "<i", 0),
        (0x0C, "<q", 0),
        (0x01, "uleb", 0),
        (0x1B, "<i", None),
        (0x1C, "<q", None),
        (0x3B, "<i", 0x9000),
        (0x3C, "<q", 0x9000),
    ],
)
def test_pointer_encodings(tmp_path: Path, encoding: int, kind: str, relative: int | None) -> None:
    frames = Frames()
    cie = frames.cie(augmentation_data=bytes([encoding]))
    frames.fde(cie, 0x1100, 0x40, PUSHED, kind, relative)
    header = Segment(0, 0x9000, 64, elf_builder.R, 0x6474E550)
    assert programs(read(elf(frames.data, segments=[header]), tmp_path)) == WANTED


@pytest.mark.parametrize("encoding", [0xFF, 0x9B, 0x2B, 0x4B, 0x50, 0x05, 0x0F, 0x3B])
def test_other_encodings_cost_their_own_fdes(tmp_path: Path, encoding: int) -> None:
    frames = one(Frames())
    frames.fde(frames.cie(augmentation_data=bytes([encoding])), 0x1200, 0x40)
    assert programs(read(elf(frames.data), tmp_path)) == WANTED


@pytest.mark.parametrize(
    ("augmentation", "data"),
    [
        (b"zR", bytes([SDATA4])),
        (b"zPLR", bytes([0x9B, 1, 2, 3, 4, 0x1B, SDATA4])),
        (b"zPLR", bytes([0xFF, 0x1B, SDATA4])),
        (b"zPR", bytes([0x00, 1, 2, 3, 4, 5, 6, 7, 8, SDATA4])),
        (b"zPR", bytes([0x01, 0x80, 1, SDATA4])),
        (b"zRS", bytes([SDATA4])),
        (b"zRBG", bytes([SDATA4])),
        (b"zR?", bytes([SDATA4, 9, 9, 9])),
    ],
)
def test_augmentations(tmp_path: Path, augmentation: bytes, data: bytes) -> None:
    frames = Frames()
    cie = frames.cie(augmentation=augmentation, augmentation_data=data)
    frames.fde(cie, 0x1100, 0x40, PUSHED, augmentation=b"\x04\1\2\3\4")
    fdes = read(elf(frames.data), tmp_path)
    assert programs(fdes) == WANTED
    assert fdes.cies[0].signal == (b"S" in augmentation)
    assert fdes.cies[0].program.startswith(STANDARD)


@pytest.mark.parametrize("version", [1, 3, 4])
def test_cie_versions_without_augmentation(tmp_path: Path, version: int) -> None:
    frames = Frames()
    cie = frames.cie(augmentation=b"", version=version, data_align=-4, code_align=2)
    frames.fde(cie, 0x1100, 0x40, PUSHED, "<Q", 0, augmentation=b"")
    fdes = read(elf(frames.data), tmp_path)
    assert programs(fdes) == WANTED
    assert (fdes.cies[0].data_align, fdes.cies[0].code_align) == (-4, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2zR\0\1\x78\x10\1\x1b",  # version 2
        b"\1zR",
        b"\1" + b"z" * 40 + b"\0\1\x78\x10",
        b"\1R\0\1\x78\x10\1\x1b",
        b"\1zR\0\0\x78\x10\1\x1b",  # locations are multiples of 0
        b"\1zR\0\1" + sleb(-(2**40)) + b"\x10\1\x1b",
        b"\1zR\0" + uleb(2**40) + b"\x78\x10\1\x1b",
        b"\1zR\0\1\x78\x10\x7f\x1b",
        b"\1zR\0" + b"\xff" * 40,
        b"\1zPR\0\1\x78\x10\4\x50\0\0\x1b",
        b"\1zPR\0\1\x78\x10\4\x07\0\0\x1b",
        b"\4zR\0\4\0\1\x78\x10\1\x1b",  # addresses of 4 bytes
    ],
)
def test_unsound_cies_cost_their_own_fdes(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(cie_module.Unsound):
        cie_module.parse(data)
    frames = one(Frames())
    frames.fde(frames.entry(bytes(4) + data), 0x1200, 0x40)
    assert programs(read(elf(frames.data), tmp_path)) == WANTED


def test_cies_that_say_the_same_are_one(tmp_path: Path) -> None:
    frames = one(one(Frames()), 0x1200)
    fdes = read(elf(frames.data), tmp_path)
    assert (len(fdes), len(fdes.cies)) == (2, 1)


# What is left out


def test_fdes_are_put_in_order_and_apart(tmp_path: Path) -> None:
    frames = Frames()
    cie = frames.cie()
    for begin, size in ((0x1400, 0x80), (0x1100, 0x200), (0x1200, 0x40), (0x1200, 0x90)):
        frames.fde(cie, begin, size)
    found = [place[:2] for place in programs(read(elf(frames.data), tmp_path))]
    assert found == [(0x1100, 0x1200), (0x1200, 0x1240), (0x1400, 0x1480)]


def test_fdes_for_what_is_no_code_are_left_out(tmp_path: Path) -> None:
    frames = Frames()
    cie = frames.cie(augmentation_data=b"\0")
    end = CODE + CODE_SIZE
    for begin, size in ((0, 8), (0xFF0, 0x40), (end, 8), (0x1100, 0), (0x1200, 2**64 - 8)):
        frames.fde(cie, begin, size, b"", "<Q", 0)
    frames.fde(cie, 2**63 + 0x1000, 8, b"", "<Q", 0)
    frames.fde(cie, end - 8, 2**63 - 1, b"", "<Q", 0)
    for code in (((CODE, CODE_SIZE),), ((0, 0x800), (CODE, CODE_SIZE))):
        found = [place[:2] for place in programs(read(elf(frames.data, code), tmp_path))]
        assert found == [(end - 8, end)]


def test_fdes_without_a_cie_are_left_out(tmp_path: Path) -> None:
    frames = one(Frames())
    frames.fde(len(frames.data) + 100, 0x1200, 8)
    frames.fde(4, 0x1300, 8)
    frames.fde(-1, 0x1400, 8)
    frames.fde(len(frames.data), 0x1500, 8)
    frames.entry(struct.pack("<I", len(frames.data) + 4))  # ends behind its CIE pointer
    frames.fde(0, 0x1600, 8, augmentation=b"\xff\xff\x03")
    assert programs(read(elf(frames.data), tmp_path)) == WANTED


@pytest.mark.parametrize("damage", [b"\xf0\xff\xff\xff", b"\2\0\0\0\0\0", b"\xff" * 12, b"\x10"])
def test_what_comes_before_the_damage_is_kept(tmp_path: Path, damage: bytes) -> None:
    frames = one(Frames())
    assert programs(read(elf(frames.data + damage), tmp_path)) == WANTED
    if len(damage) >= 4:
        with pytest.raises(BadElf, match=r"damaged \.eh_frame"):
            read(elf(damage), tmp_path)


def test_frames_of_which_none_is_sound_are_not_none(tmp_path: Path) -> None:
    frames = Frames()
    frames.fde(frames.entry(bytes(4) + b"\2"), 0x1200, 0x40)
    with pytest.raises(BadElf, match=r"damaged \.eh_frame"):
        read(elf(frames.data), tmp_path)


# Files that are refused


def test_other_machines_are_refused(tmp_path: Path) -> None:
    for machine, bits in ((183, 64), (62, 32), (3, 32)):
        data = elf(one(Frames()).data, machine=machine, bits=bits)
        with pytest.raises(BadElf, match="not of x86-64"):
            read(data, tmp_path)


def test_files_without_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadElf, match="no code"):
        read(elf(one(Frames()).data, code=()), tmp_path)


@pytest.mark.parametrize("size", [2**63, 2**33, (64 << 20) + 1])
def test_absurd_sizes_are_refused(tmp_path: Path, size: int) -> None:
    data = elf(one(Frames()).data, size=size)
    with pytest.raises(BadElf):
        read(data, tmp_path)
    path = tmp_path / "sparse"
    path.write_bytes(data)
    with open(path, "r+b") as file:
        file.truncate(1 << 34)
    with ElfFile.open(str(path)) as image, pytest.raises(BadElf, match=r"eh_frame of|past the end"):
        eh_frame.read(image)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eh_frame, "_MAX_ENTRIES", 9)
    monkeypatch.setattr(eh_frame, "_MAX_CIES", 3)
    frames = Frames()
    for _ in range(4):
        one(frames)
    with pytest.raises(BadElf, match="4 CIEs"):
        read(elf(frames.data), tmp_path)
    one(frames)
    with pytest.raises(BadElf, match="9 entries"):
        read(elf(frames.data), tmp_path)
