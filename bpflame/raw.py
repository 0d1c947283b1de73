"""What a recorder hands to the symbolizer: addresses, and what was mapped where.

Three address spaces are told apart by type, so that one is never taken for another:

- :data:`AbsoluteAddress`: where a process or the kernel ran it.
- :data:`FileOffset`: bytes from the start of a file.
- ``VirtualAddress`` (:mod:`bpflame.symbolize.elf`): where an ELF file wants it.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
from collections.abc import Mapping as Dict
from typing import NewType

from bpflame.profile import Metadata, Task

AbsoluteAddress = NewType("AbsoluteAddress", int)
FileOffset = NewType("FileOffset", int)


@dataclasses.dataclass(frozen=True, slots=True)
class FileKey:
    """Which file was mapped: two files of one path differ by build id or inode.

    Attributes:
        path: As the process sees it; a name in brackets or empty for memory that is no file.
        build_id: From the kernel; empty when it has none or does not tell.
        inode: 0 when a build id is there instead.
    """

    path: str
    build_id: bytes = b""
    inode: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """An executable mapping: ``[start, end)`` shows the file from ``offset`` on."""

    start: AbsoluteAddress
    end: AbsoluteAddress
    offset: FileOffset
    file: FileKey

    def part(self, start: AbsoluteAddress, end: AbsoluteAddress) -> Mapping:
        """The mapping cut down to ``[start, end)``."""
        moved = FileOffset(self.offset + start - self.start)
        return Mapping(start, end, moved, self.file)


class AddressSpace:
    """The executable mappings of one program image of one process.

    Attributes:
        pid: The process.
        born: When the image began (CLOCK_MONOTONIC, ns); 0 when before the recording.
        mappings: By address, none overlapping.
        version: Another number when they have changed.
    """

    __slots__ = ("born", "mappings", "pid", "version")

    def __init__(self, pid: int, born: int, mappings: list[Mapping]) -> None:
        self.pid = pid
        self.born = born
        self.mappings = mappings
        self.version = 0

    def add(self, new: Mapping) -> None:
        """Map ``new`` over whatever was there, as mmap does."""
        low = bisect.bisect_right(self.mappings, new.start, key=lambda m: m.end)
        high = bisect.bisect_left(self.mappings, new.end, lo=low, key=lambda m: m.start)
        left = [m.part(m.start, new.start) for m in self.mappings[low:high] if m.start < new.start]
        right = [m.part(new.end, m.end) for m in self.mappings[low:high] if m.end > new.end]
        self.mappings[low:high] = [*left, new, *right]
        self.version += 1

    def replaces(self, new: Mapping) -> bool:
        """Whether the code of another file is, or was until now, where ``new`` is mapped."""
        low = bisect.bisect_right(self.mappings, new.start, key=lambda m: m.end)
        high = bisect.bisect_left(self.mappings, new.end, lo=low, key=lambda m: m.start)
        return any(m.file != new.file for m in self.mappings[low:high])

    def find(self, address: AbsoluteAddress) -> Mapping | None:
        """The mapping that covers an address."""
        index = bisect.bisect_right(self.mappings, address, key=lambda m: m.start) - 1
        if index >= 0 and address < self.mappings[index].end:
            return self.mappings[index]
        return None


class Context(enum.Enum):
    """What a link of a chain of wakers is."""

    TASK = enum.auto()
    """A thread: its stacks are those at the wakeup."""
    INTERRUPT = enum.auto()
    """An interrupt, or the idle CPU's work for one; the stack ends at its entry."""
    UNKNOWN = enum.auto()
    """Nobody was seen to end the wait."""
    CYCLE = enum.auto()
    """The chain goes on with a thread that is in it already."""
    DEEPER = enum.auto()
    """The chain goes on, deeper than was asked for."""


