"""Threads that are asleep: the program's records, the walk along frame pointers, and /proc."""

import ctypes
import mmap
import os
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.bpf.task_iterator import MAX_DEPTH, Thread, parse
from bpflame.errors import BpflameError
from bpflame.profilers import sleepers
from bpflame.profilers.sleepers import (
    Memory,
    ProcThreads,
    Sleepers,
    Way,
    stack_addresses,
    text_symbols,
    walk,
)

SCHEDULE, NANOSLEEP, READ, ENTRY = (0xFFFFFFFF81000000 + i for i in (0x10, 0x20, 0x30, 0x40))


def record(
    leaf: tuple[int, ...] = (),
    kernel: tuple[int, ...] = (),
    depth: int | None = None,
    flags: int = 0,
    cs: int = 0x33,
) -> bytes:
    """One record, as ``threads.bpf.c`` writes it."""
    depth = len(kernel) if depth is None else depth
    registers = (0x400123, 0x7FF0, 0x7FE0, 35)
    head = struct.pack("<4I5QIi16s", 12, 11, 1, flags, 99, *registers, cs, depth, b"a b\0x")
    return (
        head
        + struct.pack("<9Q", *leaf, *[0] * (9 - len(leaf)))
        + struct.pack(f"<{len(kernel)}Q", *kernel)
    )


def thread(**changes: object) -> Thread:
    """A thread that sleeps in user space at 0x400123."""
    sleeps = Thread(
        12, 11, b"a b", 1, False, 99, 0x400123, 0x7FF0, True, (), False, 0x7FE0, called=True
    )
    return sleeps._replace(**changes)


def test_records_follow_each_other_whatever_their_length() -> None:
    data = record((NANOSLEEP,), (NANOSLEEP, ENTRY)) + record() + record((READ,), (READ,), cs=0x23)
    assert list(parse(data)) == [
        thread(kernel=(NANOSLEEP, ENTRY), scheduler=True),
        thread(),
        thread(kernel=(READ,), scheduler=True, wide=False),
    ]
    assert list(parse(b"")) == []


def test_a_kernel_thread_is_told_by_its_flag() -> None:
    assert [t.kernel_thread for t in parse(record(flags=0x200040) + record(flags=0x40))] == [
        True,
        False,
    ]


def test_the_schedulers_frames_go_before_the_others() -> None:
    (found,) = parse(record((SCHEDULE, NANOSLEEP, READ), (READ, ENTRY)))
    assert found.kernel == (SCHEDULE, NANOSLEEP, READ, ENTRY)
    assert found.scheduler


def test_frames_that_do_not_fit_together_are_left_as_the_kernel_gave_them() -> None:
    (found,) = parse(record((SCHEDULE, NANOSLEEP, 0xDEAD00), (READ, ENTRY)))
    assert found.kernel == (READ, ENTRY)
    assert not found.scheduler


def test_a_stack_with_the_schedulers_frames_is_no_deeper_than_others() -> None:
    deep = (READ, *range(1, MAX_DEPTH))
    (found,) = parse(record((SCHEDULE, READ), deep))
    assert found.kernel == (SCHEDULE, *deep[:-1])


def test_a_kernel_stack_that_could_not_be_taken_is_none() -> None:
    first, second = parse(record(depth=-14) + record(kernel=(READ,)))
    assert first.kernel is None
    assert second.kernel == (READ,)


def reader(begin: int, data: bytes, size: int = 1 << 14) -> Callable[[int], bytes]:
    """Memory at ``begin``, given ``size`` bytes at a time."""
    return lambda at: data[at - begin :][:size] if 0 <= at - begin < len(data) else b""


def frames(begin: int, *pairs: tuple[int, int]) -> bytes:
    """Frames from ``begin`` on, one after the other: where the next is, as an index, and what."""
    return b"".join(struct.pack("<QQ", begin + 16 * i, address) for i, address in pairs)


def test_a_walk_goes_from_frame_to_frame_until_there_is_no_memory() -> None:
    memory = reader(0x7000, frames(0x7000, (1, 0xA), (2, 0xB), (99, 0xC)))
    assert walk(1, 0x7000, True, memory) == (1, 0xA, 0xB, 0xC)


