"""Rows for functions that come from start files, which say nothing of their frames.

They are in every file, and the first or the last of its code that runs: of what lives for
milliseconds many samples find it there, waiting for a page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bpflame.bpf.unwind.frame_rows import FrameRows
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.symbolize.elf_file import BadElf, ElfFile

_SECTIONS = (b".init", b".fini")
_MAX_SIZE = 4096

# crti.S and crtn.S of glibc, sysdeps/x86_64: between the two is what the linker has put in.
_ENDBR = b"\xf3\x0f\x1e\xfa"
_ENTER = b"\x48\x83\xec\x08"  # sub $8, %rsp
_LEAVE = b"\x48\x83\xc4\x08\xc3"  # add $8, %rsp; ret
_RETURN = 1  # bytes


# crtstuff.c of GCC: deregister_tm_clones(), register_tm_clones(), __do_global_dtors_aux() and
# frame_dummy(), compiled alike for ages. Only the third has a frame, from its push on to its pop.
_CRTSTUFF = re.compile(
    rb"\x48\x8d\x3d.{45}\x48\x8d\x3d.{61}\xf3\x0f\x1e\xfa\x80\x3d.{4}\x00\x75\x2b\x55\x48\x83\x3d"
    rb".{4}\x00\x48\x89\xe5\x74\x0c\x48\x8b\x3d.{4}\xe8.{4}\xe8.{4}\xc6\x05.{4}\x01\x5d\xc3"
    rb"\x0f\x1f\x00\xc3.{7}\xf3\x0f\x1e\xfa\xe9.{4}",
    re.DOTALL,
)
_PUSHED, _POPPED, _CRTSTUFF_SIZE = 0x7E, 0xA4, 0xB9
_MAX_GAPS = 64


class _Function(NamedTuple):
    """Where a function begins, enters its frame, has left it, and ends; and its rule inside."""

    begin: int
    entered: int
    left: int
    end: int
    inside: int


def with_start_files(elf: ElfFile, found: FrameRows) -> FrameRows:
    """The rows of a file with those of such functions, if they are as GCC and glibc have them."""
    if not len(found.begin):  # the whole file is without
        return found
    functions = [
        *_crtstuff(elf, found),
        *(each for name in _SECTIONS for each in _section(elf, name, found)),
    ]
    if not functions:
        return found
    outside = pack(Cfa.SP, 8)
    kinds = [outside, *dict.fromkeys(function.inside for function in functions)]
    rules, number = np.unique(
        np.append(found.rules, np.array(kinds, np.uint64)), return_inverse=True
    )
    number = number.reshape(-1)
    own = dict(zip(kinds, number[len(found.rules) :].tolist(), strict=True))
    rows = [
        row
        for each in functions
        for row in (
            (each.begin, own[outside]),
            (each.entered, own[each.inside]),
            (each.left, own[outside]),
        )
    ]
    address = np.append(found.address, [row[0] for row in rows])
    order = np.argsort(address, kind="stable")
    return dataclasses.replace(
        found,
        address=address[order],
        rule=np.append(number[found.rule], [row[1] for row in rows])[order],
        rules=rules,
        begin=np.append(found.begin, [each.begin for each in functions]),
        end=np.append(found.end, [each.end for each in functions]),
    )


def _section(elf: ElfFile, name: bytes, found: FrameRows) -> Iterator[_Function]:
    """The function that a section is."""
    section = elf.section(name)
    if section is None or not 0 < section["size"] <= _MAX_SIZE:
        return
    begin, size = int(section["addr"]), int(section["size"])
    if ((found.begin < begin + size) & (found.end > begin)).any():
        return
    code = _code(elf, int(section["offset"]), size)
    enter = len(_ENDBR) if code.startswith(_ENDBR) else 0
    if code[enter:].startswith(_ENTER) and code.endswith(_LEAVE):
        entered, end = begin + enter + len(_ENTER), begin + size
        yield _Function(begin, entered, end - _RETURN, end, pack(Cfa.SP, 16))


def _crtstuff(elf: ElfFile, found: FrameRows) -> Iterator[_Function]:
    """Its four functions, as one that has a frame for a while, from between those with FDEs."""
    order = np.argsort(found.begin, kind="stable")
    begin, end = found.begin[order], np.maximum.accumulate(found.end[order])
    starts = np.append(elf.code[0][0], end)
    sizes = np.append(begin, elf.code[-1][1]) - starts
    gaps = np.flatnonzero((sizes >= _CRTSTUFF_SIZE) & (sizes <= _MAX_SIZE))[:_MAX_GAPS]
    for start, size in zip(starts[gaps].tolist(), sizes[gaps].tolist(), strict=True):
        offset, there = elf.file_range(start)
        match = _CRTSTUFF.search(_code(elf, offset, min(size, there)))
        if match is not None:
            at = start + match.start()
            inside = pack(Cfa.SP, 16, Bp.AT_CFA, -16)
            yield _Function(at, at + _PUSHED, at + _POPPED, at + _CRTSTUFF_SIZE, inside)


def _code(elf: ElfFile, offset: int, size: int) -> bytes:
    """Bytes of a file; none where it ends before, which is for others to mind."""
    with contextlib.suppress(BadElf):
        return elf.read(offset, size, "code")
    return b""
