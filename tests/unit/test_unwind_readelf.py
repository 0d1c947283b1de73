"""Rows against ``readelf --debug-dump=frames-interp``, an independent reader of the same files."""

from __future__ import annotations

import functools
import glob
import os
import re
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from bpflame.bpf.unwind import eh_frame
from bpflame.bpf.unwind.frame_rows import frame_rows
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.symbolize.elf_file import ElfFile

_ENTRY = re.compile(r"^[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ (?:CIE|FDE) ")
_CIE = re.compile(r'^([0-9a-f]+) .* CIE "(\S*)"')
_FDE = re.compile(r"cie=([0-9a-f]+) pc=([0-9a-f]+)\.\.([0-9a-f]+)")
_KINDS = {"rsp": Cfa.SP, "rbp": Cfa.BP, "r10": Cfa.R10}
_REGISTERS = {"rsp": Cfa.AT_SP, "rbp": Cfa.AT_BP}
_PLT = re.compile(
    r"DW_OP_breg7 \(rsp\): 8; DW_OP_breg16 \(rip\): 0; DW_OP_lit15; DW_OP_and; "
    r"DW_OP_lit(\d+); DW_OP_ge; DW_OP_lit3; DW_OP_shl; DW_OP_plus"
)
_MEMORY = re.compile(
    r"DW_OP_breg\d \((rsp|rbp)\): (-?\d+); DW_OP_deref"
    r"(?:; DW_OP_plus_uconst: (\d+)|; DW_OP_lit(\d+); DW_OP_plus)?"
)
_SAVED_AT_BP = re.compile(r"DW_OP_breg6 \(rbp\): (-?\d+)")

