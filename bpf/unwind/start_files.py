"""Rows for _init and _fini, which come from start files that say nothing of their frames.

They are in every file, and the first of its code that runs: of what lives for milliseconds many
samples find it there, waiting for the page.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bpflame.bpf.unwind.frame_rows import FrameRows
from bpflame.bpf.unwind.rules import Cfa, pack
from bpflame.symbolize.elf_file import ElfFile

_SECTIONS = (b".init", b".fini")
_MAX_SIZE = 4096

# crti.S and crtn.S of glibc, sysdeps/x86_64: between the two is what the linker has put in.
_ENDBR = b"\xf3\x0f\x1e\xfa"
_ENTER = b"\x48\x83\xec\x08"  # sub $8, %rsp
_LEAVE = b"\x48\x83\xc4\x08\xc3"  # add $8, %rsp; ret
_RETURN = 1  # bytes


def with_start_files(elf: ElfFile, found: FrameRows) -> FrameRows:
    """The rows of a file with those of its _init and _fini, if they are as glibc has them."""
    functions = [each for name in _SECTIONS for each in _function(elf, name, found)]
    if not functions or not len(found.begin):  # or the whole file is without frames
        return found
    inner = pack(Cfa.SP, 16)
    outer = pack(Cfa.SP, 8)
    rules = np.append(found.rules, np.array([inner, outer], np.uint64))
    rules, number = np.unique(rules, return_inverse=True)
    number = number.reshape(-1)
    address = [found.address]
    rule = [number[found.rule]]
    for begin, entered, left, _ in functions:
        address.append(np.array([begin, entered, left], np.int64))
        rule.append(number[[-1, -2, -1]])
    addresses = np.concatenate(address)
    order = np.argsort(addresses, kind="stable")
    return dataclasses.replace(
        found,
        address=addresses[order],
        rule=np.concatenate(rule)[order],
        rules=rules,
        begin=np.append(found.begin, [each[0] for each in functions]),
        end=np.append(found.end, [each[3] for each in functions]),
    )


def _function(elf: ElfFile, name: bytes, found: FrameRows) -> list[tuple[int, int, int, int]]:
    """Where a section begins, has entered its frame, has left it, and ends; or nothing."""
    section = elf.section(name)
    if section is None or not 0 < section["size"] <= _MAX_SIZE:
        return []
    begin, size = int(section["addr"]), int(section["size"])
    if ((found.begin < begin + size) & (found.end > begin)).any():
        return []
    code = elf.read(int(section["offset"]), size, name.decode())
    enter = len(_ENDBR) if code.startswith(_ENDBR) else 0
    if not code[enter:].startswith(_ENTER) or not code.endswith(_LEAVE):
        return []
    return [(begin, begin + enter + len(_ENTER), begin + size - _RETURN, begin + size)]
