"""The BPF maps that unwind tables lie in, without BPF: chunks are files in memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np

from bpflame.bpf.unwind import arena as arena_module
from bpflame.bpf.unwind.arena import CHUNK_WORDS, MAPPING, Arena
from tests.unit import walk_harness

_BYTES = 4 * CHUNK_WORDS


class FakeBpf:
    """A program with its maps, and what libbcc does.

    Attributes:
        updates: What was written to the maps, by descriptor; ``chunks`` and ``rules`` are small
            numbers that are no descriptors.
        refused: Let no more chunks be made.
    """

    CHUNKS, RULES = 1_000_001, 1_000_002

    def __init__(self) -> None:
        self.updates: dict[int, dict[bytes, bytes]] = {self.CHUNKS: {}, self.RULES: {}}
        self.refused = False
        self.mapped: list[mmap.mmap] = []
        self._first = self._memory()

    def map_fd(self, name: str) -> int:
        return {"chunks": self.CHUNKS, "rules": self.RULES, "first_chunk": self._first}[name]

    def map(self, fd: int, key_size: int, value_size: int) -> FakeMap:
        return FakeMap(self, fd, key_size, value_size)

    def bcc_create_map(
        self, kind: int, name: bytes, key: int, value: int, count: int, flags: int
    ) -> int:
        assert (kind, key, value, count, flags) == (2, 4, _BYTES, 1, 1 << 10)
        return -1 if self.refused else self._memory()

    def show(self, number: int, fd: int) -> None:
        """Let the C code see a chunk, as the map of maps does."""
        memory = mmap.mmap(fd, _BYTES)
        self.mapped.append(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        walk_harness.library().set_chunk(number, address)

    def close(self) -> None:
        os.close(self._first)
        for number, memory in enumerate(self.mapped):
            walk_harness.library().set_chunk(number, None)
            memory.close()

    @staticmethod
    def _memory() -> int:
        fd = os.memfd_create("chunk", os.MFD_CLOEXEC)
        os.ftruncate(fd, _BYTES)
        return fd


class FakeMap:
    """``BpfMap``: what is written is kept."""

    def __init__(self, bpf: FakeBpf, fd: int, key_size: int, value_size: int) -> None:
        self._bpf, self._fd, self._sizes = bpf, fd, (key_size, value_size)

    def update(self, key: bytes, value: bytes) -> None:
        assert (len(key), len(value)) == self._sizes
        self._bpf.updates[self._fd][key] = value
        if self._fd == FakeBpf.CHUNKS:
            self._bpf.show(int.from_bytes(key, "little"), int.from_bytes(value, "little"))


@contextlib.contextmanager
def fake_bpf() -> Iterator[FakeBpf]:
    """Where arenas can be made of the program that this gives."""
    bpf = FakeBpf()
    with (
        mock.patch.object(arena_module, "BpfMap", bpf.map),
        mock.patch.object(arena_module, "libbcc", return_value=bpf),
        contextlib.closing(bpf),
    ):
        yield bpf


@contextlib.contextmanager
def arena(most: int = 4) -> Iterator[Arena]:
    """An arena of up to four chunks, which the C code sees too."""
    with fake_bpf() as bpf, contextlib.closing(Arena(bpf, most)) as made:
        yield made


def leave(arena: Arena, words: int) -> None:
    """Take all of the first chunk but its last words (a multiple of 8)."""
    assert arena.take(CHUNK_WORDS - 8 - words, whole=True) == 8


def mapped(arena: Arena, records: Sequence[tuple[int, int, int, int, int]]) -> int:
    """Write the mappings of an address space, as of dtype ``MAPPING``; returns where."""
    rows = [(start, end, delta % 2**64, at, count) for start, end, delta, at, count in records]
    content = np.array(rows, MAPPING).view("<u4").reshape(-1)
    block = arena.take(len(content), whole=True)
    assert block is not None
    arena.write(block, content)
    return block
