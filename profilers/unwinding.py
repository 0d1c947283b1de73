"""Keeps unwind tables in step with what runs, and unwinds what came before they were there.

Processes ask for their tables: a program that meets one that it does not know hands over a copy of
its stack (``bpf/programs/copies.h``). So only what runs is ever looked at, a recording begins at
once, and nothing is lost until the tables are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bpflame.bpf.load import Program
from bpflame.bpf.mapping_ring import Event
from bpflame.bpf.unwind.copies import Copies, Copy
from bpflame.profile import Reason
from bpflame.profilers.counting import Stacks
from bpflame.profilers.files import FileKeeper
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.unwind_setup import MAX_CHUNKS
from bpflame.raw import AddressSpace, FileKey, Mapping, StackEnd

if TYPE_CHECKING:  # they load numpy: not before the recording has begun
    from bpflame.bpf.unwind.walk import Walked
    from bpflame.profilers.unwind_spaces import UnwindSpaces
    from bpflame.profilers.unwind_tables import UnwindTables

_BUDGET = 0.02  # seconds at a time: the maps of stacks are to be drained meanwhile
_COPIES_MAX = 256 << 20  # bytes of stacks that wait for their tables
_REREAD = 1.0  # seconds between looks at the mappings of a process that runs where there are none


class Unwinding:
    """The tables of one recording.

    Args:
        program: A loaded program that includes ``unwind.h``.
        stacks: Where the stacks go that are unwound here.
        depth: How many frames a stack may have.
        tracker: Who maps what.
        files: Opens mapped files.
    """

    def __init__(
        self,
        program: Program,
        stacks: Stacks,
        depth: int,
        tracker: ProcessTracker,
        files: FileKeeper,
    ) -> None:
        self._program = program
        self._stacks = stacks
        self._depth = depth
        self._tracker = tracker
        self._files = files
        self._copies = Copies(program)
        self._made: tuple[UnwindTables, UnwindSpaces] | None = None
        self._queue: dict[FileKey, tuple[int, Mapping]] = {}
        self._fresh: list[Copy] = []
        self._pending: list[Copy] = []
        self._pending_bytes = 0
        self._dropped = 0
        self._lost = 0
        self._reread: dict[int, float] = {}

    @property
    def fd(self) -> int:
        """Readable when a process asks."""
        return self._copies.fd

    def _make(self) -> tuple[UnwindTables, UnwindSpaces]:
        from bpflame.bpf.unwind.cache import TableCache
        from bpflame.profilers.unwind_spaces import UnwindSpaces
        from bpflame.profilers.unwind_tables import UnwindTables

        files = self._files
        tables = UnwindTables(self._program, MAX_CHUNKS, files.files, TableCache())
        spaces = UnwindSpaces(self._program, self._tracker, files, tables, self._want)
        return tables, spaces

    def ask(self, pids: Iterable[int]) -> None:
        """Processes that will need tables."""
        for pid in pids:
            self.spaces.ask(pid)

    @property
    def tables(self) -> UnwindTables:
        """The tables."""
        self._made = self._made or self._make()
        return self._made[0]

    @property
    def spaces(self) -> UnwindSpaces:
        """Which process unwinds by what."""
        self._made = self._made or self._make()
        return self._made[1]

    def collect(self) -> None:
        """Make room in the ring. What comes waits for the records of mappings of its time."""
        self._fresh += self._copies.read()

    def adopt(self, copy: Copy) -> None:
        """Take on a stack to unwind."""
        if self._pending_bytes + copy.size > _COPIES_MAX:
            self._dropped += 1
            self._put_leaf(copy)
            return
        self._pending.append(copy)
        self._pending_bytes += copy.size
        if copy.end is not StackEnd.NO_MAPPING or not self.spaces.knows(copy.pid, copy.born):
            self.spaces.ask(copy.pid)

    def prepare(self) -> None:
        """Note who asks. Then the records of mappings are to be read, and :meth:`update` called."""
        self.collect()
        fresh, self._fresh = self._fresh, []
        for copy in fresh:
            self.adopt(copy)
        self.spaces.note()

    def update(
        self,
        events: Iterable[Event],
        lost: int,
        last: bool = False,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        """Bring the programs' tables up to date.

        Args:
            events: What the tracker was told since the last time.
            lost: Records lost so far.
            last: Nothing runs any more: unwind what is left ...
            hurried: ... until this returns True.
        """
        for event in events:
            self.spaces.apply(event)
        if lost > self._lost:
            self._lost = lost
            self.spaces.forget()
        self.spaces.install()
        if last:
            self._finish(hurried)
        else:
            deadline = time.monotonic() + _BUDGET
            self._load(deadline)
            self._walk(lambda: time.monotonic() > deadline)
        self.spaces.end_round()

    def extra(self) -> dict[str, int]:
        """What is to be accounted for."""
        tables = self.tables
        missing = tables.missing
        return {
            "unwind_tables": tables.loaded,
            "unwind_table_bytes": tables.arena.size,
            "unwind_table_ms": int(tables.seconds * 1000),
            "files_without_table": sum(missing.values()) - missing.get(None, 0),
            "replaced_files": missing.get(Reason.FILE_GONE, 0),
            "table_room": missing.get(None, 0),
            "crowded_processes": len(tables.crowded),
            "dropped_copies": self._dropped,
        }

    def close(self) -> None:
        """Free everything."""
        self._copies.close()
        if self._made is not None:
            self.tables.close()

    def _want(self, pid: int, mapping: Mapping) -> None:
        self._queue.setdefault(mapping.file, (pid, mapping))

    def _load(self, deadline: float) -> None:
        """Read the tables that are asked for, at least one."""
        some = False
        while self._queue and (not some or time.monotonic() < deadline):
            key = next(iter(self._queue))
            pid, mapping = self._queue.pop(key)
            self._files.keep(pid, mapping)
            self.tables.load(key)
            some = True
            self.collect()  # it may have taken a while
        if some:
            self.spaces.loaded()

    def _finish(self, hurried: Callable[[], bool]) -> None:
        while self._pending and not hurried():
            self._walk(hurried)
            if not self._queue:
                break
            self._load(time.monotonic() + _BUDGET)
        for copy in self._pending:
            self._put_leaf(copy)
        self._pending.clear()

    def _walk(self, stopped: Callable[[], bool]) -> None:
        """Unwind the copies whose tables are there."""
        if not self._pending:
            return
        left = []
        walked: dict[tuple[object, ...], Walked] = {}  # a thread often waits where it waited before
        for i, copy in enumerate(self._pending):
            if stopped():
                left += self._pending[i:]
                break
            space = self._tracker.find(copy.pid, copy.born)
            found = None if space is None else self._walk_one(space, copy, walked)
            if found is None:
                self._put_leaf(copy)
            elif found.end is StackEnd.NOT_READY and self._queue:
                left.append(copy)
            else:
                self._stacks.put(copy.number, *found)
        self._pending = left
        self._pending_bytes = sum(copy.size for copy in left)

    def _walk_one(
        self, space: AddressSpace, copy: Copy, walked: dict[tuple[object, ...], Walked]
    ) -> Walked | None:
        from bpflame.bpf.unwind.walk import Walker

        same = (space, copy.leaf, copy.pages)
        if same in walked:
            return walked[same]
        block = self.spaces.block(space)
        if block is None:
            return None
        walker = Walker(self.tables.arena, block.at, block.count, self.tables.rules, self._depth)
        walked[same] = found = walker.walk(copy.leaf, copy.word)
        if found.end is not StackEnd.NO_MAPPING:
            self.spaces.renew(copy.pid)
        elif self._look_again(copy):
            walked.pop(same)
            return self._walk_one(space, copy, walked)
        self.spaces.retire(block)
        return found

    def _look_again(self, copy: Copy) -> bool:
        """Look at the mappings themselves, now and then: nobody is told of those that mremap moves.

        Returns:
            Whether there is anything new.
        """
        now = time.monotonic()
        if now - self._reread.get(copy.pid, 0.0) < _REREAD:
            return False
        self._reread[copy.pid] = now
        if not self._tracker.look_again(copy.pid, copy.born):
            return False
        self.spaces.renew(copy.pid)
        return True

    def _put_leaf(self, copy: Copy) -> None:
        self._stacks.put(copy.number, (copy.leaf.ip,), StackEnd.NOT_READY)
