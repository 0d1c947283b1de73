"""The kernel's own record of who mapped what: fork, exec, exit and mmap, on every CPU.

The same records that ``perf record`` keeps, read from the same rings. They tell of a process that
lives for a millisecond as surely as of one that stays, which reading /proc cannot.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import NamedTuple

from bpflame.bpf.perf_event import mapping_attr, open_event

_RECORD_MMAP2 = 10
_RECORD_COMM = 3
_RECORD_EXIT = 4
_RECORD_FORK = 7
_RECORD_LOST = 2
_MISC_COMM_EXEC = 1 << 13
_MISC_BUILD_ID = 1 << 14

_DATA_HEAD = 1024  # its offset in struct perf_event_mmap_page; data_tail follows
_TRAILER = 8  # sample_id: the time

_HEADER = struct.Struct("<IHH")
_TASK = struct.Struct("<IIIIQ")
_MAP = struct.Struct("<IIQQQ")
_INODE = struct.Struct("<IIQQ")


class Mapped(NamedTuple):
    """An executable mapping was made. Addresses and ``offset`` in bytes."""

    time: int
    pid: int
    start: int
    end: int
    offset: int
    inode: int
    build_id: bytes
    path: str


class Forked(NamedTuple):
    """A process was made, with a copy of its parent's mappings."""

    time: int
    pid: int
    parent: int


class Executed(NamedTuple):
    """A process runs a new program: its mappings are gone, new ones follow."""

    time: int
    pid: int


class Exited(NamedTuple):
    """A process has ended (its first thread has)."""

    time: int
    pid: int


Event = Mapped | Forked | Executed | Exited


class MappingRings:
    """One ring for each CPU.

    Args:
        cpus: CPUs to watch: all that run tasks, whichever are sampled.
        size: Bytes of each ring, a power of two.

    Attributes:
        lost: Records that found a ring full, so far.

    Raises:
        OSError: The kernel refused the first event.
    """

    def __init__(self, cpus: tuple[int, ...], size: int = 1 << 19) -> None:
        self.lost = 0
        self._size = size
        self._rings: dict[int, tuple[int, mmap.mmap]] = {}
        self._held: list[Event] = []
        self._build_ids = True
        for cpu in cpus:
            self.watch(cpu)

    def watch(self, cpu: int) -> None:
        """Start (or, after the CPU was offline, start again) to watch a CPU."""
        self._close(cpu)
        try:
            fd = open_event(mapping_attr(self._build_ids), cpu)
        except OSError as error:
            if error.errno == errno.ENODEV:  # offline by now
                return
            if error.errno != errno.EINVAL or not self._build_ids:
                raise
            self._build_ids = False  # before Linux 5.12
            fd = open_event(mapping_attr(False), cpu)
        ring = mmap.mmap(fd, mmap.PAGESIZE + self._size)
        self._rings[cpu] = (fd, ring)

    @property
    def fds(self) -> list[int]:
        """Readable when something happened."""
        return [fd for fd, _ in self._rings.values()]

    def read(self, until: int) -> list[Event]:
        """Events up to ``until`` (CLOCK_MONOTONIC, ns) in the order of time, each once.

        Rings are read one after the other, so what is younger than ``until`` is held back: an
        earlier event could still be in a ring that was read before.
        """
        self.hold()
        events = self._held
        events.sort(key=lambda event: event.time)
        split = len(events)
        while split and events[split - 1].time > until:
            split -= 1
        self._held = events[split:]
        return events[:split]

    def hold(self) -> None:
        """Empty the rings, and keep what was in them for the next :meth:`read`."""
        for _, ring in self._rings.values():
            self._parse(self._take(ring), self._held)

    def close(self) -> None:
        """Stop watching."""
        for cpu in list(self._rings):
            self._close(cpu)

    def _close(self, cpu: int) -> None:
        if cpu in self._rings:
            fd, ring = self._rings.pop(cpu)
            self._parse(self._take(ring), self._held)
            ring.close()
            os.close(fd)

    def _take(self, ring: mmap.mmap) -> bytes:
        # A ctypes access is one 8-byte load or store; struct would copy byte by byte.
        control = (ctypes.c_uint64 * 2).from_buffer(ring, _DATA_HEAD)
        head, tail = control[0], control[1]
        begin, end = tail % self._size, head % self._size
        base = mmap.PAGESIZE
        if head - tail and begin >= end:
            data = ring[base + begin : base + self._size] + ring[base : base + end]
        else:
            data = ring[base + begin : base + end]
        control[1] = head
        del control  # or the mapping cannot be closed
        return data

    def _parse(self, data: bytes, events: list[Event]) -> None:
        position = 0
        while position < len(data):
            kind, misc, size = _HEADER.unpack_from(data, position)
            body = position + _HEADER.size
            position += size
            (time,) = struct.unpack_from("<Q", data, position - _TRAILER)
            if kind == _RECORD_MMAP2:
                events.append(_mapped(data, body, position, misc, time))
            elif kind in (_RECORD_FORK, _RECORD_EXIT):
                pid, parent, tid, _, _ = _TASK.unpack_from(data, body)
                if pid == tid and kind == _RECORD_EXIT:
                    events.append(Exited(time, pid))
                elif pid == tid and pid != parent:
                    events.append(Forked(time, pid, parent))
            elif kind == _RECORD_COMM and misc & _MISC_COMM_EXEC:
                events.append(Executed(time, struct.unpack_from("<I", data, body)[0]))
            elif kind == _RECORD_LOST:
                self.lost += struct.unpack_from("<QQ", data, body)[1]


def _mapped(data: bytes, body: int, end: int, misc: int, time: int) -> Mapped:
    pid, _, start, length, offset = _MAP.unpack_from(data, body)
    identity = body + _MAP.size
    inode, build_id = 0, b""
    if misc & _MISC_BUILD_ID:
        build_id = data[identity + 4 : identity + 4 + min(data[identity], 20)]
    else:
        _, _, inode, _ = _INODE.unpack_from(data, identity)
    name = identity + _INODE.size + 8  # protection and flags
    path = data[name : data.index(b"\0", name, end)]
    return Mapped(time, pid, start, start + length, offset, inode, build_id, os.fsdecode(path))
