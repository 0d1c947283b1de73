"""The sums and stacks that BPF programs make, drained while they go on.

Mirrors ``bpf/programs/count.h`` and ``stack.h``: the layouts below are theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from bpflame.bpf.counters import COUNTERS, NEW_COUNTS, NEW_STACKS
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap, PerCpuCounters
from bpflame.raw import AbsoluteAddress

MAX_DEPTH = 127
STACK_NONE = 0
STACK_LOST = 1

_KEY = struct.Struct("<QQQQII16s")
_STACK_SIZE = 8 * (1 + MAX_DEPTH)
_SUM = struct.Struct("<Q")

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1
_GRACE = 0.02  # seconds; far longer than a BPF program runs


class CountKey(NamedTuple):
    """``struct count_key``: whose stacks, and which."""

    user: int
    kernel: int
    born: int
    cgroup: int
    pid: int
    tid: int
    comm: bytes


class StackCounts:
    """Everything counted so far, in user space.

    Args:
        program: A loaded program that includes ``count.h`` and ``stack.h``.
        count_entries: Room of each map of counts.
        stack_entries: Room of the map of stacks.

    Attributes:
        counters: The program's event counters.
    """

    def __init__(self, program: Program, count_entries: int, stack_entries: int) -> None:
        self.counters = PerCpuCounters(program.map_fd("counters"), COUNTERS)
        self._active = BpfMap(program.map_fd("active"), 4, 4)
        self._turn = 0
        self._counts = [
            BpfMap(program.map_fd(name), _KEY.size, _SUM.size)
            for name in ("counts_even", "counts_odd")
        ]
        self._stacks = BpfMap(program.map_fd("stacks"), 8, _STACK_SIZE)
        self._room = {NEW_COUNTS: count_entries, NEW_STACKS: stack_entries}
        self._drained = {NEW_COUNTS: 0, NEW_STACKS: 0}
        self._sums: dict[bytes, int] = {}
        self._ips: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def items(self) -> Iterator[tuple[CountKey, int]]:
        """All keys and their sums."""
        for key, value in self._sums.items():
            yield CountKey._make(_KEY.unpack(key)), value

    def stack(self, stack_id: int) -> tuple[AbsoluteAddress, ...]:
        """The addresses of a stack, leaf first; empty for none or a lost one."""
        data = self._ips.get(stack_id, b"")
        return struct.unpack(f"<{len(data) // 8}Q", data)

    def lost(self, stack_id: int) -> bool:
        """Whether the stack was there but could not be kept."""
        return stack_id == STACK_LOST or (stack_id != STACK_NONE and stack_id not in self._ips)

    def pressed(self) -> bool:
        """Whether a map is a quarter full: time to drain."""
        return any(self._made(which) * 4 > room for which, room in self._room.items())

    def drain(self) -> set[int]:
        """Take everything out of the maps; returns the pids that had samples."""
        self._drained = {which: self.counters.total(which) for which in self._room}
        idle = self._counts[self._turn]
        self._turn ^= 1
        self._active.update(bytes(4), self._turn.to_bytes(4, "little"))
        _wait_for_programs()
        pids = self._take_counts(idle)
        self._take_stacks()
        return pids

    def drain_last(self) -> set[int]:
        """As :meth:`drain`, when no program runs any more."""
        pids = self.drain()
        return pids | self._take_counts(self._counts[self._turn])

    def _made(self, which: str) -> int:
        return self.counters.total(which) - self._drained[which]

    def _take_counts(self, counts: BpfMap) -> set[int]:
        pids = set()
        for keys, values in counts.drain():
            for i, (value,) in enumerate(_SUM.iter_unpack(values)):
                key = keys[i * _KEY.size : (i + 1) * _KEY.size]
                self._sums[key] = self._sums.get(key, 0) + value
                pids.add(int.from_bytes(key[32:36], "little"))
        return pids

    def _take_stacks(self) -> None:
        # A program may find a stack that is taken out at this moment: then it is here already,
        # and the id stays good. So one map serves, without turns.
        for keys, values in self._stacks.drain():
            for i, (stack_id,) in enumerate(_SUM.iter_unpack(keys)):
                begin = i * _STACK_SIZE
                depth = int.from_bytes(values[begin : begin + 8], "little")
                self._ips[stack_id] = values[begin + 8 : begin + 8 * (1 + depth)]


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
