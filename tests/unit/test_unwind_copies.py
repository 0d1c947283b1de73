"""Stacks that the programs hand over: from their C code through the ring to Python."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpflame.bpf.unwind import copies as copies_module
from bpflame.bpf.unwind.copies import Copies, Copy, Place
from bpflame.raw import StackEnd
from tests.unit import walk_harness

STACK = 0x7FFD00000000
LOST = 1
PAGE = 4096
(_PAGES,) = walk_harness.values(["copies.h"], ["COPY_PAGES"])
MOST = _PAGES * PAGE
LEAF = Place(0x401000, STACK, 0x22, 0x33, 0x44, exact=True)


class Ring:
    """A ring without BPF, with programs at one end and :class:`Copies` at the other.

    Attributes:
        reader: What reads it.
    """

    def __init__(self, size: int) -> None:
        self._lib = walk_harness.compiled("copy_harness.c")
        self._lib.run_copy.restype = ctypes.c_uint64
        self._lib.begin_record.restype = ctypes.c_void_p
        self._fd = os.memfd_create("ring", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, 2 * PAGE + 2 * size)
        self._memory = mmap.mmap(self._fd, 0)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._lib.set_ring(ctypes.c_void_p(address), ctypes.c_uint64(size))
        with mock.patch.object(copies_module, "BpfMap", return_value=self):
            self.reader = Copies(self)

    def map_fd(self, name: str) -> int:
        return {"copies": self._fd, "copy_budget": -1}[name]

    def update(self, key: bytes, value: bytes) -> None:
        """What is written to the budget."""
        assert key == bytes(4)
        self._lib.set_budget(ctypes.c_int64(int.from_bytes(value, "little", signed=True)))

    def copy(
        self, leaf: Place, memory: tuple[tuple[int, bytes], ...], pid: int = 7, born: int = 1 << 40
    ) -> int:
        """What a program does; the id of the stack."""
        registers = (ctypes.c_uint64 * 5)(*leaf[:5])
        parts = walk_harness.memory_of(memory)
        why = int(StackEnd.NO_MAPPING)
        more = (len(parts), pid, ctypes.c_uint64(born), why)
        return int(self._lib.run_copy(registers, int(leaf.exact), parts, *more))

    @contextlib.contextmanager
    def unfinished(self, size: int) -> Iterator[None]:
        """A record that a program has begun and gives up in the end."""
        record = self._lib.begin_record(ctypes.c_uint64(size))
        yield
        self._lib.discard_record(ctypes.c_void_p(record))

    def close(self) -> None:
        self.reader.close()
        self._lib.set_ring(None, ctypes.c_uint64(0))
        self._memory.close()
        os.close(self._fd)


@contextlib.contextmanager
def ring(size: int = 1 << 17) -> Iterator[Ring]:
    with (
        mock.patch.object(copies_module, "_SIZE", size),
        contextlib.closing(Ring(size)) as made,
    ):
        yield made


def content(size: int, salt: int = 0) -> bytes:
    return bytes((n // 8 * 31 + n + salt) % 251 for n in range(size))


def whole(copy: Copy) -> bytes:
    """Its memory, which has no holes."""
    at = copy.leaf.sp
    for start, data in copy.pages:
        assert start == at
        at += len(data)
    return b"".join(data for _, data in copy.pages)


@pytest.mark.parametrize("sp", [STACK, STACK + 8, STACK + 4088, STACK + 4095])
def test_a_copy_comes_as_it_was(sp: int) -> None:
    memory = content(3 * PAGE)
    with ring() as made:
        leaf = LEAF._replace(sp=sp)
        number = made.copy(leaf, ((STACK, memory),))
        (copy,) = made.reader.read()
        assert (copy.number, copy.pid, copy.born) == (number, 7, 1 << 40)
        assert copy.leaf == leaf
        assert copy.end is StackEnd.NO_MAPPING
        assert whole(copy) == memory[sp - STACK :]
        assert copy.size == 3 * PAGE - (sp - STACK)
        assert made.reader.read() == []


def test_no_more_is_copied_than_so_many_pages() -> None:
    memory = content(MOST + 8 * PAGE)
    with ring() as made:
        made.copy(LEAF, ((STACK, memory),))
        (copy,) = made.reader.read()
        assert whole(copy) == memory[:MOST]


def test_pages_that_were_never_written_to_are_left_out() -> None:
    """Of the stack's end the program knows only that so many pages in a row are not there."""
    (missing,) = walk_harness.values(["copies.h"], ["COPY_MISSING"])
    first, second = content(PAGE, 1), content(PAGE, 2)
    with ring() as made:
        for hole in range(missing + 2):
            after = STACK + PAGE * (hole + 1)
            made.copy(LEAF, ((STACK, first), (after, second)))
            (copy,) = made.reader.read()
            found = ((STACK, first), (after, second))
            assert copy.pages == found[: 2 if hole <= missing else 1]
        every_other = tuple((STACK + 2 * PAGE * n, content(PAGE, n)) for n in range(6))
        made.copy(LEAF, every_other)
        (copy,) = made.reader.read()
        assert copy.pages == every_other


