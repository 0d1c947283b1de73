"""Reads .eh_frame: which call frame program is for what code.

After the Linux Standard Base, "Exception Frames". The entries are found by going from length to
length, not by the sorted table of .eh_frame_hdr: that takes 0.1 us an entry, needs no trust in a
second account of the same thing, and works without one. What is unsound by itself is left out.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind.cie import (
    ABSOLUTE,
    DATA_RELATIVE,
    FORMATS,
    PC_RELATIVE,
    ULEB,
    Cie,
    Unsound,
    parse,
)
from bpflame.bpf.unwind.sections import Content, find
from bpflame.bpf.unwind.vectors import uleb, unaligned
from bpflame.symbolize.elf_file import BadElf, ElfFile

Ints = NDArray[np.int64]

# Caps: 20 times the entries of libLLVM-15, the most that were found.
_MAX_ENTRIES = 2 << 20
_MAX_CIES = 1 << 14
_PADDING = bytes(32)
"""So that reads at the end of an entry need no check; more than any header takes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fdes:
    """The sound FDEs of a file, by address and apart from each other.

    Attributes:
        data: .eh_frame.
        address: Its virtual address.
        cies: The distinct CIEs.
        cie: For each FDE the index of its CIE; this and the others are of shape (FDEs,).
        begin: Virtual address of the code.
        end: Of its end.
        first: Offset of the program in ``data``.
        last: Of its end.
        of_all: How many FDEs there were, sound or not.
    """

    data: bytes
    address: int
    cies: list[Cie]
    cie: Ints
    begin: Ints
    end: Ints
    first: Ints
    last: Ints
    of_all: int

    def __len__(self) -> int:
        return len(self.cie)


def read(elf: ElfFile) -> Fdes:
    """The FDEs of a file; none when it has no call frame information.

    Raises:
        BadElf: The file is not of x86-64, or nothing in its .eh_frame is sound.
    """
    if not elf.x86_64:
        raise BadElf(elf.path, "not of x86-64")
    content = find(elf)
    starts, whole = _entries(elf, content)
    fdes = _decode(elf, content, starts)
    if not len(fdes) and not (whole and fdes.of_all == 0):
        raise BadElf(elf.path, "damaged .eh_frame")
    return fdes


def _entries(elf: ElfFile, content: Content) -> tuple[Ints, bool]:
    """Offsets of the CIEs and FDEs, and whether one led to the next until the end."""
    data, size = content.data, len(content.data)
    starts: list[int] = []
    position = 0
    length_at = struct.Struct("<I").unpack_from
    for _ in range(_MAX_ENTRIES):
        if position + 4 > size:
            return np.array(starts, np.int64), True
        (length,) = length_at(data, position)
        if length == 0:  # a terminator, in the middle where a linker has put files together
            if not content.bounded:
                return np.array(starts, np.int64), True
            position += 4
            continue
        end = position + 4 + length
        if length == 0xFFFFFFFF and position + 12 <= size:
            end = position + 12 + struct.unpack_from("<Q", data, position + 4)[0]
        if length < 4 or end > size:
            return np.array(starts, np.int64), False
        starts.append(position)
        position = end
    raise BadElf(elf.path, f"more than {_MAX_ENTRIES} entries in .eh_frame")


def _decode(elf: ElfFile, content: Content, starts: Ints) -> Fdes:
    padded = content.data + _PADDING
    lengths = unaligned(padded, "<u4")
    length = lengths[starts].astype(np.int64)
    wide = length == 0xFFFFFFFF
    # The id has four bytes after a length of eight as well, other than in .debug_frame.
    field = starts + np.where(wide, 12, 4)
    end = field + np.where(wide, unaligned(padded, "<i8")[starts + 4], length)
    identity = lengths[field].astype(np.int64)
    is_cie = identity == 0
    cies, number = _cies(elf, content.data, field[is_cie] + 4, end[is_cie])

    field, end, identity = field[~is_cie], end[~is_cie], identity[~is_cie]
    target = field - identity
    cie_starts = starts[is_cie]
    found = np.searchsorted(cie_starts, target)
    sound = np.append(cie_starts, -1)[found] == target
    cie = np.append(number, -1)[found]
    sound &= cie >= 0
    columns = _programs(content, padded, cies, cie[sound], field[sound] + 4, end[sound])
    fdes = Fdes(content.data, content.address, cies, *columns, of_all=len(field))
    return _in_order(elf, fdes)