class StackEnd(enum.IntEnum):
    """Why a user stack ends where it does: ``enum stack_end`` in bpf/programs/stack.h."""

    UNTOLD = 0
    """Walked along frame pointers, where nothing tells; or there is no stack."""
    COMPLETE = 1
    """At the outermost frame."""
    NO_MAPPING = 2
    """At an address in no executable mapping."""
    NO_TABLE = 3
    """In code without call frame information."""
    UNREADABLE = 4
    """At a part of the stack that was not in memory, or not there."""
    NOT_GROWING = 5
    """At a frame that is not above the one before."""
    TOO_DEEP = 6
    """It has more frames than are taken."""
    UNSUPPORTED = 7
    """At a rule that only a debugger could follow."""
    NOT_READY = 8
    """The process was new, and its tables were not there yet."""
    NARROW = 9
    """In a 32-bit program: walked along frame pointers."""


TRUNCATED: Dict[StackEnd, str] = {
    StackEnd.NO_MAPPING: "no mapping",
    StackEnd.NO_TABLE: "no table",
    StackEnd.UNREADABLE: "unreadable stack",
    StackEnd.NOT_GROWING: "CFA not growing",
    StackEnd.TOO_DEEP: "too deep",
    StackEnd.UNSUPPORTED: "unsupported rule",
    StackEnd.NOT_READY: "tables not ready",
    StackEnd.NARROW: "32-bit program",
}
"""Why a user stack is not whole, for the user."""


@dataclasses.dataclass(frozen=True, slots=True)
class RawWaker:
    """Who ended a wait.

    Attributes:
        context: What it is; the rest is empty unless it is a task or an interrupt.
        task: The thread, as at the wakeup.
        space: Where its user addresses belong.
        user: As in :class:`RawSample`.
        kernel: The same in the kernel.
        lost: A stack was there and could not be kept.
        bare: The stack only serves to tell which interrupt it was.
        end: Why the user stack ends where it does.
        guessed: Part of the user stack was walked along frame pointers.
    """

    context: Context
    task: Task | None = None
    space: AddressSpace | None = None
    user: tuple[AbsoluteAddress, ...] = ()
    kernel: tuple[AbsoluteAddress, ...] = ()
    lost: bool = False
    bare: bool = False
    end: StackEnd = StackEnd.UNTOLD
    guessed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RawSample:
    """One distinct pair of stacks and its weight.

    Attributes:
        task: Who ran it.
        space: Where the user addresses belong; None when the process was never seen.
        user: Return addresses, leaf first; the first is exact. Empty when there is none. An
            instruction that a signal interrupted is given as if it were a call: its address + 1.
        kernel: The same in the kernel.
        lost: A stack was there and could not be kept.
        value: In the unit of the profile.
        waits: How the wait went, from :data:`bpflame.profile.WAITS`; empty for what is no wait.
        wakers: Who ended the wait, who ended that one's own wait, and so on.
        end: Why the user stack ends where it does.
        guessed: Part of the user stack was walked along frame pointers.
    """

    task: Task
    space: AddressSpace | None
    user: tuple[AbsoluteAddress, ...]
    kernel: tuple[AbsoluteAddress, ...]
    lost: bool
    value: int
    waits: tuple[str, ...] = ()
    wakers: tuple[RawWaker, ...] = ()
    end: StackEnd = StackEnd.UNTOLD
    guessed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RawProfile:
    """A finished recording.

    Attributes:
        kind: As in :class:`bpflame.profile.Profile`.
        unit: The same.
        samples: In no particular order.
        files: Open descriptors of mapped files, for reading with pread; the recorder owns them.
        kallsyms: /proc/kallsyms as it was at the end of the recording; empty if not needed.
        modules: /proc/modules, likewise.
        meta: Where the recording comes from, with its counters.
    """

    kind: str
    unit: str
    samples: tuple[RawSample, ...]
    files: Dict[FileKey, int]
    kallsyms: bytes
    modules: bytes
    meta: Metadata
