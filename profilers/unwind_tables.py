"""The unwind tables of mapped files, put where BPF programs see them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Mapping as Dict

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.unwind.arena import MAPPING, MAX_MAPPINGS, Arena, NoRoom, Placed
from bpflame.bpf.unwind.build import build_table
from bpflame.bpf.unwind.cache import TableCache
from bpflame.bpf.unwind.rules import Cfa
from bpflame.bpf.unwind.table import Table
from bpflame.bpf.unwind.walk import WHY_FRAMES, WHY_LATER, WHY_NO_TABLE
from bpflame.profile import Reason
from bpflame.profilers.files import is_file
from bpflame.raw import AddressSpace, FileKey, Mapping
from bpflame.symbolize.elf_file import PF_X, PT_LOAD, BadElf, ElfFile
from bpflame.symbolize.images import Images

_RULES = 1 << 16
_USER_END = 1 << 63


@dataclasses.dataclass(frozen=True, slots=True)
class FileTable:
    """What is known of a file.

    Attributes:
        why: Why it has no table, ``enum why``.
        placed: The table.
        loads: Its executable segments: offset, size, and virtual address minus offset.
    """

    why: int = WHY_NO_TABLE
    placed: Placed | None = None
    loads: tuple[tuple[int, int, int], ...] = ()


class UnwindTables:
    """All tables of a recording.

    Args:
        program: A loaded program that includes ``tables.h``.
        most: Megabytes that they may take.
        files: Descriptors of mapped files.
        cache: Where tables are kept between recordings.

    Attributes:
        arena: Holds them.
        rules: The rules by number.
        loaded: How many files were looked at.
        missing: Files without a table, by reason.
        seconds: Processor time that it took.
        crowded: Address spaces with more mappings than there is room for.
        known: Files that were looked at.
        gone: Of them, those that could not be opened.
    """

    def __init__(
        self, program: Program, most: int, files: Dict[FileKey, int], cache: TableCache
    ) -> None:
        self.arena = Arena(program, most)
        self.rules: list[int] = []
        self.loaded = 0
        self.missing: dict[Reason | None, int] = {}
        self.seconds = 0.0
        self.crowded: set[AddressSpace] = set()
        self._files = files
        self._cache = cache
        self.known: dict[FileKey, FileTable] = {}
        self.gone: set[FileKey] = set()
        self._by_name: dict[bytes, FileTable] = {}
        self._rule_map = BpfMap(program.map_fd("rules"), 4, 8)
        self._numbers: dict[int, int] = {}
        self._unsupported = self._number_of(int(Cfa.UNSUPPORTED))

    def records(self, space: AddressSpace) -> tuple[NDArray[np.void], list[Mapping]]:
        """What the programs are to know of an address space, and whose tables are still to come.

        Returns:
            Records of dtype :data:`MAPPING`, by address; the mappings of files not loaded yet.
        """
        rows: list[tuple[int, int, int, int, int]] = []
        later = []
        for mapping in space.mappings:
            if mapping.start >= _USER_END or mapping.end <= mapping.start:
                continue
            table = self.known.get(mapping.file)
            if table is None or (mapping.file in self.gone and mapping.file in self._files):
                later.append(mapping)
                table = FileTable(WHY_LATER)
            row = _record(mapping, table)
            if rows and row[3:] == (0, WHY_FRAMES) == rows[-1][3:] and rows[-1][1] == row[0]:
                row = (rows.pop()[0], *row[1:])  # of what JIT compilers map, often piece by piece
            rows.append(row)
        if len(rows) > MAX_MAPPINGS:
            self.crowded.add(space)
            rows.sort(key=lambda row: not row[3])  # files first
            rows = sorted(rows[:MAX_MAPPINGS])
        return np.array(rows[:MAX_MAPPINGS], MAPPING), later

    def load(self, key: FileKey) -> None:
        """Read the table of a file, if it has one."""
        began = time.process_time()
        self.gone.discard(key)
        self.known[key] = self._load(key)
        self.seconds += time.process_time() - began

    def close(self) -> None:
        """Unmap the memory."""
        self.arena.close()

    def _load(self, key: FileKey) -> FileTable:
        if not is_file(key.path) and key.path != "[vdso]":
            return FileTable(WHY_FRAMES)
        with contextlib.closing(Images(self._files)) as images:
            image = images.get(key)
            if image is Reason.ANONYMOUS:
                return FileTable(WHY_FRAMES)
            if isinstance(image, Reason):
                if image is Reason.FILE_GONE and key not in self._files:
                    self.gone.add(key)
                return self._without(image)
            try:
                name = _name(image)
                if name in self._by_name:  # one file at two paths, as in containers
                    return self._by_name[name]
                self.loaded += 1
                table = self._table(image, name)
                placed = Placed(self.arena, table, self._number(table.rules))
                found = FileTable(placed=placed, loads=_loads(image))
                self._by_name[name] = found
                return found
            except BadElf:
                return self._without(Reason.BAD_FILE)
            except NoRoom:
                return self._without(None)

    def _table(self, image: ElfFile, name: bytes) -> Table:
        table = self._cache.load(name)
        if table is None:
            table = build_table(image)
            self._cache.store(name, table)
        return table

    def _without(self, reason: Reason | None) -> FileTable:
        self.missing[reason] = self.missing.get(reason, 0) + 1
        return FileTable()

    def _number(self, rules: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """What the programs call each of a table's rules."""
        return np.array([self._number_of(rule) for rule in rules.tolist()], np.uint32)

    def _number_of(self, rule: int) -> int:
        number = self._numbers.get(rule)
        if number is None:
            number = len(self.rules)
            if number >= _RULES:  # there are some five thousand in a distribution
                return self._unsupported
            self._rule_map.update(number.to_bytes(4, "little"), rule.to_bytes(8, "little"))
            self._numbers[rule] = number
            self.rules.append(rule)
        return number


def _name(image: ElfFile) -> bytes:
    """What its table is kept under.

    Anyone can write a file with the build id of another: where anyone may have, it is of no use.
    """
    if image.trusted and image.build_id:
        return image.build_id
    return hashlib.blake2b(repr((image.identity, image.build_id)).encode()).digest()[:32]


def _loads(image: ElfFile) -> tuple[tuple[int, int, int], ...]:
    loads = image.segments[image.segments["type"] == PT_LOAD]
    return tuple(
        (int(row["offset"]), int(row["filesz"]), int(row["vaddr"]) - int(row["offset"]))
        for row in loads[loads["flags"] & PF_X != 0]
    )


def _record(mapping: Mapping, table: FileTable) -> tuple[int, int, int, int, int]:
    if table.placed is None:
        return mapping.start, mapping.end, 0, 0, table.why
    begin, end = mapping.offset, mapping.offset + mapping.end - mapping.start

    def shared(load: tuple[int, int, int]) -> int:
        offset, size, _ = load
        return min(end, offset + size) - max(begin, offset)

    best = max(table.loads, key=shared, default=None)  # two can share a page of the file
    if best is None or shared(best) <= 0:
        return mapping.start, mapping.end, 0, 0, WHY_NO_TABLE
    delta = mapping.offset - mapping.start + best[2] - table.placed.first
    return mapping.start, mapping.end, delta % 2**64, table.placed.pages, table.placed.count
