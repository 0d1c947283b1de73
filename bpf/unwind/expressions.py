"""DWARF expressions in call frame information: the few forms that compilers and linkers write.

Of 20 million rows on a Debian system 0.07 % have an expression for the CFA, of 28 kinds.
"""

from __future__ import annotations

import functools

from bpflame.bpf.unwind.cie import Reader, Unsound
from bpflame.bpf.unwind.rules import Cfa

_BREG_BP, _BREG_SP = 0x76, 0x77
_DEREF, _PLUS, _PLUS_UCONST, _LIT0, _LIT31 = 0x06, 0x22, 0x23, 0x30, 0x4F

# rsp + 8 + ((rip & 15) >= n) * 8, with n as a literal in the middle: .plt of GNU ld and of lld.
_PLT_HEAD, _PLT_TAIL = bytes.fromhex("7708 8000 3f1a"), bytes.fromhex("2a33 2422")


@functools.lru_cache(maxsize=1024)
def cfa(expression: bytes) -> tuple[Cfa, int]:
    """What a DW_CFA_def_cfa_expression comes to.

    Returns:
        The kind and the ``cfa_offset`` of the rule; UNSUPPORTED and 0 for what no rule can say.
    """
    if expression.startswith(_PLT_HEAD) and expression.endswith(_PLT_TAIL):
        literal = expression[len(_PLT_HEAD) : -len(_PLT_TAIL)]
        if len(literal) == 1 and _LIT0 <= literal[0] <= _LIT0 + 16:
            return Cfa.PLT, literal[0] - _LIT0
    try:
        return _memory(expression)
    except Unsound:
        return Cfa.UNSUPPORTED, 0


def saved_at_bp(expression: bytes) -> int | None:
    """N when the expression is the address rbp + N that fits s16; else None."""
    if expression[:1] != bytes([_BREG_BP]):
        return None
    reader = Reader(expression, 1)
    try:
        offset = reader.sleb()
    except Unsound:
        return None
    return offset if reader.position == len(expression) and -(1 << 15) <= offset < 1 << 15 else None


def _memory(expression: bytes) -> tuple[Cfa, int]:
    """A register and an offset, or the word there and an offset."""
    reader = Reader(expression)
    register = reader.unsigned(1)
    if register not in (_BREG_BP, _BREG_SP):
        return Cfa.UNSUPPORTED, 0
    offset = reader.sleb()
    if reader.position == len(expression):
        kind = Cfa.BP if register == _BREG_BP else Cfa.SP
        return (kind, offset) if -(1 << 31) < offset < 1 << 31 else (Cfa.UNSUPPORTED, 0)
    add = 0
    if reader.unsigned(1) != _DEREF:
        return Cfa.UNSUPPORTED, 0
    if reader.position < len(expression):
        operation = reader.unsigned(1)
        if operation == _PLUS_UCONST:
            add = reader.uleb()
        elif _LIT0 <= operation <= _LIT31 and reader.unsigned(1) == _PLUS:
            add = operation - _LIT0
        else:
            return Cfa.UNSUPPORTED, 0
    if reader.position != len(expression) or not -(1 << 23) <= offset < 1 << 23 or add > 255:
        return Cfa.UNSUPPORTED, 0
    return (Cfa.AT_BP if register == _BREG_BP else Cfa.AT_SP), offset << 8 | add
