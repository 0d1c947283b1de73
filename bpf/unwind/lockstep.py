"""Runs many call frame programs together, one instruction of each at a time, with numpy.

libc has 1,871 distinct programs of 13 rows on average. What few programs use is left to
:mod:`bpflame.bpf.unwind.cfa`: rare instructions, and the ends of the longest programs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind.cfa import RETURN, Machine, NeedsAddress
from bpflame.bpf.unwind.cie import ABSOLUTE, Cie, Unsound
from bpflame.bpf.unwind.columns import Columns, Ints, Rows
from bpflame.bpf.unwind.instructions import CLASS, HANDLERS

_TAIL = 48
"""Programs that are too few for numpy: a step costs some 60 us however few there are."""

_PLAIN = Cie(1, -8, RETURN, ABSOLUTE, True, False, b"")


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
    columns, rare = Columns(programs, initial), []
    while len(columns.program) > _TAIL:
        rare.extend(_step(columns))
    rare.extend(_finish_singly(columns))
    return columns.rows(rare), rare


def _step(columns: Columns) -> list[int]:
    """Runs one instruction of each program; the numbers of those that leave."""
    operation = columns.bytes[columns.position]
    kind = CLASS[operation]
    columns.position += 1
    leaves: NDArray[np.bool_] | None = None
    for each in np.bincount(kind).nonzero()[0].tolist():
        which = (kind == each).nonzero()[0]
        rare = HANDLERS[each](columns, which, operation[which])
        if rare is not None and rare.size:
            leaves = np.zeros(len(kind), np.bool_) if leaves is None else leaves
            leaves[rare] = True
    numbers: list[int] = []
    if leaves is not None:
        numbers = columns.program[leaves].tolist()
        columns.keep(~leaves)
    columns.leave(columns.position >= columns.until)
    return numbers


def _finish_singly(columns: Columns) -> list[int]:
    """Runs the rest by the other interpreter; the numbers of programs that it cannot run."""
    rare: list[int] = []
    for index, program in enumerate(columns.program.tolist()):
        machine = Machine(columns.programs[program], _PLAIN, int(columns.initial[program]))
        machine.position = int(columns.position[index] - columns.start[program])
        machine.state = int(columns.state[index])
        machine.location = int(columns.location[index])
        depth, first = int(columns.depth[index]), int(columns.ordinal[index])
        machine.stack = columns.stack[:depth, program].tolist()
        try:
            rows = np.array(machine.run(), np.int64)
        except (Unsound, NeedsAddress):
            rare.append(program)
            continue
        ordinal = np.arange(first, first + len(rows))
        columns.put(np.full(len(rows), program), ordinal, rows[:, 0], rows[:, 1])
    return rare
