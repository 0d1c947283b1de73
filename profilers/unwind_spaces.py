"""The address spaces that the programs can unwind: the map from pids to tables, kept true.

Each entry names the program image it is for by the time that BPF noted at its fork or exec. That
note is read before the records of mappings are: so these are complete up to it, and an entry that
comes too late, for a pid that runs something else by now, is not used.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from bpflame.bpf.load import Program
from bpflame.bpf.mapping_ring import Event, Executed, Exited, Forked, Mapped
from bpflame.bpf.maps import BpfMap
from bpflame.profilers.files import FileKeeper
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.procfs import exists
from bpflame.profilers.unwind_tables import UnwindTables
from bpflame.raw import AddressSpace, FileKey, Mapping

_SPACE = struct.Struct("<QIIiI")  # struct address_space
_PATIENCE = 64  # unknown addresses that are worth a copy, until mappings change or one was known
_GRACE = 0.1  # seconds; far longer than a walk


class Block:
    """The mappings of an address space, as the programs have them.

    Attributes:
        space: The address space.
        version: Of it, which the block shows.
        at: Where they lie.
        words: What room they take.
        count: How many they are.
        users: Processes that have it.
        waits: For the tables of these files.
    """

    __slots__ = ("at", "count", "space", "users", "version", "waits", "words")

    def __init__(self, space: AddressSpace, at: int, words: int, count: int) -> None:
        self.space = space
        self.version = space.version
        self.at = at
        self.words = words
        self.count = count
        self.users = 0
        self.waits: set[FileKey] = set()


class _Entry(NamedTuple):
    """What a process has: its block, the note of its image (None: not read), and since when, ns."""

    block: Block
    note: int | None
    since: int


class UnwindSpaces:
    """Which process unwinds by what.

    Args:
        program: A loaded program that includes ``tables.h``.
        tracker: Who maps what.
        files: Opens mapped files.
        tables: The tables.
        want: Told of files whose table is to be loaded: a pid that maps it, and the mapping.
    """

    def __init__(
        self,
        program: Program,
        tracker: ProcessTracker,
        files: FileKeeper,
        tables: UnwindTables,
        want: Callable[[int, Mapping], None],
    ) -> None:
        self._map = BpfMap(program.map_fd("address_spaces"), 4, _SPACE.size)
        self._born = BpfMap(program.map_fd("born"), 4, 8)
        self._tracker = tracker
        self._files = files
        self._tables = tables
        self._want = want
        self._entries: dict[int, _Entry] = {}
        self._blocks: dict[AddressSpace, Block] = {}
        self._asked: set[int] = set()
        self._notes: dict[int, int] = {}
        self._round = 0
        self._retired: list[tuple[int, float, Block]] = []
        self._gone: dict[int, int] = {}

    def ask(self, pid: int) -> None:
        """A process needs its tables."""
        self._asked.add(pid)

    def began(self, pid: int, note: int) -> None:
        """A process runs another image, as is noted already."""
        if pid in self._entries:
            self._asked.add(pid)
            self._notes[pid] = note

    def knows(self, pid: int, born: int) -> bool:
        """Whether a process has an entry for the image that it has run since ``born``."""
        entry = self._entries.get(pid)
        return entry is not None and entry.note == born

    def note(self) -> None:
        """Note what those who ask are running. Then the records of mappings are to be read."""
        for pid in self._asked:
            data = self._born.lookup(pid.to_bytes(4, "little"))
            self._notes[pid] = 0 if data is None else int.from_bytes(data, "little")

    def apply(self, event: Event) -> None:
        """Take in what happened to a process."""
        if isinstance(event, Mapped):
            self.renew(event.pid)
        elif isinstance(event, Forked):
            self._forked(event)
        elif isinstance(event, Executed | Exited):
            self._drop(event.pid)
            if isinstance(event, Exited):
                self._map.delete(event.pid.to_bytes(4, "little"))
                self._gone[event.pid] = self._round

    def renew(self, pid: int) -> None:
        """A process has other mappings, or has asked for what is known."""
        entry = self._entries.get(pid)
        if entry is not None:
            self._asked.add(pid)
            if entry.note is not None:
                self._notes[pid] = entry.note

    def install(self) -> None:
        """Give all who ask what is known of them."""
        asked, self._asked = self._asked, set()
        for pid in asked:
            note = self._notes.pop(pid, None)
            if note is None:
                self._asked.add(pid)  # what it runs is noted the next time
            else:
                self._install(pid, note)

    def loaded(self) -> None:
        """There are new tables: give them to those who wait for them."""
        for pid, entry in list(self._entries.items()):
            if entry.note is not None and not entry.block.waits.isdisjoint(self._tables.known):
                self._install(pid, entry.note)

    def forget(self) -> None:
        """Records were lost: nothing that is known of processes is certain."""
        for _ in self._map.drain():
            pass
        for pid in list(self._entries):
            self._drop(pid)

    def block(self, space: AddressSpace) -> Block | None:
        """The mappings of an address space as they are now; None where there is no room."""
        tables = self._tables
        block = self._blocks.get(space)
        if (
            block is not None
            and block.version == space.version
            and block.waits.isdisjoint(tables.known)
        ):
            return block
        for mapping in space.mappings:
            if mapping.file in tables.gone:
                self._files.keep(space.pid, mapping)  # of this process it may still be there
        records, later = tables.records(space)
        for mapping in later:
            self._want(space.pid, mapping)
        words = records.view("<u4").reshape(-1)
        at = tables.arena.take(len(words), whole=True) if len(words) else 0
        if at is None:
            return None
        tables.arena.write(at, words)
        block = Block(space, at, len(words), len(records))
        block.waits = {mapping.file for mapping in later}
        old, self._blocks[space] = self._blocks.get(space), block
        if old is not None:
            self.retire(old)
        return block

    def retire(self, block: Block) -> None:
        """A block may not be needed any more."""
        if block.users == 0 and block.words:
            if self._blocks.get(block.space) is block:
                del self._blocks[block.space]
            self._retired.append((self._round, time.monotonic(), block))

    def end_round(self) -> None:
        """Give back what no program looks at any more.

        A child may have inherited a block until it was retired, which the records tell that are
        read in the round after.
        """
        before = time.monotonic() - _GRACE
        while self._retired and self._retired[0][0] < self._round - 1:
            if self._retired[0][1] > before:
                break
            _, _, block = self._retired.pop(0)
            self._tables.arena.give(block.at, block.words)
        self._gone = {pid: when for pid, when in self._gone.items() if when >= self._round - 1}
        self._round += 1

    def _forked(self, event: Forked) -> None:
        parent = self._entries.get(event.parent)
        if parent is None:
            if event.parent in self._gone:  # it may have had one then, and handed it on
                self._map.delete(event.pid.to_bytes(4, "little"))
        elif event.time < parent.since:  # it has what its parent had then
            self._asked.add(event.pid)
        else:
            self._use(event.pid, parent.block, None)

    def _install(self, pid: int, note: int) -> None:
        space = self._tracker.find(pid, note)
        if space is None:
            self._tracker.adopt(pid)
            space = self._tracker.find(pid, note)
        block = None if space is None or not exists(pid) else self.block(space)
        if block is None:
            self._drop(pid)
            return
        key = pid.to_bytes(4, "little")
        self._map.update(key, _SPACE.pack(note, block.at, block.count, _PATIENCE, pid))
        self._use(pid, block, note)

    def _use(self, pid: int, block: Block, note: int | None) -> None:
        block.users += 1
        self._drop(pid)
        self._entries[pid] = _Entry(block, note, time.monotonic_ns())

    def _drop(self, pid: int) -> None:
        entry = self._entries.pop(pid, None)
        if entry is not None:
            entry.block.users -= 1
            self.retire(entry.block)