def _cies(elf: ElfFile, data: bytes, first: Ints, last: Ints) -> tuple[list[Cie], Ints]:
    """The distinct CIEs, and for each CIE its number among them, or -1."""
    if len(first) > _MAX_CIES:
        raise BadElf(elf.path, f"{len(first)} CIEs")
    numbers: dict[Cie, int] = {}
    of_each = np.full(len(first), -1, np.int64)
    for index, (start, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        try:
            cie = parse(data[start:end])
        except Unsound:
            continue
        of_each[index] = numbers.setdefault(cie, len(numbers))
    return list(numbers), of_each


def _programs(
    content: Content, padded: bytes, cies: list[Cie], cie: Ints, position: Ints, last: Ints
) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Reads what stands before the programs: cie, begin, end, first and last, as in Fdes."""
    data = np.frombuffer(padded, np.uint8)
    begin, size, after = np.zeros((3, len(cie)), np.int64)
    encodings = np.array([each.encoding for each in cies], np.int64)[cie]
    sound = np.zeros(len(cie), np.bool_)
    for encoding in np.unique(encodings).tolist():
        which = np.flatnonzero(encodings == encoding)
        bases: dict[int, Ints | int | None] = {
            ABSOLUTE: 0,
            PC_RELATIVE: content.address + position[which],
            DATA_RELATIVE: content.header,
        }
        base = bases.get(encoding & 0xF0)
        form = encoding & 0x0F
        if base is None or (form != ULEB and form not in FORMATS):
            continue
        value, middle = _numbers(data, padded, position[which], form)
        begin[which] = value + base
        size[which], after[which] = _numbers(data, padded, middle, form)
        sound[which] = True
    augmented = np.array([each.augmented for each in cies], np.bool_)[cie]
    length, first = uleb(data, np.minimum(after, last))
    first = np.where(augmented, first + np.minimum(length, 1 << 32), after)
    sound &= (first <= last) & (size > 0)
    kept = np.flatnonzero(sound)
    size = np.minimum(size[kept], 1 << 40)
    return cie[kept], begin[kept], begin[kept] + size, first[kept], last[kept]


def _numbers(
    data: NDArray[np.uint8], padded: bytes, position: Ints, form: int
) -> tuple[Ints, Ints]:
    position = np.minimum(position, len(padded) - len(_PADDING))
    if form == ULEB:
        return uleb(data, position)
    kind = FORMATS[form]
    return unaligned(padded, kind)[position].astype(np.int64), position + int(kind[2])


def _in_order(elf: ElfFile, fdes: Fdes) -> Fdes:
    """Leaves out what is not for code of the file; an FDE ends where the next begins.

    That is how the runtime of C++ sees it, which searches for the last begin before an address.
    An FDE at address 0 is of a function that the linker has removed.
    """
    code = np.array(elf.code, np.int64).reshape(-1, 2)
    if not code.size:
        raise BadElf(elf.path, "no code")
    segment = np.searchsorted(code[:, 0], fdes.begin, side="right") - 1
    kept = (segment >= 0) & (fdes.begin < code[segment, 1]) & (fdes.begin != 0)
    order = np.flatnonzero(kept)
    order = order[np.argsort(fdes.begin[order], kind="stable")]
    if order.size:
        order = order[np.append(True, np.diff(fdes.begin[order]) > 0)]
    begin, end = fdes.begin[order], np.minimum(fdes.end[order], code[segment[order], 1])
    end[:-1] = np.minimum(end[:-1], begin[1:])
    return dataclasses.replace(
        fdes,
        cie=fdes.cie[order],
        begin=begin,
        end=end,
        first=fdes.first[order],
        last=fdes.last[order],
    )
