"""Keeps unwind tables in step with what runs.

Processes ask for their tables: a program that meets one that it does not know hands over a copy of
its stack (``bpf/programs/unwind.h``). So only what runs is ever looked at, a recording begins at
once, and nothing is lost until the tables are there.

Each entry names the program image it is for by the time that BPF noted at its fork or exec. That
note is read before the records of mappings are: so these are complete up to it, and an entry that
comes too late, for a pid that runs something else by now, is not used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bpflame.bpf.btf import Btf
from bpflame.bpf.load import Program
from bpflame.bpf.mapping_ring import Event, Executed, Exited, Forked, Mapped
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.unwind.copies import Copies, Copy
from bpflame.profile import Reason
from bpflame.profilers.counting import Stacks
from bpflame.profilers.files import FileKeeper
from bpflame.profilers.processes import ProcessTracker
from bpflame.raw import AddressSpace, FileKey, Mapping, StackEnd

if TYPE_CHECKING:  # they load numpy: not before the recording has begun
    from bpflame.bpf.unwind.walk import Walked
    from bpflame.profilers.unwind_tables import UnwindTables

MAX_CHUNKS = 512  # of a megabyte each, made when there is need
_COPY_RING_PAGES = 1 << 12
_SPACE_ENTRIES = 1 << 16  # processes that live at one time
_TAIL_CALLS = 32  # MAX_TAIL_CALL_CNT is 33; some kernels allow one less
_FEW_FRAMES = 8  # more cost load time, less cost tail calls
_SPACE = struct.Struct("<QIIiI")  # struct address_space
_PATIENCE = 8  # unknown addresses that are worth a copy, until mappings change
_BUDGET = 0.05  # seconds at a time: the maps of stacks are to be drained meanwhile
_RETIRED = 2.0  # seconds; far longer than a walk, and until all forks before are known of
_COPIES_MAX = 64 << 20  # bytes of stacks that wait for their tables


def unwind_defines(depth: int, btf: Btf) -> dict[str, int | str | None]:
    """The compile-time constants of ``unwind.h``.

    Args:
        depth: How many frames a stack may have.
        btf: The kernel's.
    """
    return {
        "CHUNK_ENTRIES": MAX_CHUNKS,
        "COPY_RING_PAGES": _COPY_RING_PAGES,
        "SPACE_ENTRIES": _SPACE_ENTRIES,
        "TASK_MM": btf.offset("task_struct", "mm"),
        "UNWIND": None,
        "WALK_FRAMES": max(_FEW_FRAMES, -(-depth // _TAIL_CALLS)),
    }


def set_walkers(program: Program, kind: int, functions: Iterable[str]) -> None:
    """Load the programs that walk on, and let them be called.

    Args:
        program: Compiled with :func:`unwind_defines`.
        kind: Their type, that of the programs that call them.
        functions: Their names, by number.
    """
    walkers = BpfMap(program.map_fd("walkers"), 4, 4)
    for number, function in enumerate(functions):
        fd = program.load(function, kind)
        walkers.update(number.to_bytes(4, "little"), fd.to_bytes(4, "little"))


@contextlib.contextmanager
def get_ready(walks: bool) -> Iterator[None]:
    """Load what reads tables, which takes a while, beside something else that does: the compiler.

    Args:
        walks: Whether there will be tables at all.
    """

    def load() -> None:
        importlib.import_module("bpflame.bpf.unwind.walk")
        importlib.import_module("bpflame.profilers.unwind_tables")

    thread = threading.Thread(target=load, name="get_ready", daemon=True)
    if not walks:
        yield
        return
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # there is no linear algebra here
    thread.start()
    try:
        yield
    finally:
        thread.join()  # neither a thread nor the variable is to be there when a command is forked
        del os.environ["OPENBLAS_NUM_THREADS"]
        if before is not None:
            os.environ["OPENBLAS_NUM_THREADS"] = before


class _Block:
    """The mappings of an address space, as the programs have them.

    Attributes:
        at: Where they lie.
        count: How many they are.
        version: Of the address space.
        waits: For these files.
        users: Processes that have it.
        since: When it became theirs, CLOCK_MONOTONIC ns.
    """

    __slots__ = ("at", "count", "since", "space", "users", "version", "waits", "words")

    def __init__(self, space: AddressSpace, at: int, words: int, count: int) -> None:
        self.space = space
        self.version = space.version
        self.at = at
        self.words = words
        self.count = count
        self.users = 0
        self.waits: set[FileKey] = set()
        self.since = 0


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
        self._spaces = BpfMap(program.map_fd("address_spaces"), 4, _SPACE.size)
        self._born = BpfMap(program.map_fd("born"), 4, 8)
        self._tables: UnwindTables | None = None
        self._asked: set[int] = set()
        self._notes: dict[int, int] = {}
        self._installed: dict[int, tuple[_Block, int | None]] = {}
        self._blocks: dict[AddressSpace, _Block] = {}
        self._queue: dict[FileKey, tuple[int, Mapping]] = {}
        self._pending: list[Copy] = []
        self._pending_bytes = 0
        self._retired: list[tuple[float, _Block]] = []
        self._dropped = 0

    @property
    def fd(self) -> int:
        """Readable when a process asks."""
        return self._copies.fd

    def ask(self, pids: Iterable[int]) -> None:
        """Processes that will need tables."""
        self._asked.update(pids)

    def adopt(self, copy: Copy) -> None:
        """Unwind a stack that did not come from the programs."""
        if self._pending_bytes + copy.size > _COPIES_MAX:
            self._dropped += 1
            self._store(copy, (copy.leaf.ip,), StackEnd.NOT_READY, False)
            return
        self._pending.append(copy)
        self._pending_bytes += copy.size
        self._asked.add(copy.pid)

    def prepare(self) -> None:
        """Note who asks. Then the records of mappings are to be read, and :meth:`update` called."""
        self._read()
        for pid in self._asked:
            data = self._born.lookup(pid.to_bytes(4, "little"))
            self._notes[pid] = 0 if data is None else int.from_bytes(data, "little")

    def update(self, events: Iterable[Event], last: bool = False) -> None:
        """Bring the programs' tables up to date.

        Args:
            events: What the tracker was told since the last time.
            last: Nothing runs any more: unwind what is left, however long it takes.
        """
        for event in events:
            self._apply(event)
        if not (self._asked or self._queue or self._pending):
            return
        deadline = time.monotonic() + (3600 if last else _BUDGET)
        if not last:
            asked, self._asked = self._asked, set()
            for pid in asked:
                self._install(pid, self._notes.pop(pid, None))
        self._load(deadline)
        self._walk(deadline)
        while last and self._queue:  # of images that have been replaced since
            self._load(deadline)
            self._walk(deadline)
        self._free()

    def extra(self) -> dict[str, int]:
        """What is to be accounted for."""
        tables = self._tables
        if tables is None:
            return {"dropped_copies": self._dropped}
        missing = tables.missing
        return {
            "unwind_tables": tables.loaded,
            "unwind_table_bytes": tables.arena.size,
            "unwind_table_ms": int(tables.seconds * 1000),
            "files_without_table": sum(missing.values()) - missing.get(None, 0),
            "replaced_files": missing.get(Reason.FILE_GONE, 0),
            "table_room": missing.get(None, 0),
            "crowded_processes": tables.crowded,
            "dropped_copies": self._dropped,
        }

    def close(self) -> None:
        """Free everything."""
        self._copies.close()
        if self._tables is not None:
            self._tables.close()

    def _read(self) -> None:
        for copy in self._copies.read():
            self.adopt(copy)

    def _apply(self, event: Event) -> None:
        if isinstance(event, Mapped):
            if event.pid in self._installed:
                self._renew(event.pid)
        elif isinstance(event, Forked):
            if event.parent in self._installed:
                block, _ = self._installed[event.parent]
                if event.time < block.since:  # it has what its parent had then
                    self._asked.add(event.pid)
                    self._notes[event.pid] = 0
                else:
                    self._use(event.pid, block, None)
        elif isinstance(event, Executed | Exited):
            self._drop(event.pid)
            if isinstance(event, Exited):
                self._spaces.delete(event.pid.to_bytes(4, "little"))

    def _renew(self, pid: int) -> None:
        """A process has other mappings, or there are tables that it waits for."""
        _, note = self._installed[pid]
        self._asked.add(pid)
        if note is not None:
            self._notes[pid] = note

    def _install(self, pid: int, note: int | None) -> None:
        if note is None:
            self._asked.add(pid)  # what it runs is noted the next time
            return
        space = self._tracker.find(pid, note)
        block = None if space is None else self._block(space)
        at, count = (0, 0) if block is None else (block.at, block.count)
        entry = _SPACE.pack(note, at, count, _PATIENCE, 0)
        self._spaces.update(pid.to_bytes(4, "little"), entry)
        if block is not None:
            self._use(pid, block, note)
        else:
            self._drop(pid)

    def _use(self, pid: int, block: _Block, note: int | None) -> None:
        block.users += 1
        self._drop(pid)
        self._installed[pid] = (block, note)

    def _drop(self, pid: int) -> None:
        block, _ = self._installed.pop(pid, (None, None))
        if block is not None:
            block.users -= 1
            self._retire(block)

    def _retire(self, block: _Block) -> None:
        if block.users == 0 and block.words:
            if self._blocks.get(block.space) is block:
                del self._blocks[block.space]
            self._retired.append((time.monotonic(), block))

    def _block(self, space: AddressSpace) -> _Block | None:
        """The mappings of an address space as they are now; None where there is no room."""
        tables = self._the_tables()
        block = self._blocks.get(space)
        if (
            block is not None
            and block.version == space.version
            and not any(key in tables for key in block.waits)
        ):
            return block
        records, later = tables.records(space.mappings)
        for mapping in later:
            self._queue.setdefault(mapping.file, (space.pid, mapping))
        words = records.view("<u4").reshape(-1)
        at = tables.arena.take(len(words), whole=True) if len(words) else 0
        if at is None:
            return None
        tables.arena.write(at, words)
        block = _Block(space, at, len(words), len(records))
        block.waits = {mapping.file for mapping in later}
        block.since = time.monotonic_ns()
        old, self._blocks[space] = self._blocks.get(space), block
        if old is not None:
            self._retire(old)
        return block

    def _load(self, deadline: float) -> None:
        """Read the tables that are asked for, at least one."""
        tables = self._the_tables()
        some = False
        while self._queue and (not some or time.monotonic() < deadline):
            key = next(iter(self._queue))
            pid, mapping = self._queue.pop(key)
            self._files.keep(pid, mapping)
            tables.load(key)
            some = True
            self._read()  # it may have taken a while, and the ring fills
        if some:
            for pid, (block, note) in list(self._installed.items()):
                if note is not None and any(key in tables for key in block.waits):
                    self._install(pid, note)

    def _walk(self, deadline: float) -> None:
        """Unwind the copies whose tables are there."""
        if not self._pending:
            return
        from bpflame.bpf.unwind.walk import Walker

        tables = self._the_tables()
        left = []
        walked: dict[tuple[object, ...], Walked] = {}  # a thread often waits where it waited before
        for i, copy in enumerate(self._pending):
            if time.monotonic() > deadline:
                left += self._pending[i:]
                break
            space = self._tracker.find(copy.pid, copy.born)
            block = None if space is None else self._block(space)
            if block is None:
                self._store(copy, (copy.leaf.ip,), StackEnd.NOT_READY, False)
                continue
            same = (space, copy.leaf, copy.pages)
            if same not in walked:
                walker = Walker(tables.arena, block.at, block.count, tables.rules, self._depth)
                walked[same] = walker.walk(copy.leaf, copy.word)
            if walked[same].end is StackEnd.NOT_READY and self._queue:
                left.append(copy)
            else:
                self._store(copy, *walked[same])
            if not block.users:
                self._retire(block)
        self._pending = left
        self._pending_bytes = sum(copy.size for copy in left)

    def _store(self, copy: Copy, ips: tuple[int, ...], end: StackEnd, guessed: bool) -> None:
        self._stacks.put(copy.number, ips, end, guessed)

    def _free(self) -> None:
        """Give back what no program can be looking at any more."""
        before = time.monotonic() - _RETIRED
        while self._retired and self._retired[0][0] < before:
            _, block = self._retired.pop(0)
            self._the_tables().arena.give(block.at, block.words)

    def _the_tables(self) -> UnwindTables:
        if self._tables is None:
            from bpflame.bpf.unwind.cache import TableCache
            from bpflame.profilers.unwind_tables import UnwindTables

            self._tables = UnwindTables(self._program, MAX_CHUNKS, self._files.files, TableCache())
        return self._tables
