"""Stacks that the programs could not unwind, handed over with their registers.

Mirrors ``bpf/programs/copies.h``. The ring is that of Documentation/bpf/ringbuf.rst, read where it
is mapped: libbpf would call back for each record, which in Python takes longer.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import struct
from typing import NamedTuple

from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.raw import StackEnd

RING_PAGES = 1 << 12
"""Bytes of the ring are that many times 4096, a power of two."""

_SIZE = 4096 * RING_PAGES
_HEADER = struct.Struct("<II")  # of a record: length and flags, page offset
_BUSY, _DISCARDED, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1

_HEAD = struct.Struct("<QII")
_PAGE = struct.Struct("<QIIQ")  # struct copy_page without the bytes
_END = struct.Struct("<QII5QIIQII")  # struct copy_end
_COPY_PAGE = 0
_ROUND = 512  # copies that may come until the ring is read again
_ORPHANS = 256  # stacks whose end is still to come: one for each CPU, or lost


class Place(NamedTuple):
    """The registers of a frame: ``struct place``."""

    ip: int
    sp: int
    bp: int
    r10: int = 0
    di: int = 0
    exact: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """A stack with the registers that go with it.

    Attributes:
        number: The id of the stack that comes of it.
        pid: Whose.
        born: Which of its program images.
        leaf: Its registers.
        pages: Memory from addresses on, as it was.
        end: Why the program could not unwind it.
    """

    number: int
    pid: int
    born: int
    leaf: Place
    pages: tuple[tuple[int, bytes], ...]
    end: StackEnd = StackEnd.NOT_READY

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(len(data) for _, data in self.pages)

    def word(self, at: int) -> int | None:
        """A word of the stack; None where it was not copied."""
        word = b""
        for start, data in self.pages:
            offset = at + len(word) - start
            if 0 <= offset < len(data):
                word += data[offset : offset + 8 - len(word)]
                if len(word) == 8:
                    return int.from_bytes(word, "little")
        return None


class Copies:
    """Reads the ring that the programs write to.

    Args:
        program: A loaded program that includes ``copies.h``.

    Attributes:
        fd: Readable when a stack came.
    """

    def __init__(self, program: Program) -> None:
        self.fd = program.map_fd("copies")
        self._budget = BpfMap(program.map_fd("copy_budget"), 4, 8)
        self._pages: dict[int, list[tuple[int, bytes]]] = {}
        self._consumer = mmap.mmap(self.fd, mmap.PAGESIZE)
        # The data is there twice, one after the other, so no record is torn at the end.
        self._producer = mmap.mmap(
            self.fd, mmap.PAGESIZE + 2 * _SIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self._position = 0
        self._allow()

    def read(self) -> list[Copy]:
        """What came since the last time."""
        whole: list[Copy] = []
        written = int.from_bytes(self._producer[:8], "little")
        while self._position < written:
            at = mmap.PAGESIZE + self._position % _SIZE
            length, _ = _HEADER.unpack_from(self._producer, at)
            if length & _BUSY:  # a program is at it
                break
            if not length & _DISCARDED:
                self._take(at + _HEADER.size, whole)
            self._position += _HEADER.size + (length & _LENGTH) + -length % 8
        # A ctypes access is one 8-byte store.
        consumer = ctypes.c_uint64.from_buffer(self._consumer)
        consumer.value = self._position
        del consumer  # or the mapping cannot be closed
        while len(self._pages) > _ORPHANS:  # their ends found no room
            del self._pages[next(iter(self._pages))]
        self._allow()
        return whole

    def close(self) -> None:
        """Let go of the ring."""
        self._consumer.close()
        self._producer.close()

    def _allow(self) -> None:
        self._budget.update(bytes(4), _ROUND.to_bytes(8, "little"))

    def _take(self, at: int, whole: list[Copy]) -> None:
        number, kind, length = _HEAD.unpack_from(self._producer, at)
        if kind == _COPY_PAGE:
            *_, address = _PAGE.unpack_from(self._producer, at)
            start = at + _PAGE.size
            content = self._producer[start : start + length]
            self._pages.setdefault(number, []).append((address, content))
            return
        fields = _END.unpack_from(self._producer, at)
        _, _, _, ip, sp, bp, r10, di, exact, _, born, pid, end = fields
        leaf = Place(ip, sp, bp, r10, di, bool(exact))
        pages = tuple(self._pages.pop(number, ()))
        whole.append(Copy(number, pid, born, leaf, pages, StackEnd(end)))
