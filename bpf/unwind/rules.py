"""Unwind rules: what DWARF's call frame information comes to for a stack walk on x86-64.

A walk needs the canonical frame address (CFA: the stack pointer before the call), the return
address, which lies below it, and the caller's rbp. Everything else a compiler describes is left
out, and so a system's millions of rows share a few thousand rules.

Mirrors ``bpf/programs/unwind.h``. A rule is one u64, from its low end: kind (u8), bp_kind (u8),
bp_offset (s16), cfa_offset (s32).
"""

from __future__ import annotations

import enum


class Cfa(enum.IntEnum):
    """Where the caller's frame is: ``enum cfa_kind``."""

    GAP = 0
    """No FDE covers the code, or it is padding."""
    SP = 1
    """rsp + cfa_offset."""
    BP = 2
    """rbp + cfa_offset."""
    PLT = 3
    """rsp + 8, and 8 more if the low four bits of rip are cfa_offset or more."""
    AT_SP = 4
    """The word at rsp + (cfa_offset >> 8), plus (cfa_offset & 255)."""
    AT_BP = 5
    """The word at rbp + (cfa_offset >> 8), plus (cfa_offset & 255)."""
    R10 = 6
    """r10 + cfa_offset: in prologues that realign the stack, so in the leaf only."""
    SIGNAL = 7
    """A signal frame: rip, rsp and rbp are in the struct rt_sigframe at rsp."""
    END = 8
    """The return address is undefined: the outermost frame."""
    UNSUPPORTED = 9
    """Anything else."""
    FRAME = 10
    """Code without call frame information (a whole file, or a large part): by frame pointer."""
    RDI = 11
    """rsp + cfa_offset, and the return address is in rdi: vfork() of glibc; in the leaf only."""


class Bp(enum.IntEnum):
    """Where the caller's rbp is: ``enum bp_kind``."""

    SAME = 0
    AT_CFA = 1
    """The word at CFA + bp_offset."""
    AT_BP = 2
    """The word at rbp + bp_offset: frames that realign the stack."""
    LOST = 3
    """Anything else."""


def pack(kind: Cfa, cfa_offset: int = 0, bp_kind: Bp = Bp.SAME, bp_offset: int = 0) -> int:
    """A rule as its u64.

    Args:
        kind: Of the CFA.
        cfa_offset: Bytes, s32.
        bp_kind: Of the caller's rbp.
        bp_offset: Bytes, s16.
    """
    return kind | bp_kind << 8 | (bp_offset & 0xFFFF) << 16 | (cfa_offset & 0xFFFFFFFF) << 32
