"""The memory that holds all unwind tables, shared with the BPF programs.

Mirrors ``bpf/programs/tables.h``: one space of 32-bit words, made of chunks of 1 MB. A chunk is a
BPF array map of one value, mapped here, and so written without a system call.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.load import Program, libbcc
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.unwind.table import PAGE, Table
from bpflame.errors import BpflameError

CHUNK_WORDS = 1 << 18
MAPPING = np.dtype(
    [("start", "<u8"), ("end", "<u8"), ("delta", "<u8"), ("pages", "<u4"), ("count", "<u4")]
)
"""``struct mapping``."""
MAPPING_WORDS = MAPPING.itemsize // 4
MAX_MAPPINGS = CHUNK_WORDS // MAPPING_WORDS

_CHUNK_BYTES = 4 * CHUNK_WORDS
_PAGE_WORDS = PAGE.itemsize // 4
_ROWS_OF_A_PAGE = 1 << 12
_RESERVED = MAPPING_WORDS  # place 0 means that there is nothing
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_ARRAY = 2  # BPF_MAP_TYPE_ARRAY


class NoRoom(Exception):  # noqa: N818 - a condition, not a failure
    """The tables have all the memory that they may have."""


class Arena:
    """Words that BPF programs see, taken and given back.

    Args:
        program: A loaded program that includes ``tables.h``.
        most: How many chunks there may be.
    """

    def __init__(self, program: Program, most: int) -> None:
        self._outer = BpfMap(program.map_fd("chunks"), 4, 4)
        self._most = most
        self._chunks: list[mmap.mmap] = []
        self._words: list[NDArray[np.uint32]] = []
        self._free: list[tuple[int, int]] = []  # start and end, in order, not adjacent
        self._add(program.map_fd("first_chunk"))
        self._free[0] = (_RESERVED, CHUNK_WORDS)

    @property
    def size(self) -> int:
        """Bytes that the chunks take."""
        return _CHUNK_BYTES * len(self._chunks)

    def take(self, words: int, whole: bool) -> int | None:
        """Room for some words at a multiple of 8; None when there is none.

        Args:
            words: How many.
            whole: They must lie in one chunk.
        """
        words += -words % MAPPING_WORDS
        if whole and words > CHUNK_WORDS:
            return None
        while True:
            for i, (start, end) in enumerate(self._free):
                at = start
                if whole and at // CHUNK_WORDS != (at + words - 1) // CHUNK_WORDS:
                    at += -at % CHUNK_WORDS
                if at + words <= end:
                    rest = [(start, at), (at + words, end)]
                    self._free[i : i + 1] = [(a, b) for a, b in rest if a < b]
                    return at
            if not self._grow():
                return None

    def give(self, at: int, words: int) -> None:
        """Take words back that no program looks at any more."""
        words += -words % MAPPING_WORDS
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._free, (at, at + words)]):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged

    def write(self, at: int, words: NDArray[np.uint32]) -> None:
        """Fill a place that was taken."""
        done = 0
        while done < len(words):
            chunk, begin = divmod(at + done, CHUNK_WORDS)
            part = words[done : done + CHUNK_WORDS - begin]
            self._words[chunk][begin : begin + len(part)] = part
            done += len(part)

    def read(self, at: int, words: int) -> NDArray[np.uint32]:
        """What lies at a place, within one chunk; not a copy."""
        chunk, begin = divmod(at, CHUNK_WORDS)
        return self._words[chunk][begin : begin + words]

    def close(self) -> None:
        """Unmap the chunks. The maps are the program's."""
        self._words.clear()
        for chunk in self._chunks:
            with contextlib.suppress(BufferError):  # an error's traceback may hold a view
                chunk.close()
        self._chunks.clear()

    def _grow(self) -> bool:
        if len(self._chunks) >= self._most:
            return False
        fd = libbcc().bcc_create_map(_ARRAY, b"chunk", 4, _CHUNK_BYTES, 1, _MMAPABLE)
        if fd < 0:
            return False
        try:
            self._add(fd)
        except (BpflameError, OSError):
            return False
        finally:
            os.close(fd)  # the map of maps and the mapping keep it
        return True

    def _add(self, fd: int) -> None:
        chunk = mmap.mmap(fd, _CHUNK_BYTES)
        number = len(self._chunks)
        self._outer.update(number.to_bytes(4, "little"), fd.to_bytes(4, "little"))
        self._chunks.append(chunk)
        self._words.append(np.frombuffer(chunk, np.uint32))
        at = number * CHUNK_WORDS
        self.give(at, CHUNK_WORDS)


class Placed:
    """A table in the arena.

    Attributes:
        pages: Where its pages lie.
        count: How many they are.
        first: Virtual address of the first.
        rows: Where its rows lie.
        size: Words that they take.
    """

    __slots__ = ("count", "first", "pages", "rows", "size")

    def __init__(self, arena: Arena, table: Table, numbers: NDArray[np.uint32]) -> None:
        """Write a table.

        Args:
            arena: Where to.
            table: The table.
            numbers: What the programs call each of its rules.

        Raises:
            NoRoom: There is none.
        """
        count = len(table.rows)
        small = count <= CHUNK_WORDS // 4
        # Rows of a page lie in one chunk: what would not is moved to the next.
        crossings = 0 if small else 1 + count // (CHUNK_WORDS - _ROWS_OF_A_PAGE)
        self.size = max(count + crossings * _ROWS_OF_A_PAGE, 1)
        self.count = len(table.pages)
        self.first = table.first
        rows = arena.take(self.size, whole=small)
        pages = arena.take(self.count * _PAGE_WORDS, whole=False)
        if rows is None or pages is None:
            for place, words in ((rows, self.size), (pages, self.count * _PAGE_WORDS)):
                if place is not None:
                    arena.give(place, words)
            raise NoRoom
        self.rows, self.pages = rows, pages
        _write(arena, table, numbers, rows, pages)

    def remove(self, arena: Arena) -> None:
        """Give its room back."""
        arena.give(self.rows, self.size)
        arena.give(self.pages, self.count * _PAGE_WORDS)


def _write(arena: Arena, table: Table, numbers: NDArray[np.uint32], rows: int, pages: int) -> None:
    content = (table.rows & np.uint32(0xFFFF0000)) | numbers[table.rows & np.uint32(0xFFFF)]
    placed = table.pages.copy()
    counts = placed["count"].astype(np.int64)
    starts = rows + placed["start"].astype(np.int64)
    while True:
        ends = starts + np.maximum(counts, 1) - 1
        crossing = np.flatnonzero(starts // CHUNK_WORDS != ends // CHUNK_WORDS)
        if not len(crossing):
            break
        i = int(crossing[0])
        starts[i:] += CHUNK_WORDS - starts[i] % CHUNK_WORDS
    # What is between two jumps moves as one.
    shifts = starts - rows - placed["start"]
    edges = [0, *(np.flatnonzero(np.diff(shifts)) + 1).tolist(), len(placed)]
    for begin, end in itertools.pairwise(edges):
        if begin < end:
            first = int(placed["start"][begin])
            last = int(placed["start"][end - 1]) + int(counts[end - 1])
            arena.write(int(starts[begin]), content[first:last])
    placed["start"] = starts
    placed["carry"] = numbers[placed["carry"]]
    arena.write(pages, placed.view(np.uint32))
