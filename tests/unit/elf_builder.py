"""Writes small ELF files with exactly the tables a test wants, right or wrong."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

NOTYPE, OBJECT, FUNC, SECTION, FILE, TLS, IFUNC = 0, 1, 2, 3, 4, 6, 10
LOCAL, GLOBAL, WEAK, UNIQUE = 0, 1, 2, 10
UNDEFINED, ABSOLUTE = 0, 0xFFF1
PROGBITS, SYMTAB, STRTAB, NOTE, NOBITS, DYNSYM = 1, 2, 3, 7, 8, 11
ALLOC, CODE = 0x2, 0x6
R, RX = 4, 5


@dataclasses.dataclass(frozen=True)
class Symbol:
    name: str | bytes
    value: int
    size: int = 0
    kind: int = FUNC
    binding: int = GLOBAL
    section: int = 1


@dataclasses.dataclass(frozen=True)
class Section:
    """A section; ``data`` is placed in the file, ``size`` and ``offset`` may lie about it."""

    address: int = 0
    size: int | None = None
    flags: int = CODE
    kind: int = PROGBITS
    data: bytes = b""
    offset: int | None = None
    link: int = 0
    entry: int = 0
    name: bytes = b""


@dataclasses.dataclass(frozen=True)
class Segment:
    offset: int
    address: int
    size: int
    flags: int = RX
    kind: int = 1
    align: int = 0x1000


def note(name: bytes, kind: int, content: bytes, align: int = 4, order: str = "<") -> bytes:
    raw = struct.pack(order + "3I", len(name), len(content), kind) + name
    raw += bytes(-len(raw) % align) + content
    return raw + bytes(-len(raw) % align)


def string_table(symbols: Sequence[Symbol]) -> tuple[bytes, list[int]]:
    strings, offsets = b"\0", []
    for symbol in symbols:
        offsets.append(len(strings))
        raw = symbol.name.encode() if isinstance(symbol.name, str) else symbol.name
        strings += raw + b"\0"
    return strings, offsets


def symbol_data(symbols: Sequence[Symbol], offsets: Sequence[int], bits: int, order: str) -> bytes:
    data = bytes(24 if bits == 64 else 16)
    for symbol, name in zip(symbols, offsets, strict=True):
        info = symbol.binding << 4 | symbol.kind
        where, extent = symbol.value, symbol.size
        if bits == 64:
            row = struct.pack(order + "IBBHQQ", name, info, 0, symbol.section, where, extent)
        else:
            row = struct.pack(order + "IIIBBH", name, where, extent, info, 0, symbol.section)
        data += row
    return data


def build(
    code: Sequence[Section] = (Section(0x1000, 0x1000),),
    symbols: Sequence[Symbol] = (),
    dynamic: Sequence[Symbol] = (),
    segments: Sequence[Segment] = (Segment(0, 0, 0x100000),),
    more: Sequence[Section] = (),
    bits: int = 64,
    order: str = "<",
    machine: int = 62,
) -> bytes:
    """An ELF file: null section, ``code``, then .symtab, .strtab, .dynsym, .dynstr and ``more``.

    The names of sections come last, if there are any.
    """
    sections = [Section(flags=0, kind=0), *code]
    for kind, rows in ((SYMTAB, symbols), (DYNSYM, dynamic)):
        if rows:
            strings, offsets = string_table(rows)
            data = symbol_data(rows, offsets, bits, order)
            entry = 24 if bits == 64 else 16
            sections.append(
                Section(flags=0, kind=kind, data=data, link=len(sections) + 1, entry=entry)
            )
            sections.append(Section(flags=0, kind=STRTAB, data=strings))
    sections.extend(more)
    names = b"".join(section.name + b"\0" for section in sections if section.name)
    if names:
        sections.append(Section(flags=0, kind=STRTAB, data=b"\0" + names))

    word = "Q" if bits == 64 else "I"
    header_size, segment_size, section_size = (64, 56, 64) if bits == 64 else (52, 32, 40)
    body, position = b"", header_size + segment_size * len(segments)
    table = b""
    for section in sections:
        size = len(section.data) if section.size is None else section.size
        offset = position + len(body) if section.offset is None else section.offset
        body += section.data
        table += struct.pack(
            f"{order}II4{word}II2{word}",
            (b"\0" + names).index(section.name + b"\0"),
            *(section.kind, section.flags, section.address, offset, size),
            *(section.link, 0, 1, section.entry),
        )
    programs = b"".join(
        struct.pack(
            order + "II6Q",
            *(each.kind, each.flags, each.offset, each.address),
            *(each.address, each.size, each.size, each.align),
        )
        if bits == 64
        else struct.pack(
            order + "8I",
            *(each.kind, each.offset, each.address, each.address),
            *(each.size, each.size, each.flags, each.align),
        )
        for each in segments
    )
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header = ident + struct.pack(
        f"{order}HHI3{word}I6H",
        *(3, machine, 1, 0, header_size, position + len(body), 0),
        *(header_size, segment_size, len(segments), section_size, len(sections)),
        len(sections) - 1 if names else 0,
    )
    return header + programs + body + table