def test_registers_come_without_memory_too() -> None:
    with ring() as made:
        made.copy(LEAF, ())
        (copy,) = made.reader.read()
        assert (copy.leaf, copy.pages) == (LEAF, ())
        assert copy.word(STACK) is None


def test_words_are_where_they_were() -> None:
    memory = content(2 * PAGE)
    with ring() as made:
        made.copy(LEAF._replace(sp=STACK + 64), ((STACK, memory),))
        (copy,) = made.reader.read()
        for at in (64, 65, PAGE - 8, PAGE, 2 * PAGE - 8):
            assert copy.word(STACK + at) == int.from_bytes(memory[at : at + 8], "little")
        for at in (0, 63, 2 * PAGE - 7, 2 * PAGE):
            assert copy.word(STACK + at) is None


STACKS = st.tuples(st.integers(0, 3), st.integers(0, PAGE - 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(STACKS, max_size=5), min_size=1, max_size=12))
def test_copies_come_in_order_around_the_ring(rounds: list[list[tuple[int, int]]]) -> None:
    with ring(1 << 15) as made:
        for salt, stacks in enumerate(rounds):
            sent = []
            for n, (pages, offset) in enumerate(stacks):
                memory = content(pages * PAGE, salt + n)
                leaf = LEAF._replace(sp=STACK + offset)
                number = made.copy(leaf, ((STACK, memory),), pid=n + 1)
                if number != LOST:
                    sent.append((number, n + 1, leaf, memory[offset:]))
            copies = made.reader.read()
            assert [(copy.number, copy.pid, copy.leaf, whole(copy)) for copy in copies] == sent
        made.copy(LEAF, ())
        assert len(made.reader.read()) == 1


def test_a_full_ring_loses_stacks_and_goes_on() -> None:
    memory = content(8 * PAGE)
    with ring(1 << 15) as made:
        assert made.copy(LEAF, ((STACK, memory),)) == LOST
        assert made.reader.read() == []
        for _ in range(3):
            made.copy(LEAF, ((STACK, memory[:PAGE]),))
            (copy,) = made.reader.read()
            assert whole(copy) == memory[:PAGE]


def test_stacks_whose_end_was_lost_do_not_pile_up() -> None:
    memory = content(8 * PAGE)
    with ring(1 << 15) as made, mock.patch.object(copies_module, "_ORPHANS", 3):
        for _ in range(10):
            assert made.copy(LEAF, ((STACK, memory),)) == LOST
            made.reader.read()
        assert len(made.reader._pages) <= 3


def test_a_record_that_is_being_written_is_waited_for() -> None:
    with ring() as made:
        made.copy(LEAF, (), pid=1)
        with made.unfinished(100):
            made.copy(LEAF, (), pid=2)
            assert [copy.pid for copy in made.reader.read()] == [1]
            assert made.reader.read() == []
        assert [copy.pid for copy in made.reader.read()] == [2]


def test_there_are_no_more_copies_than_are_read() -> None:
    with ring(1 << 24) as made:
        numbers = [made.copy(LEAF, ()) for _ in range(copies_module._ROUND + 5)]
        assert numbers.count(LOST) == 5
        assert numbers[-5:] == [LOST] * 5
        assert len(made.reader.read()) == copies_module._ROUND
        assert made.copy(LEAF, ()) != LOST
