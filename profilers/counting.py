"""The sums and stacks that BPF programs make, drained while they go on.

Mirrors ``bpf/programs/count.h``, ``process.h`` and ``stack.h``: the layouts below are theirs.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import os
import platform
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from bpflame.bpf.counters import COUNTERS, NEW_COUNTS, NEW_STACKS
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap, PerCpuCounters
from bpflame.bpf.unwind.copies import Copy
from bpflame.profile import Task
from bpflame.raw import AbsoluteAddress, AddressSpace, RawSample, StackEnd

MAX_DEPTH = 127
STACK_NONE = 0
STACK_LOST = 1

WHO = struct.Struct("<QQII16s")
"""``struct who``: born, cgroup, pid, tid, comm."""

_PID_IN_WHO = 16
_STACK = struct.Struct("<IHH")  # struct stack, without the addresses
_ID = struct.Struct("<Q")

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1
_GRACE = 0.02  # seconds; far longer than a BPF program runs


def stack_depth(user: int) -> int:
    """How many addresses the maps have room for; kernel stacks have up to ``MAX_DEPTH``.

    Args:
        user: How many frames a user stack may have.
    """
    return max(MAX_DEPTH, user)


def depth_defines(user: int) -> dict[str, int | str | None]:
    """The compile-time constants for it."""
    return {"MAX_DEPTH": stack_depth(user), "USER_DEPTH": user}


class Who(NamedTuple):
    """``struct who``: whose stacks they are."""

    born: int
    cgroup: int
    pid: int
    tid: int
    comm: bytes

    @classmethod
    def parse(cls, data: bytes) -> Who:
        """From the bytes of one."""
        return cls._make(WHO.unpack(data))

    def task(self, groups: Mapping[int, str]) -> Task:
        """As the core type.

        Args:
            groups: Paths of cgroups by id.
        """
        comm = os.fsdecode(self.comm.split(b"\0", 1)[0])
        cgroup = groups.get(self.cgroup, f"cgroup {self.cgroup}") if self.cgroup else ""
        return Task(self.pid, self.tid, comm, cgroup)


class Spaces(Protocol):
    """Who finds the address space of a program image."""

    def find(self, pid: int, born: int) -> AddressSpace | None:
        """The image that ``pid`` ran since ``born``."""


class Kept:
    """Content that a program keeps under a 64-bit id, drained from its map.

    A program may find an entry that is taken out at this moment: then it is here already, and the
    id stays good. So one map serves, without turns.

    Args:
        program: A loaded program.
        name: The map.
        size: Bytes of the content.
        entries: Room of the map.
        counter: Counts the entries that the program makes.
    """

    def __init__(self, program: Program, name: str, size: int, entries: int, counter: str) -> None:
        self._map = BpfMap(program.map_fd(name), _ID.size, size)
        self._size = size
        self.entries = entries
        self.counter = counter
        self.content: dict[int, bytes] = {}

    def take(self) -> list[bytes]:
        """Take everything out of the map; returns the contents that came."""
        new = []
        for keys, values in self._map.drain():
            for i, (number,) in enumerate(_ID.iter_unpack(keys)):
                new.append(values[i * self._size : (i + 1) * self._size])
                self.content[number] = self._stored(new[-1])
        return new

    def _stored(self, content: bytes) -> bytes:
        return content


class Stacks(Kept):
    """The stacks, by id.

    Args:
        program: A loaded program that includes ``stack.h``.
        entries: Room of the map.
        depth: Most addresses of a stack.
    """

    def __init__(self, program: Program, entries: int, depth: int = MAX_DEPTH) -> None:
        super().__init__(program, "stacks", _STACK.size + 8 * depth, entries, NEW_STACKS)
        self._unpacked: dict[int, tuple[AbsoluteAddress, ...]] = {}

    def _stored(self, content: bytes) -> bytes:
        return content[: _STACK.size + 8 * _STACK.unpack_from(content)[0]]

    def put(
        self,
        number: int,
        ips: Sequence[int],
        end: StackEnd = StackEnd.UNTOLD,
        guessed: bool = False,
    ) -> None:
        """Keep a stack that no program has unwound.

        Args:
            number: Its id.
            ips: Addresses, leaf first.
            end: Why it ends where it does.
            guessed: Part of it was walked along frame pointers.
        """
        self.content[number] = stack_content(ips, end, guessed)
        self._unpacked.pop(number, None)

    def end(self, number: int) -> tuple[StackEnd, bool]:
        """Why a stack ends where it does, and whether some frames are by frame pointer."""
        data = self.content.get(number)
        if data is None:
            return StackEnd.UNTOLD, False
        _, end, guessed = _STACK.unpack_from(data)
        return StackEnd(end), bool(guessed)

    def ips(self, number: int) -> tuple[AbsoluteAddress, ...]:
        """The addresses of a stack, leaf first; empty for none or a lost one."""
        if number not in self._unpacked:  # each once: many keys share a stack
            data = self.content.get(number)
            if data is None:
                return ()
            self._unpacked[number] = struct.unpack_from(
                f"<{len(data) // 8 - 1}Q", data, _STACK.size
            )
        return self._unpacked[number]

    def peek(self, number: int) -> tuple[AbsoluteAddress, ...]:
        """The same, of a stack that may still be in its map."""
        content = None
        if number not in self.content:
            content = self._map.lookup(_ID.pack(number))
        if content is not None:
            self.content[number] = self._stored(content)
        return self.ips(number)

    def lost(self, number: int) -> bool:
        """Whether the stack was there but could not be kept."""
        return number == STACK_LOST or (number != STACK_NONE and number not in self.content)


class Counts(abc.ABC):
    """The sums by key, in user space.

    Args:
        program: A loaded program that includes ``count.h`` and ``stack.h``.
        key_size: Bytes of its ``struct count_key``, which holds a ``struct who`` after two ids.
        sums: How many sums a key has.
        entries: Room of each map of counts.
        stack_entries: Room of the map of stacks.
        depth: Most addresses of a stack.

    Attributes:
        counters: The program's event counters.
        stacks: The stacks.
        sums: The sums by key.
        copies: Stacks of before the recording, still to be unwound.
    """

    def __init__(
        self,
        program: Program,
        key_size: int,
        sums: int,
        entries: int,
        stack_entries: int,
        depth: int = MAX_DEPTH,
    ) -> None:
        self.counters = PerCpuCounters(program.map_fd("counters"), COUNTERS)
        self.stacks = Stacks(program, stack_entries, depth)
        self.sums: dict[bytes, tuple[int, ...]] = {}
        self.copies: list[Copy] = []
        self._active = BpfMap(program.map_fd("active"), 4, 4)
        self._turn = 0
        self._values = struct.Struct(f"<{sums}Q")
        self._counts = [
            BpfMap(program.map_fd(name), key_size, self._values.size)
            for name in ("counts_even", "counts_odd")
        ]
        self._kept: list[Kept] = [self.stacks]
        self._room = {NEW_COUNTS: entries, NEW_STACKS: stack_entries}
        self._drained = dict.fromkeys(self._room, 0)

    def __len__(self) -> int:
        return len(self.sums)

    def pressed(self) -> bool:
        """Whether a map is a quarter full: time to drain."""
        return any(self._made(which) * 4 > room for which, room in self._room.items())

    def drain(self) -> set[int]:
        """Take everything out of the maps; returns the pids that came up."""
        self._drained = {which: self.counters.total(which) for which in self._room}
        idle = self._counts[self._turn]
        self._turn ^= 1
        self._active.update(bytes(4), self._turn.to_bytes(4, "little"))
        _wait_for_programs()
        pids = self._take_counts(idle)
        for kept in self._kept:
            pids |= self._pids_of(kept, kept.take())
        return pids

    def drain_last(self) -> set[int]:
        """As :meth:`drain`, when no program runs any more."""
        pids = self.drain()
        return pids | self._take_counts(self._counts[self._turn])

    @abc.abstractmethod
    def samples(
        self, spaces: Spaces, groups: Callable[[], Mapping[int, str]]
    ) -> Iterator[RawSample]:
        """Everything that was counted.

        Args:
            spaces: Finds the address spaces.
            groups: Gives the paths of cgroups by id, if there is need.
        """

    def extra(self) -> Mapping[str, int]:
        """More to account for than the program counts; after :meth:`samples`."""
        return {}

    def add(self, key: bytes, values: tuple[int, ...]) -> None:
        """Add to the sums of a key."""
        old = self.sums.get(key)
        self.sums[key] = (
            values if old is None else tuple(a + b for a, b in zip(old, values, strict=True))
        )

    def _keep(self, kept: Kept) -> Kept:
        """Drain another map along with the stacks."""
        self._kept.append(kept)
        self._room[kept.counter] = kept.entries
        self._drained[kept.counter] = 0
        return kept

    def _pids_of(self, kept: Kept, contents: list[bytes]) -> set[int]:
        """The pids in what came out of a map, for whoever has such."""
        return set()

    def _made(self, which: str) -> int:
        return self.counters.total(which) - self._drained[which]

    def _take_counts(self, counts: BpfMap) -> set[int]:
        pids, size = set(), counts.key_size
        for keys, values in counts.drain():
            for i, sums in enumerate(self._values.iter_unpack(values)):
                key = keys[i * size : (i + 1) * size]
                self.add(key, sums)
                pids.add(pid_in(key, 2 * _ID.size))
        return pids


def stack_content(
    ips: Sequence[int], end: StackEnd = StackEnd.UNTOLD, guessed: bool = False
) -> bytes:
    """A stack as the programs keep it, without the room that it does not need."""
    return _STACK.pack(len(ips), end, guessed) + struct.pack(f"<{len(ips)}Q", *ips)


def pid_in(data: bytes, who: int) -> int:
    """The pid of the ``struct who`` at an offset."""
    return int.from_bytes(data[who + _PID_IN_WHO : who + _PID_IN_WHO + 4], "little")


class StackCounts(Counts):
    """Sums by task and stacks: what ``cpu.bpf.c`` makes."""

    _KEY = struct.Struct(f"<QQ{WHO.size}s")

    def __init__(
        self, program: Program, entries: int, stack_entries: int, depth: int = MAX_DEPTH
    ) -> None:
        super().__init__(program, self._KEY.size, 1, entries, stack_entries, depth)

    def samples(
        self, spaces: Spaces, groups: Callable[[], Mapping[int, str]]
    ) -> Iterator[RawSample]:
        """One for each key."""
        for key, (value,) in self.sums.items():
            user, kernel, data = self._KEY.unpack(key)
            who = Who.parse(data)
            end, guessed = self.stacks.end(user)
            yield RawSample(
                who.task(groups() if who.cgroup else {}),
                spaces.find(who.pid, who.born),
                self.stacks.ips(user),
                self.stacks.ips(kernel),
                self.stacks.lost(user) or self.stacks.lost(kernel),
                value,
                end=end,
                guessed=guessed,
            )


def _wait_for_programs() -> None:
    """Return when every BPF program that ran on entry has ended: an RCU grace period.

    membarrier(2) waits for one, except on kernels with nohz_full; there, time has to do.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.suppress(OSError):
            if libc.syscall(number, _MEMBARRIER_GLOBAL, 0, 0) == 0:
                return
    time.sleep(_GRACE)
