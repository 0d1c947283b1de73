"""Stacks that the programs could not unwind, handed over with their registers.

Mirrors the second half of ``bpf/programs/unwind.h``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import struct
from typing import NamedTuple

from bpflame.bpf.load import Program, libbcc
from bpflame.errors import BpflameError

_HEAD = struct.Struct("<QII")
_PAGE_AT = struct.Struct("<Q")
_END = struct.Struct("<QQQQIIQII")
_COPY_PAGE = 0
_ORPHANS = 256  # stacks whose end is still to come: one for each CPU, or lost


class Place(NamedTuple):
    """The registers of a frame: ``struct place``."""

    ip: int
    sp: int
    bp: int
    r10: int = 0
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
    """

    number: int
    pid: int
    born: int
    leaf: Place
    pages: tuple[tuple[int, bytes], ...]

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(len(data) for _, data in self.pages)

    def word(self, at: int) -> int | None:
        """A word of the stack; None where it was not copied."""
        for start, data in self.pages:
            offset = at - start
            if 0 <= offset <= len(data) - 8:
                return int.from_bytes(data[offset : offset + 8], "little")
        return None


class Copies:
    """Reads the ring that the programs write to.

    Args:
        program: A loaded program that includes ``unwind.h``.

    Attributes:
        fd: Readable when a stack came.
    """

    def __init__(self, program: Program) -> None:
        self.fd = program.map_fd("copies")
        self._lib = libbcc()
        self._pages: dict[int, list[tuple[int, bytes]]] = {}
        self._whole: list[Copy] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        self._callback = kind(self._take)  # kept: the ring has only its address
        self._ring = self._lib.bpf_new_ringbuf(
            self.fd, ctypes.cast(self._callback, self._lib.bpf_new_ringbuf.argtypes[1]), None
        )
        if not self._ring:
            raise BpflameError("cannot read the ring buffer of a BPF program")

    def read(self) -> list[Copy]:
        """What came since the last time."""
        self._lib.bpf_consume_ringbuf(self._ring)
        whole, self._whole = self._whole, []
        while len(self._pages) > _ORPHANS:  # their ends found no room
            del self._pages[next(iter(self._pages))]
        return whole

    def close(self) -> None:
        """Let go of the ring."""
        if self._ring:
            self._lib.bpf_free_ringbuf(self._ring)
            self._ring = None

    def _take(self, context: int, data: int, size: int) -> int:
        number, kind, length = _HEAD.unpack(ctypes.string_at(data, _HEAD.size))
        body = data + _HEAD.size
        if kind == _COPY_PAGE:
            (at,) = _PAGE_AT.unpack(ctypes.string_at(body, _PAGE_AT.size))
            content = ctypes.string_at(body + _PAGE_AT.size, length)
            self._pages.setdefault(number, []).append((at, content))
            return 0
        ip, sp, bp, r10, exact, _, born, pid, _ = _END.unpack(ctypes.string_at(body, _END.size))
        leaf = Place(ip, sp, bp, r10, bool(exact))
        pages = tuple(self._pages.pop(number, ()))
        self._whole.append(Copy(number, pid, born, leaf, pages))
        return 0