def test_a_walk_needs_no_frame() -> None:
    assert walk(1, 0, True, lambda _: pytest.fail("read")) == (1,)
    assert walk(1, 0x7000, True, lambda _: b"") == (1,)
    assert walk(1, 0x7000, True, lambda _: bytes(15)) == (1,)


def test_the_end_of_a_chain_is_a_frame_that_leads_to_zero() -> None:
    data = frames(0x7000, (1, 0xA)) + struct.pack("<QQ", 0, 0xB) + frames(0x7000, (3, 0xC))
    assert walk(1, 0x7000, True, reader(0x7000, data)) == (1, 0xA, 0xB)


def test_a_walk_in_circles_ends_where_the_kernels_does() -> None:
    found = walk(1, 0x7000, True, reader(0x7000, frames(0x7000, (1, 0xA), (0, 0xB))))
    assert len(found) == MAX_DEPTH
    assert found[:4] == (1, 0xA, 0xB, 0xA)


def test_frames_may_lie_anywhere_as_for_the_kernel() -> None:
    data = b"\0" * 3 + struct.pack("<QQ", 0x7000 + 40, 0) + bytes(21) + struct.pack("<QQ", 0, 0xB)
    assert walk(1, 0x7003, True, reader(0x7000, data)) == (1, 0, 0xB)
    down = frames(0x7000, (99, 0xB), (0, 0xA))
    assert walk(1, 0x7010, True, reader(0x7000, down)) == (1, 0xA, 0xB)


def test_a_frame_across_the_end_of_what_was_read_is_read_again() -> None:
    reads = []
    data = frames(0x7000, (1, 0xA), (2, 0xB), (99, 0xC))

    def read(at: int) -> bytes:
        reads.append(at)
        return reader(0x7000, data, 24)(at)

    assert walk(1, 0x7000, True, read) == (1, 0xA, 0xB, 0xC)
    assert reads == [0x7000, 0x7010, 0x7020, 0x7000 + 99 * 16]


def test_frames_of_a_32_bit_program_are_of_four_byte_words() -> None:
    data = struct.pack("<IIII", 0x7008, 0xA, 0, 0xB)
    assert walk(1, 0x7000, False, reader(0x7000, data)) == (1, 0xA, 0xB)


@given(
    data=st.lists(
        st.one_of(st.integers(0x6FF0, 0x7200), st.integers(0, 2**64 - 1)), max_size=64
    ).map(lambda words: struct.pack(f"<{len(words)}Q", *words)),
    bp=st.one_of(st.integers(0x6FF0, 0x7200), st.integers(0, 2**64 - 1)),
    size=st.integers(16, 64),
    wide=st.booleans(),
)
def test_any_memory_is_walked_as_frame_by_frame(
    data: bytes, bp: int, size: int, wide: bool
) -> None:
    word, expected, at = (8 if wide else 4), [1], bp
    while at and len(expected) < MAX_DEPTH:
        frame = reader(0x7000, data, 2 * word)(at)
        if len(frame) < 2 * word:
            break
        expected.append(int.from_bytes(frame[word:], "little"))
        at = int.from_bytes(frame[:word], "little")
    assert walk(1, bp, wide, reader(0x7000, data, size)) == tuple(expected)


