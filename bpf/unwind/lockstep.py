"""Runs many call frame programs together, one instruction of each at a time, with numpy.

libc has 1,871 distinct programs of 13 rows on average. What few programs use is left to
:mod:`bpflame.bpf.unwind.cfa`: rare instructions, and the ends of the longest programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

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
    Machine,
    NeedsAddress,
)
from bpflame.bpf.unwind.cie import ABSOLUTE, Cie, Unsound
from bpflame.bpf.unwind.rules import Bp
from bpflame.bpf.unwind.vectors import uleb, unaligned

Ints = NDArray[np.int64]

PADDING = bytes(24)
"""Instructions may be cut off: what they read then are zeros. The longest reads 21 bytes."""
_TAIL = 48
"""Programs that are too few for numpy: a step costs some 60 us however few there are."""
_DEPTH = 4
"""States that a program can remember here."""
MAX_ROWS = 8 << 20
"""Nine times those of libLLVM-15, the most that were found in one file."""

_PLAIN = Cie(1, -8, RETURN, ABSOLUTE, True, False, b"")

_NOP, _LOC, _LOC1, _LOC2, _LOC4, _SAVE, _RESTORE, _UNDEFINED, _REMEMBER, _RECALL = range(10)
_DEF, _DEF_REGISTER, _DEF_OFFSET, _DEF_EXPRESSION, _EXPRESSION, _ARGUMENTS, _RARE = range(10, 17)
_CLASS = np.full(256, _RARE, np.uint8)
_CLASS[0x40:0x80], _CLASS[0x80:0xC0], _CLASS[0xC0:] = _LOC, _SAVE, _RESTORE
_CLASS[[0x00, 0x02, 0x03, 0x04, 0x07]] = _NOP, _LOC1, _LOC2, _LOC4, _UNDEFINED
_CLASS[[0x0A, 0x0B, 0x0C, 0x0D, 0x0E]] = _REMEMBER, _RECALL, _DEF, _DEF_REGISTER, _DEF_OFFSET
_CLASS[[0x0F, 0x10, 0x2E]] = _DEF_EXPRESSION, _EXPRESSION, _ARGUMENTS
_KIND_OF_REGISTER = np.frombuffer(KIND_OF_REGISTER, np.uint8).astype(np.int64)
_WITH_OFFSET = np.frombuffer(WITH_OFFSET, np.uint8).astype(np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Rows of programs, those of each one after the other.

    Attributes:
        count: Of each program; shape (programs,). 0 for programs that were left out.
        location: Bytes from the begin of the code, rising within a program; shape (rows,).
        state: See :mod:`bpflame.bpf.unwind.cfa`; shape (rows,).
    """

    count: Ints
    location: Ints
    state: Ints


class TooManyRows(ValueError):  # noqa: N818 - a limit
    """More rows than a table can be made of."""


def plain(cie: Cie) -> bool:
    """Whether the programs of a CIE can run here, which is so in all that was found."""
    return (cie.code_align, cie.data_align) == (_PLAIN.code_align, _PLAIN.data_align)


def run(programs: Sequence[bytes], initial: Ints) -> tuple[Rows, list[int]]:
    """Runs programs.

    Args:
        programs: Of CIEs that are :func:`plain`, without the nops at their ends.
        initial: The state that each begins in; shape (programs,).

    Returns:
        The rows, and the numbers of the programs that must be run one by one.

    Raises:
        TooManyRows: There are too many.
    """
    steps = _Lockstep(programs, initial)
    while len(steps.program) > _TAIL:
        steps.step()
    steps.finish_singly()
    return steps.rows(), steps.rare


