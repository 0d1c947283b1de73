"""Call frame programs that run at the same time, as columns of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind.vectors import uleb, unaligned

Ints = NDArray[np.int64]

PADDING = bytes(24)
"""Instructions may be cut off: what they read then are zeros. The longest reads 21 bytes."""
DEPTH = 4
"""States that a program can remember."""
MAX_ROWS = 8 << 20
"""Nine times those of libLLVM-15, the most that were found in one file."""


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


class Columns:
    """Programs that have not ended, a row of each column for each, and the rows they have made.

    Args:
        programs: Without the nops at their ends.
        initial: The state that each begins in; shape (programs,).

    Attributes:
        joined: All programs, with padding behind each.
        bytes: The same as numbers.
        words: The numbers of 2 and of 4 bytes that begin at each byte.
        start: Where each program begins in them.
        stack: The states that each remembers; shape (DEPTH, programs).
        program: The number of each program that still runs; this and the rest are the columns.
        position: Of its next byte.
        until: Of its end.
        location: At present, in bytes from the begin of the code.
        ordinal: How many rows it has made.
        depth: How many states it remembers.
        state: See :mod:`bpflame.bpf.unwind.cfa`.
    """

    def __init__(self, programs: Sequence[bytes], initial: Ints) -> None:
        self.programs, self.initial = programs, initial
        size = np.fromiter(map(len, programs), np.int64, len(programs))
        joined = PADDING.join(programs) + PADDING
        self.joined = joined
        self.bytes = np.frombuffer(joined, np.uint8)
        self.words = unaligned(joined, "<u2"), unaligned(joined, "<u4")
        self.start: Ints = np.cumsum(size + len(PADDING)) - size - len(PADDING)
        self.stack: Ints = np.zeros((DEPTH, len(programs)), np.int64)
        self.program: Ints = np.arange(len(programs))
        self.position: Ints = self.start.copy()
        self.until: Ints = self.start + size
        self.location: Ints = np.zeros(len(programs), np.int64)
        self.ordinal: Ints = np.zeros(len(programs), np.int64)
        self.depth: Ints = np.zeros(len(programs), np.int64)
        self.state: Ints = initial.copy()
        self._out: list[tuple[Ints, Ints, Ints, Ints]] = []
        self._total = 0
        self.leave(self.position >= self.until)

    def advance(self, which: Ints, distance: Ints) -> None:
        """Completes a row of each program that moves on, by a distance in bytes."""
        moved = distance > 0
        if not moved.all():
            which, distance = which[moved], distance[moved]
        ordinal, location = self.ordinal[which], self.location[which]
        self.put(self.program[which], ordinal, location, self.state[which])
        self.ordinal[which] = ordinal + 1
        self.location[which] = location + distance

    def put(self, program: Ints, ordinal: Ints, location: Ints, state: Ints) -> None:
        """Adds rows; ``ordinal`` counts those of a program. Raises TooManyRows."""
        self._total += len(program)
        if self._total > MAX_ROWS:
            raise TooManyRows
        self._out.append((program, ordinal, location, state))

    def leave(self, done: NDArray[np.bool_]) -> None:
        """Takes programs that have ended out."""
        if done.any():
            self.put(
                *(self.program[done], self.ordinal[done]),
                *(self.location[done], self.state[done]),
            )
            self.keep(~done)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Takes all others out."""
        which = kept.nonzero()[0]
        self.program, self.position = self.program[which], self.position[which]
        self.until, self.location = self.until[which], self.location[which]
        self.ordinal, self.depth = self.ordinal[which], self.depth[which]
        self.state = self.state[which]

    def uleb(self, which: Ints) -> Ints:
        """Reads a number of each program; from 2^56 on it is not exact."""
        position = self.position[which]
        value, self.position[which] = uleb(self.bytes, position)
        return value

    def blocks(self, which: Ints) -> tuple[list[int], list[int], Ints]:
        """Lengths and places of the blocks that come; which of the programs are too odd."""
        size = self.uleb(which)
        odd = size > len(PADDING) - 4
        start = self.position[which]
        self.position[which] = start + np.where(odd, 0, size)
        return np.where(odd, 0, size).tolist(), start.tolist(), which[odd]

    def rows(self, left_out: Sequence[int]) -> Rows:
        """All rows that were made, but for those of some programs."""
        program, ordinal, location, state = (
            np.concatenate(column) if column else np.empty(0, np.int64)
            for column in (zip(*self._out, strict=True) if self._out else ((),) * 4)
        )
        if left_out:
            keep = np.ones(len(self.programs), np.bool_)
            keep[left_out] = False
            kept = keep[program]
            program, ordinal = program[kept], ordinal[kept]
            location, state = location[kept], state[kept]
        count = np.bincount(program, minlength=len(self.programs))
        place = (np.cumsum(count) - count)[program] + ordinal
        rows = Rows(count, np.empty(len(place), np.int64), np.empty(len(place), np.int64))
        rows.location[place], rows.state[place] = location, state
        return rows