def test_memory_is_read_up_to_where_it_ends() -> None:
    page = mmap.PAGESIZE
    memory = Memory()
    with mmap.mmap(-1, 3 * page) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        mapped[:] = bytes(range(256)) * (3 * page // 256)
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        assert libc.mprotect(address + 2 * page, page, 0) == 0
        assert memory.read(os.getpid(), address + 16) == mapped[16 : 2 * page]
        assert memory.read(os.getpid(), address + 2 * page - 8) == mapped[2 * page - 8 : 2 * page]
        assert memory.read(os.getpid(), address + 2 * page) == b""
        assert libc.mprotect(address + 2 * page, page, 3) == 0
    assert memory.refused == 0


@pytest.mark.parametrize("address", [0, 1, 1 << 47, (1 << 63) - 1, 1 << 63, 0xFFFFFFFFFF600000])
def test_where_there_is_no_memory_nothing_is_read(address: int) -> None:
    memory = Memory()
    assert memory.read(os.getpid(), address) == b""
    assert memory.read(1 << 30, 0x1000) == b""
    assert memory.refused == 0


def test_stacks_of_proc_become_addresses() -> None:
    symbols = text_symbols(
        b"ffffffff81000000 T do_wait\n"
        b"ffffffff81000100 t do_wait.cold\n"
        b"ffffffff81000200 D data\n"
        b"ffffffffc0000000 t xfs_wait\t[xfs]\n"
        b"not a line\n"
    )
    text = (
        b"[<0>] xfs_wait+0x1f/0x20 [xfs]\n"
        b"[<0>] do_wait+0x53/0x120\n"
        b"[<0>] unknown+0x1/0x2\n"
        b"[<0>] xfs_wait+0x1/0x20\n"
        b"[<0>] 0xffffffffa0000000\n"
    )
    assert stack_addresses(text, symbols) == (0xFFFFFFFFC000001F, 0xFFFFFFFF81000053)
    assert stack_addresses(b"", symbols) == ()


def test_hidden_symbols_are_none() -> None:
    assert text_symbols(b"0000000000000000 T do_wait\n") == {}


class Scripted:
    """A source whose answers are given beforehand."""

    def __init__(self, *answers: list[Thread]) -> None:
        self.answers = list(answers)

    def read(self) -> list[Thread]:
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def scripted(monkeypatch: pytest.MonkeyPatch, *answers: list[Thread]) -> Sleepers:
    """Sleepers whose source gives the answers, and whose memory is one frame at 0x7FF0."""
    monkeypatch.setattr(sleepers, "TaskIterator", lambda user, kernel: Scripted(*answers))
    made = Sleepers(user=True, kernel=True)
    monkeypatch.setattr(
        made._memory, "read", lambda tid, at: reader(0x7FF0, frames(0x7FF0, (99, 0xA)))(at)
    )
    return made


def test_a_thread_that_ran_while_its_memory_was_read_loses_its_user_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [thread(tid=tid, kernel=(READ,)) for tid in (1, 2, 3)]
    after = [thread(tid=1), thread(tid=2, switches=100)]  # the third is gone, or on a CPU
    made = scripted(monkeypatch, before, after)
    found = made.read()
    assert [(s.tid, s.user, s.lost) for s in found] == [
        (1, (0x400123, 0xA), False),
        (2, (), True),
        (3, (), True),
    ]
    assert all(s.kernel == (READ,) for s in found)
    assert (made.torn, made.refused, made.bare) == (2, 0, 3)


def test_only_those_that_are_wanted_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [thread(tid=1), thread(tid=2, pid=5), thread(tid=3, pid=5, scheduler=True)]
    made = scripted(monkeypatch, threads, threads)
    found = made.read(lambda pid, tid: pid == 5 and tid != 3)
    assert [s.tid for s in found] == [2]
    assert made.torn == made.bare == 0


def test_who_has_no_user_space_has_no_user_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [thread(kernel_thread=True), thread(tid=2, ip=0)]
    made = scripted(monkeypatch, threads)  # and is asked once: no memory was read
    assert [(s.user, s.lost) for s in made.read()] == [((), False)] * 2


def test_what_could_not_be_taken_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [thread(ip=None), thread(tid=2, bp=0, kernel=None)]
    made = scripted(monkeypatch, threads)
    assert [(s.user, s.kernel, s.lost) for s in made.read()] == [
        ((), (), True),
        ((0x400123,), (), True),
    ]


def test_without_an_iterator_proc_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(user: bool, kernel: bool) -> None:
        raise BpflameError("no iterator here")

    monkeypatch.setattr(sleepers, "TaskIterator", refuse)
    made = Sleepers(user=False, kernel=False)
    assert made.way is Way.PROCFS
    assert made.refusal is not None
    assert made.refusal.message == "no iterator here"
    assert isinstance(made._source, ProcThreads)
    made.read()
    made.close()