class _Lockstep:
    """The programs that still run, as columns: program, position, location, state, ..."""

    def __init__(self, programs: Sequence[bytes], initial: Ints) -> None:
        self._programs, self._initial = programs, initial
        size = np.fromiter(map(len, programs), np.int64, len(programs))
        joined = PADDING.join(programs) + PADDING
        self._bytes = np.frombuffer(joined, np.uint8)
        self._joined = joined
        self._words = unaligned(joined, "<u2"), unaligned(joined, "<u4")
        self._start: Ints = np.cumsum(size + len(PADDING)) - size - len(PADDING)
        self._end: Ints = self._start + size
        self.program: Ints = np.arange(len(programs))
        self._position: Ints = self._start.copy()
        self._until: Ints = self._end
        self._location: Ints = np.zeros(len(programs), np.int64)
        self._ordinal: Ints = np.zeros(len(programs), np.int64)
        self._depth: Ints = np.zeros(len(programs), np.int64)
        self._state: Ints = initial.copy()
        self._stack: Ints = np.zeros((_DEPTH, len(programs)), np.int64)
        self._out: list[tuple[Ints, Ints, Ints, Ints]] = []
        self._total = 0
        self.rare: list[int] = []
        self._leave(self._position >= self._until)

    def step(self) -> None:
        """One instruction of each program."""
        operation = self._bytes[self._position]
        kind = _CLASS[operation]
        self._position += 1
        leaves: NDArray[np.bool_] | None = None
        for each in np.bincount(kind).nonzero()[0].tolist():
            which = (kind == each).nonzero()[0]
            rare = _HANDLERS[each](self, which, operation[which])
            if rare is not None and rare.size:
                leaves = np.zeros(len(kind), np.bool_) if leaves is None else leaves
                leaves[rare] = True
        if leaves is not None:
            self.rare.extend(self.program[leaves].tolist())
            self._keep(~leaves)
        self._leave(self._position >= self._until)

    def finish_singly(self) -> None:
        """The rest of what still runs, by the other interpreter."""
        for index, program in enumerate(self.program.tolist()):
            machine = Machine(self._programs[program], _PLAIN, int(self._initial[program]))
            machine.position = int(self._position[index] - self._start[program])
            machine.state = int(self._state[index])
            machine.location = int(self._location[index])
            depth, first = int(self._depth[index]), int(self._ordinal[index])
            machine.stack = self._stack[:depth, program].tolist()
            try:
                rows = np.array(machine.run(), np.int64)
            except (Unsound, NeedsAddress):
                self.rare.append(program)
                continue
            ordinal = np.arange(first, first + len(rows))
            self._put(np.full(len(rows), program), ordinal, rows[:, 0], rows[:, 1])

    def rows(self) -> Rows:
        """All rows, those of rare programs left out."""
        program, ordinal, location, state = (
            np.concatenate(column) if column else np.empty(0, np.int64)
            for column in (zip(*self._out, strict=True) if self._out else ((),) * 4)
        )
        if self.rare:
            left_out = np.zeros(len(self._programs), np.bool_)
            left_out[self.rare] = True
            kept = ~left_out[program]
            program, ordinal = program[kept], ordinal[kept]
            location, state = location[kept], state[kept]
        count = np.bincount(program, minlength=len(self._programs))
        place = (np.cumsum(count) - count)[program] + ordinal
        rows = Rows(count, np.empty(len(place), np.int64), np.empty(len(place), np.int64))
        rows.location[place], rows.state[place] = location, state
        return rows

    def _put(self, program: Ints, ordinal: Ints, location: Ints, state: Ints) -> None:
        self._total += len(program)
        if self._total > MAX_ROWS:
            raise TooManyRows
        self._out.append((program, ordinal, location, state))

    def _leave(self, done: NDArray[np.bool_]) -> None:
        """Takes programs that have ended out."""
        if done.any():
            self._put(
                *(self.program[done], self._ordinal[done]),
                *(self._location[done], self._state[done]),
            )
            self._keep(~done)

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        which = kept.nonzero()[0]
        self.program, self._position = self.program[which], self._position[which]
        self._until, self._location = self._until[which], self._location[which]
        self._ordinal, self._depth = self._ordinal[which], self._depth[which]
        self._state = self._state[which]

    def _uleb(self, which: Ints) -> Ints:
        """Reads a number of each program; from 2^56 on it is not exact."""
        position = self._position[which]
        value, self._position[which] = uleb(self._bytes, position)
        return value

    def _nop(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        pass

    def _advance(self, which: Ints, distance: Ints) -> None:
        moved = distance > 0
        if not moved.all():
            which, distance = which[moved], distance[moved]
        ordinal, location = self._ordinal[which], self._location[which]
        self._put(self.program[which], ordinal, location, self._state[which])
        self._ordinal[which] = ordinal + 1
        self._location[which] = location + distance

    def _loc(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        self._advance(which, (operation & 0x3F).astype(np.int64))

    def _loc1(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        position = self._position[which]
        self._position[which] = position + 1
        self._advance(which, self._bytes[position].astype(np.int64))

    def _loc2(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        position = self._position[which]
        self._position[which] = position + 2
        self._advance(which, self._words[0][position].astype(np.int64))

    def _loc4(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        position = self._position[which]
        self._position[which] = position + 4
        self._advance(which, self._words[1][position].astype(np.int64))

    def _save(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        register = operation & 0x3F
        offset = np.minimum(self._uleb(which), 1 << 32) * -8
        bp = (register == RBP).nonzero()[0]
        if bp.size:
            offsets, into = offset[bp], which[bp]
            slot = np.where(
                offsets >= -(1 << 15), Bp.AT_CFA << 8 | (offsets & 0xFFFF) << 16, Bp.LOST << 8
            )
            self._state[into] = self._state[into] & ~BP | slot
        ra = (register == RETURN).nonzero()[0]
        if ra.size:
            into = which[ra]
            place = np.where(offset[ra] == -8, RA_BELOW_CFA, RA_ELSEWHERE)
            self._state[into] = self._state[into] & ~RA | place

    def _restore(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        register = operation & 0x3F
        for number, mask in ((RBP, BP), (RETURN, RA)):
            into = which[register == number]
            if into.size:
                initial = self._initial[self.program[into]]
                self._state[into] = self._state[into] & ~mask | initial & mask

    def _undefined(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        register = self._uleb(which)
        into = which[register == RBP]
        self._state[into] = self._state[into] & ~BP | Bp.LOST << 8
        into = which[register == RETURN]
        self._state[into] = self._state[into] & ~RA | RA_UNDEFINED

    def _remember(self, which: Ints, operation: NDArray[np.uint8]) -> Ints:
        depth = self._depth[which]
        fits = depth < _DEPTH
        into, depth = which[fits], depth[fits]
        self._stack[depth, self.program[into]] = self._state[into]
        self._depth[into] = depth + 1
        return which[~fits]

    def _recall(self, which: Ints, operation: NDArray[np.uint8]) -> Ints:
        depth = self._depth[which] - 1
        sound = depth >= 0
        into, depth = which[sound], depth[sound]
        self._state[into] = self._stack[depth, self.program[into]]
        self._depth[into] = depth
        return which[~sound]

    def _def(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        kind = _KIND_OF_REGISTER[np.minimum(self._uleb(which), 255)]
        offset = _shifted(self._uleb(which))
        self._state[which] = self._state[which] & NOT_CFA | kind | offset

    def _def_register(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        kind = _KIND_OF_REGISTER[np.minimum(self._uleb(which), 255)]
        self._state[which] = self._state[which] & ~KIND | kind

    def _def_offset(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        offset = _shifted(self._uleb(which))
        state = self._state[which]
        self._state[which] = state & NOT_CFA | _WITH_OFFSET[state & KIND] | offset

    def _def_expression(self, which: Ints, operation: NDArray[np.uint8]) -> Ints | None:
        size, start, rare = self._blocks(which)
        for index, length, first in zip(which.tolist(), size, start, strict=True):
            kind, offset = expressions.cfa(self._joined[first : first + length])
            self._state[index] = int(self._state[index]) & NOT_CFA | kind | offset << 32
        return rare

    def _expression(self, which: Ints, operation: NDArray[np.uint8]) -> Ints:
        register = self._uleb(which)
        size, start, rare = self._blocks(which)
        for index, number, length, first in zip(
            which.tolist(), register.tolist(), size, start, strict=True
        ):
            if number == RBP:
                offset = expressions.saved_at_bp(self._joined[first : first + length])
                slot = Bp.LOST << 8 if offset is None else Bp.AT_BP << 8 | (offset & 0xFFFF) << 16
                self._state[index] = int(self._state[index]) & ~BP | slot
            elif number == RETURN:
                self._state[index] = int(self._state[index]) & ~RA | RA_ELSEWHERE
        return rare

    def _blocks(self, which: Ints) -> tuple[list[int], list[int], Ints]:
        """Lengths and places of the blocks that come; which of the programs are too odd."""
        size = self._uleb(which)
        odd = size > len(PADDING) - 4
        start = self._position[which]
        self._position[which] = start + np.where(odd, 0, size)
        return np.where(odd, 0, size).tolist(), start.tolist(), which[odd]

    def _arguments(self, which: Ints, operation: NDArray[np.uint8]) -> None:
        self._uleb(which)

    def _is_rare(self, which: Ints, operation: NDArray[np.uint8]) -> Ints:
        return which


_Handler = Callable[[_Lockstep, Ints, NDArray[np.uint8]], "Ints | None"]
_HANDLERS: tuple[_Handler, ...] = (
    *(_Lockstep._nop, _Lockstep._loc, _Lockstep._loc1, _Lockstep._loc2, _Lockstep._loc4),
    *(_Lockstep._save, _Lockstep._restore, _Lockstep._undefined, _Lockstep._remember),
    *(_Lockstep._recall, _Lockstep._def, _Lockstep._def_register, _Lockstep._def_offset),
    *(_Lockstep._def_expression, _Lockstep._expression, _Lockstep._arguments),
    _Lockstep._is_rare,
)


def _shifted(offset: Ints) -> Ints:
    return np.where(offset < 1 << 31, offset, TOO_FAR) << 32
