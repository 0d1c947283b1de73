"""Makes the unwind table of an ELF file: 3 to 8 million rows of .eh_frame a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind import eh_frame
from bpflame.bpf.unwind.frame_rows import FrameRows, frame_rows
from bpflame.bpf.unwind.rules import Cfa, pack
from bpflame.bpf.unwind.start_files import with_start_files
from bpflame.bpf.unwind.table import MAX_PAGES, MAX_ROWS_OF_PAGE, MAX_RULES, PAGE, Table
from bpflame.symbolize.elf_file import BadElf, ElfFile

Ints = NDArray[np.int64]

_PAGE_BITS = 12
_MIN_GAP = 16
"""Code that no FDE covers and that is shorter is padding between functions: nothing runs there,
but the address after a call at the very end of a function may lie in it."""
_MIN_FRAME = 4096
"""Code of this size without an FDE was compiled without call frame information."""


def build_table(elf: ElfFile) -> Table:
    """The table of a file.

    Raises:
        BadElf: The file is not of x86-64, is damaged, or asks for too much.
    """
    found = with_start_files(elf, frame_rows(elf, eh_frame.read(elf)))
    first = elf.code[0][0] >> _PAGE_BITS << _PAGE_BITS
    pages = -(-(elf.code[-1][1] - first) // (1 << _PAGE_BITS))
    if pages > MAX_PAGES:
        raise BadElf(elf.path, f"code over {pages << _PAGE_BITS} bytes")
    numbers, rules = _numbered(found)
    address, rule = _with_gaps(elf.code, found, numbers)
    changes = np.append(True, rule[1:] != rule[:-1])[: len(rule)]
    return _paged(first, pages, address[changes] - first, rule[changes], rules)


def _numbered(found: FrameRows) -> tuple[Ints, NDArray[np.uint64]]:
    """Numbers of the rules in the table: by Cfa for GAP, UNSUPPORTED and FRAME.

    Returns:
        The number of each rule of ``found.rules``, and the rules by number.
    """
    special = np.array([pack(Cfa(kind)) for kind in _SPECIAL], np.uint64)
    other = found.rules[~np.isin(found.rules, special)]
    # The most common ones, should there be too many.
    uses = np.bincount(found.rule, minlength=len(found.rules))[~np.isin(found.rules, special)]
    other = other[np.argsort(-uses, kind="stable")][: MAX_RULES - len(special)]
    rules = np.concatenate((special, other))
    order = np.argsort(rules)
    place = np.minimum(np.searchsorted(rules[order], found.rules), len(rules) - 1)
    numbers = order[place]
    numbers[rules[numbers] != found.rules] = _SPECIAL.index(Cfa.UNSUPPORTED)
    return numbers, rules


_SPECIAL = (Cfa.GAP, Cfa.FRAME, Cfa.UNSUPPORTED)
_GAP, _FRAME = _SPECIAL.index(Cfa.GAP), _SPECIAL.index(Cfa.FRAME)


def _with_gaps(code: list[tuple[int, int]], found: FrameRows, numbers: Ints) -> tuple[Ints, Ints]:
    """Addresses and rule numbers of the rows, and of those for what no FDE covers."""
    starts, ends = np.array(code, np.int64).T
    # The code, and what is between its segments, as FDEs of no size.
    begin = np.concatenate((found.begin, starts, ends))
    end = np.concatenate((found.end, starts, ends))
    outside = np.zeros(len(begin), np.bool_)
    outside[len(begin) - len(ends) :] = True
    order = np.lexsort((end, begin))
    begin, end, outside = begin[order], end[order], outside[order]
    size = begin[1:] - end[:-1]
    large = (size >= _MIN_FRAME) | (not len(found.begin))
    gap = np.where(large & ~outside[:-1], _FRAME, _GAP)
    which = np.flatnonzero((size >= _MIN_GAP) | ((gap == _FRAME) & (size > 0)))
    address = np.concatenate((found.address, end[which], ends[-1:]))
    rule = np.concatenate((numbers[found.rule], gap[which], [_GAP]))
    order = np.argsort(address, kind="stable")
    return address[order], rule[order]


def _paged(first: int, count: int, address: Ints, rule: Ints, rules: NDArray[np.uint64]) -> Table:
    """Puts rows into pages; addresses from ``first`` on."""
    inside = address < count << _PAGE_BITS
    address, rule = address[inside], rule[inside]
    pages = np.zeros(count, PAGE)
    sizes = np.bincount(address >> _PAGE_BITS, minlength=count)
    starts = np.cumsum(sizes) - sizes
    pages["start"] = starts
    pages["carry"] = np.where(starts > 0, np.append(rule, _GAP)[starts - 1], _GAP)
    crowded = sizes > MAX_ROWS_OF_PAGE
    pages["count"] = np.where(crowded, 0, sizes)
    pages["carry"][crowded] = _GAP
    rows = ((address & ((1 << _PAGE_BITS) - 1)) << 16 | rule).astype(np.uint32)
    return Table(first, pages, rows, rules)
