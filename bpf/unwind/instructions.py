"""What each instruction of call frame programs does to many of them at once.

A handler takes the columns, which of their rows are at the instruction, and its first byte in each.
It returns those that it leaves to :mod:`bpflame.bpf.unwind.cfa`, or None for none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind import expressions
from bpflame.bpf.unwind.cfa import (
    BP,
    KIND,
    KIND_OF_REGISTER,
    NOT_CFA,
    RA,
    RA_BELOW_CFA,
    RA_ELSEWHERE,
    RA_UNDEFINED,
    RBP,
    RETURN,
    TOO_FAR,
    WITH_OFFSET,
)
from bpflame.bpf.unwind.columns import DEPTH, Columns, Ints
from bpflame.bpf.unwind.rules import Bp

Bytes: TypeAlias = NDArray[np.uint8]

_NOP, _LOC, _LOC1, _LOC2, _LOC4, _SAVE, _RESTORE, _UNDEFINED, _REMEMBER, _RECALL = range(10)
_DEF, _DEF_REGISTER, _DEF_OFFSET, _DEF_EXPRESSION, _EXPRESSION, _ARGUMENTS, _RARE = range(10, 17)
CLASS = np.full(256, _RARE, np.uint8)
"""The handler of each first byte, as an index into HANDLERS."""
CLASS[0x40:0x80], CLASS[0x80:0xC0], CLASS[0xC0:] = _LOC, _SAVE, _RESTORE
CLASS[[0x00, 0x02, 0x03, 0x04, 0x07]] = _NOP, _LOC1, _LOC2, _LOC4, _UNDEFINED
CLASS[[0x0A, 0x0B, 0x0C, 0x0D, 0x0E]] = _REMEMBER, _RECALL, _DEF, _DEF_REGISTER, _DEF_OFFSET
CLASS[[0x0F, 0x10, 0x2E]] = _DEF_EXPRESSION, _EXPRESSION, _ARGUMENTS
_KIND_OF_REGISTER = np.frombuffer(KIND_OF_REGISTER, np.uint8).astype(np.int64)
_WITH_OFFSET = np.frombuffer(WITH_OFFSET, np.uint8).astype(np.int64)


def _nop(run: Columns, which: Ints, operation: Bytes) -> None:
    pass


def _loc(run: Columns, which: Ints, operation: Bytes) -> None:
    run.advance(which, (operation & 0x3F).astype(np.int64))


def _loc1(run: Columns, which: Ints, operation: Bytes) -> None:
    position = run.position[which]
    run.position[which] = position + 1
    run.advance(which, run.bytes[position].astype(np.int64))


def _loc2(run: Columns, which: Ints, operation: Bytes) -> None:
    position = run.position[which]
    run.position[which] = position + 2
    run.advance(which, run.words[0][position].astype(np.int64))


def _loc4(run: Columns, which: Ints, operation: Bytes) -> None:
    position = run.position[which]
    run.position[which] = position + 4
    run.advance(which, run.words[1][position].astype(np.int64))


def _save(run: Columns, which: Ints, operation: Bytes) -> None:
    register = operation & 0x3F
    offset = np.minimum(run.uleb(which), 1 << 32) * -8
    bp = (register == RBP).nonzero()[0]
    if bp.size:
        offsets, into = offset[bp], which[bp]
        slot = np.where(
            offsets >= -(1 << 15), Bp.AT_CFA << 8 | (offsets & 0xFFFF) << 16, Bp.LOST << 8
        )
        run.state[into] = run.state[into] & ~BP | slot
    ra = (register == RETURN).nonzero()[0]
    if ra.size:
        into = which[ra]
        place = np.where(offset[ra] == -8, RA_BELOW_CFA, RA_ELSEWHERE)
        run.state[into] = run.state[into] & ~RA | place


def _restore(run: Columns, which: Ints, operation: Bytes) -> None:
    register = operation & 0x3F
    for number, mask in ((RBP, BP), (RETURN, RA)):
        into = which[register == number]
        if into.size:
            initial = run.initial[run.program[into]]
            run.state[into] = run.state[into] & ~mask | initial & mask


def _undefined(run: Columns, which: Ints, operation: Bytes) -> None:
    register = run.uleb(which)
    into = which[register == RBP]
    run.state[into] = run.state[into] & ~BP | Bp.LOST << 8
    into = which[register == RETURN]
    run.state[into] = run.state[into] & ~RA | RA_UNDEFINED


def _remember(run: Columns, which: Ints, operation: Bytes) -> Ints:
    depth = run.depth[which]
    fits = depth < DEPTH
    into, depth = which[fits], depth[fits]
    run.stack[depth, run.program[into]] = run.state[into]
    run.depth[into] = depth + 1
    return which[~fits]


def _recall(run: Columns, which: Ints, operation: Bytes) -> Ints:
    depth = run.depth[which] - 1
    sound = depth >= 0
    into, depth = which[sound], depth[sound]
    run.state[into] = run.stack[depth, run.program[into]]
    run.depth[into] = depth
    return which[~sound]


def _def(run: Columns, which: Ints, operation: Bytes) -> None:
    kind = _KIND_OF_REGISTER[np.minimum(run.uleb(which), 255)]
    offset = _shifted(run.uleb(which))
    run.state[which] = run.state[which] & NOT_CFA | kind | offset


def _def_register(run: Columns, which: Ints, operation: Bytes) -> None:
    kind = _KIND_OF_REGISTER[np.minimum(run.uleb(which), 255)]
    run.state[which] = run.state[which] & ~KIND | kind


def _def_offset(run: Columns, which: Ints, operation: Bytes) -> None:
    offset = _shifted(run.uleb(which))
    state = run.state[which]
    run.state[which] = state & NOT_CFA | _WITH_OFFSET[state & KIND] | offset


def _def_expression(run: Columns, which: Ints, operation: Bytes) -> Ints | None:
    size, start, rare = run.blocks(which)
    for index, length, first in zip(which.tolist(), size, start, strict=True):
        kind, offset = expressions.cfa(run.joined[first : first + length])
        run.state[index] = int(run.state[index]) & NOT_CFA | kind | offset << 32
    return rare


def _expression(run: Columns, which: Ints, operation: Bytes) -> Ints:
    register = run.uleb(which)
    size, start, rare = run.blocks(which)
    for index, number, length, first in zip(
        which.tolist(), register.tolist(), size, start, strict=True
    ):
        if number == RBP:
            offset = expressions.saved_at_bp(run.joined[first : first + length])
            slot = Bp.LOST << 8 if offset is None else Bp.AT_BP << 8 | (offset & 0xFFFF) << 16
            run.state[index] = int(run.state[index]) & ~BP | slot
        elif number == RETURN:
            run.state[index] = int(run.state[index]) & ~RA | RA_ELSEWHERE
    return rare


def _arguments(run: Columns, which: Ints, operation: Bytes) -> None:
    run.uleb(which)


def _is_rare(run: Columns, which: Ints, operation: Bytes) -> Ints:
    return which


def _shifted(offset: Ints) -> Ints:
    return np.where(offset < 1 << 31, offset, TOO_FAR) << 32


Handler: TypeAlias = "Callable[[Columns, Ints, Bytes], Ints | None]"
HANDLERS: tuple[Handler, ...] = (
    *(_nop, _loc, _loc1, _loc2, _loc4),
    *(_save, _restore, _undefined, _remember),
    *(_recall, _def, _def_register, _def_offset),
    *(_def_expression, _expression, _arguments),
    _is_rare,
)
"""By class."""
