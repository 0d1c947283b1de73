"""Writes .eh_frame sections and ELF files around them; looks addresses up in tables."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bpflame.bpf.unwind.build import build_table
from bpflame.bpf.unwind.table import Table
from bpflame.symbolize.elf_file import ElfFile
from tests.unit import elf_builder
from tests.unit.elf_builder import Section, Segment

CODE, CODE_SIZE = 0x1000, 0x4000
ADDRESS = 0x10_0000  # of .eh_frame
STANDARD = bytes.fromhex("0c0708 9001")  # def_cfa rsp+8; offset ra at cfa-8
SDATA4 = 0x1B  # pc-relative, as compilers write


def uleb(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def sleb(value: int) -> bytes:
    data = bytearray()
    while not -64 <= value < 64:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value & 0x7F])


class Frames:
    """A growing .eh_frame section."""

    def __init__(self, address: int = ADDRESS) -> None:
        self.address = address
        self.data = b""

    def entry(self, content: bytes, wide: bool = False) -> int:
        """Adds an entry, with nops up to a multiple of 4; its offset."""
        offset = len(self.data)
        content += bytes(-len(content) % 4)
        size = struct.pack("<I", len(content))
        if wide:
            size = b"\xff" * 4 + struct.pack("<Q", len(content))
        self.data += size + content
        return offset

    def cie(
        self,
        program: bytes = STANDARD,
        augmentation: bytes = b"zR",
        augmentation_data: bytes = bytes([SDATA4]),
        version: int = 1,
        code_align: int = 1,
        data_align: int = -8,
        ra: int = 16,
        wide: bool = False,
    ) -> int:
        content = bytes(4) + bytes([version]) + augmentation + b"\0"
        content += b"\x08\0" if version == 4 else b""
        content += uleb(code_align) + sleb(data_align) + uleb(ra)
        if augmentation.startswith(b"z"):
            content += uleb(len(augmentation_data)) + augmentation_data
        return self.entry(content + program, wide)

    def fde(
        self,
        cie: int,
        begin: int,
        size: int,
        program: bytes = b"",
        kind: str = "<i",
        relative: int | None = None,
        augmentation: bytes = b"\0",
        wide: bool = False,
    ) -> int:
        """An FDE whose pointers are stored as ``kind``, less ``relative`` or its own place."""
        here = len(self.data) + (12 if wide else 4)
        base = self.address + here + 4 if relative is None else relative
        if kind == "uleb":
            pointers = uleb(begin - base) + uleb(size)
        else:
            pointers = struct.pack(kind, begin - base) + struct.pack(kind, size)
        content = struct.pack("<I", (here - cie) % 2**32) + pointers + augmentation + program
        return self.entry(content, wide)

    def terminator(self) -> None:
        self.data += bytes(4)


def elf(
    frames: bytes,
    code: Sequence[tuple[int, int]] = ((CODE, CODE_SIZE),),
    name: bytes = b".eh_frame",
    kind: int = elf_builder.PROGBITS,
    size: int | None = None,
    more: Sequence[Section] = (),
    segments: Sequence[Segment] = (),
    machine: int = 62,
    bits: int = 64,
) -> bytes:
    """An ELF file with this .eh_frame and these executable segments (address, size)."""
    return elf_builder.build(
        code=(),
        segments=[*(Segment(start, start, length) for start, length in code), *segments],
        more=[
            *more,
            Section(ADDRESS, flags=elf_builder.ALLOC, data=frames, name=name, kind=kind, size=size),
        ],
        machine=machine,
        bits=bits,
    )


def table_of(data: bytes, folder: Path) -> Table:
    """The table of a file with this content; checked."""
    path = folder / "image"
    path.write_bytes(data)
    with ElfFile.open(str(path)) as file:
        table = build_table(file)
    table.check()
    return table


def lookup(table: Table, address: int) -> int:
    """The rule at a virtual address, as the BPF programs find it."""
    page, low = divmod(address - table.first, 4096)
    start, count, carry = table.pages[page].tolist()
    rows = table.rows[start : start + count]
    index = int(np.searchsorted(rows >> np.uint32(16), low, side="right"))
    return int(table.rules[rows[index - 1] & np.uint32(0xFFFF) if index else carry])