_LIBRARIES = "/usr/lib/x86_64-linux-gnu/"
_OPTIONAL = ["/usr/bin/node", *sorted(glob.glob(_LIBRARIES + "libLLVM*.so.1*"))[-1:]]
_FILES = [
    *(_LIBRARIES + name for name in ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libcrypto.so.3")),
    *("/usr/bin/perl", os.path.realpath("/usr/bin/python3")),
    *(path for path in _OPTIONAL if os.path.exists(path)),
]


class Row(NamedTuple):
    """What readelf prints for an address."""

    address: int
    cfa: str
    rbp: str
    ra: str


class Fde(NamedTuple):
    """An FDE with its rows."""

    begin: int
    end: int
    signal: bool
    rows: list[Row]


def dump(path: str, what: str) -> str:
    """What readelf says about .eh_frame."""
    output = subprocess.run(
        ["readelf", f"--debug-dump=no-follow-links,{what}", "-W", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    start = output.index("Contents of the .eh_frame section")
    return output[start:].split("Contents of the .debug_frame")[0]


def expressions(path: str) -> dict[tuple[int, str], str]:
    """The expressions by the address from which they hold, and the column."""
    found, address = {}, 0
    for line in dump(path, "frames").split("\n"):
        place = re.search(r" to ([0-9a-f]+)$", line) or re.search(r"pc=([0-9a-f]+)\.\.", line)
        if place:
            address = int(place[1], 16)
        expression = re.search(r"DW_CFA_def_cfa_expression \((.*)\)$", line)
        if expression:
            found[address, "cfa"] = expression[1]
        expression = re.search(r"DW_CFA_expression: r6 \(rbp\) \((.*)\)$", line)
        if expression:
            found[address, "rbp"] = expression[1]
    return found


def readelf(path: str) -> Iterator[Fde]:
    """The FDEs in the order of the file."""
    cies: dict[str, tuple[bool, Row]] = {}
    for block in dump(path, "frames-interp").split("\n\n"):
        lines = block.strip("\n").split("\n")
        if not _ENTRY.match(lines[0]):
            continue
        rows = list(_rows(lines[1:]))
        cie = _CIE.match(lines[0])
        if cie:
            cies[cie[1]] = ("S" in cie[2], rows[-1] if rows else Row(0, "none", "u", "missing"))
            continue
        fde = _FDE.search(lines[0])
        assert fde, lines[0]
        signal, initial = cies[fde[1]]
        begin, end = int(fde[2], 16), int(fde[3], 16)
        # readelf prints nothing for a program of nops: its one row is the CIE's.
        yield Fde(begin, end, signal, rows or [initial._replace(address=begin)])


def _rows(lines: list[str]) -> Iterator[Row]:
    rbp = ra = -1
    for line in lines:
        # A register in brackets is a part of the cell, as in "r10 (r10)".
        cells = line.replace(" (", "(").split()
        if cells[0] == "LOC":
            rbp = cells.index("rbp") if "rbp" in cells else -1
            ra = cells.index("ra") if "ra" in cells else -1
        elif len(cells) > 1:
            yield Row(
                int(cells[0], 16),
                cells[1],
                cells[rbp] if rbp > 0 else "u",
                cells[ra] if ra > 0 else "missing",
            )


def expected(path: str) -> dict[int, tuple[str, str, str, bool]]:
    """The cells at each address at which a row begins, as the C++ runtime would look them up."""
    fdes = sorted((fde for fde in readelf(path) if fde.begin), key=lambda fde: fde.begin)
    texts = expressions(path)
    found = {}
    for index, fde in enumerate(fdes):
        following = fdes[index + 1].begin if index + 1 < len(fdes) else fde.end
        cfa = rbp = ""
        for row in fde.rows:  # of several rows at an address the last
            cfa, rbp = texts.get((row.address, "cfa"), cfa), texts.get((row.address, "rbp"), rbp)
            if row.address < min(fde.end, following):
                cells = (cfa if row.cfa == "exp" else row.cfa, rbp if row.rbp == "exp" else row.rbp)
                found[row.address] = (*cells, row.ra, fde.signal)
    return found


@functools.cache
def rule(cfa: str, rbp: str, ra: str, signal: bool) -> int:
    """What the cells of a row, or the expressions in them, come to."""
    if signal:
        return pack(Cfa.SIGNAL)
    if ra == "u":
        return pack(Cfa.END)
    register = re.fullmatch(r"(rsp|rbp|r10)([+-]\d+)", cfa)
    plt, memory = _PLT.fullmatch(cfa), _MEMORY.fullmatch(cfa)
    if ra == "c-8" and register:
        kind, offset = _KINDS[register[1]], int(register[2])
    elif ra == "c-8" and plt:
        kind, offset = Cfa.PLT, int(plt[1])
    elif ra == "c-8" and memory:
        kind, offset = _REGISTERS[memory[1]], int(memory[2]) << 8 | int(memory[3] or memory[4] or 0)
    elif ra == "r5(rdi)" and register and _KINDS[register[1]] is Cfa.SP:
        return pack(Cfa.RDI, int(register[2]))
    else:
        return pack(Cfa.UNSUPPORTED)
    slot, saved = re.fullmatch(r"c([+-]\d+)", rbp), _SAVED_AT_BP.fullmatch(rbp)
    popped = slot and kind is Cfa.SP and int(slot[1]) < -offset
    if slot and not popped:
        return pack(kind, offset, Bp.AT_CFA, int(slot[1]))
    if saved:
        return pack(kind, offset, Bp.AT_BP, int(saved[1]))
    return pack(kind, offset, Bp.SAME if popped or rbp in ("u", "s") else Bp.LOST)


@pytest.mark.parametrize("path", _FILES, ids=os.path.basename)
def test_rows_are_those_of_readelf(path: str) -> None:
    with ElfFile.open(path) as elf:
        found = frame_rows(elf, eh_frame.read(elf))
    wanted = expected(path)
    ours = dict(zip(found.address.tolist(), found.rules[found.rule].tolist(), strict=True))
    assert len(ours) == len(found.address) > 100
    assert ours.keys() == wanted.keys()
    different = [
        (hex(address), cells, hex(ours[address]))
        for address, cells in wanted.items()
        if ours[address] != rule(*cells)
    ]
    assert different == []
