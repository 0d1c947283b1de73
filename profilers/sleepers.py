"""The threads that are asleep at a moment, and where.

A recording of what happens at context switches sees no thread that slept before it began. Kernel
stacks and registers come from a BPF task iterator, user stacks from the sleeping thread's memory.

Where the kernel has no such iterator, /proc has to do. It tells where a thread left user space, not
how it came there; and not which of the runnable threads are on a CPU, so these are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import errno
import functools
import mmap
import os
import re
import struct
from collections.abc import Callable
from collections.abc import Mapping as Dict
from pathlib import Path

from bpflame.bpf.task_iterator import KERNEL_THREAD, MAX_DEPTH, TaskIterator, Thread
from bpflame.bpf.unwind.copies import Place
from bpflame.errors import BpflameError
from bpflame.profilers.procfs import processes
from bpflame.raw import AbsoluteAddress

_COPY_BYTES = 1 << 20  # of a stack: as far as it goes, if it is not absurdly deep
_PAGES = 4  # of memory, read at a time: most stacks are less deep
_USER_END = 1 << 63  # all that is above is the kernel's, or the page of vsyscalls

_WIDE, _NARROW = struct.Struct("<QQ"), struct.Struct("<II")  # the next frame, the return address

# task_state_array in fs/proc/array.c. Not R, which may be on a CPU, and not the dead X and Z.
_STATES = {b"S": 0x1, b"D": 0x2, b"T": 0x4, b"t": 0x8, b"P": 0x40, b"I": 0x402}
_FRAME = re.compile(rb"^\[<0>\] (\S+)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\S+)\])?$", re.MULTILINE)
_SYMBOL = re.compile(rb"^([0-9a-f]+) [tTwW] (\S+)(?:\t\[(\S+)\])?$", re.MULTILINE)
_SWITCHES = re.compile(rb"^(?:non)?voluntary_ctxt_switches:\t(\d+)$", re.MULTILINE)


class Way(enum.Enum):
    """How the threads were found."""

    ITERATOR = "task iterator"
    """By BPF: stacks as the recording itself takes them."""
    PROCFS = "/proc"
    """Without the scheduler's kernel frames; of user space, the leaf alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sleeper:
    """A thread that was not on a CPU.

    Attributes:
        tid: The kernel's pid.
        pid: The kernel's tgid.
        comm: Its name.
        state: ``task_struct.__state``; 0 for one that waits for a CPU.
        kernel_thread: It has no user space.
        switches: How often it left a CPU before: another number means that it ran since.
        user: Return addresses, leaf first; the first is exact. Empty when there is none.
        kernel: The same in the kernel.
        lost: A stack was there and could not be kept.
        place: The registers of user space, where the stack is still to be unwound ...
        pages: ... and its memory, from addresses on.
    """

    tid: int
    pid: int
    comm: bytes
    state: int
    kernel_thread: bool
    switches: int
    user: tuple[AbsoluteAddress, ...]
    kernel: tuple[AbsoluteAddress, ...]
    lost: bool
    place: Place | None = None
    pages: tuple[tuple[int, bytes], ...] = ()


class Sleepers:
    """Finds the threads that are not on a CPU. Making it is the slow part.

    Args:
        user: Take user stacks.
        kernel: Take kernel stacks.
        copy: Leave user stacks to be unwound later: copy them.

    Attributes:
        way: How they are found.
        refusal: Why not by the task iterator; None if by it.
        torn: User stacks that the last :meth:`read` lost, since the thread ran meanwhile.
        refused: User stacks that it cut, since the memory was not to be read.
        bare: Kernel stacks without the scheduler's frames, which a stack at sched_switch has.
    """

    def __init__(self, user: bool, kernel: bool, copy: bool = False) -> None:
        self.way = Way.ITERATOR
        self._copy = copy
        self.refusal: BpflameError | None = None
        self.torn = self.refused = self.bare = 0
        self._user = user
        self._memory = Memory()
        self._source: TaskIterator | ProcThreads
        try:
            self._source = TaskIterator(user, kernel)
        except BpflameError as error:
            self.way, self.refusal = Way.PROCFS, error
            self._source = ProcThreads(user, kernel)

    def read(self, wanted: Callable[[int, int], bool] | None = None) -> list[Sleeper]:
        """All threads that are not on a CPU now.

        Args:
            wanted: Tells by pid and tid whether a thread is asked for; None for all.

        Raises:
            BpflameError: The kernel refused to iterate.
        """
        threads = [t for t in self._source.read() if wanted is None or wanted(t.pid, t.tid)]
        refused = self._memory.refused
        copies = {t.tid: self._pages(t) for t in threads if self._copy and t.sp and t.wide}
        stacks = {t.tid: () if t.tid in copies else self._user_stack(t) for t in threads}
        walked = bool(copies) or any(len(stack) > 1 for stack in stacks.values())
        # What was read of a thread that ran meanwhile is of no moment at all.
        again = self._source.read() if walked else threads
        switches = {t.tid: t.switches for t in again}
        torn = {
            t.tid
            for t in threads
            if (t.tid in copies or stacks[t.tid]) and switches.get(t.tid) != t.switches
        }
        self.torn = len(torn)
        self.refused = self._memory.refused - refused
        self.bare = sum(bool(t.kernel) and not t.scheduler for t in threads)
        return [
            _sleeper(t, (), True)
            if t.tid in torn
            else _sleeper(t, stacks[t.tid], False, copies.get(t.tid))
            for t in threads
        ]

    def close(self) -> None:
        """Detach and free everything."""
        self._source.close()

    def _pages(self, thread: Thread) -> tuple[tuple[int, bytes], ...]:
        """The memory of a stack, as far as it goes."""
        pages: list[tuple[int, bytes]] = []
        at = thread.sp
        while sum(len(data) for _, data in pages) < _COPY_BYTES:
            data = self._memory.read(thread.tid, at)
            if not data:
                break
            pages.append((at, data))
            at += len(data)
        return tuple(pages)

    def _user_stack(self, thread: Thread) -> tuple[AbsoluteAddress, ...]:
        if not self._user or thread.kernel_thread or not thread.ip:
            return ()
        read = functools.partial(self._memory.read, thread.tid)
        return walk(AbsoluteAddress(thread.ip), thread.bp, thread.wide, read)


def _sleeper(
    thread: Thread,
    user: tuple[AbsoluteAddress, ...],
    torn: bool,
    pages: tuple[tuple[int, bytes], ...] | None = None,
) -> Sleeper:
    place = None
    if pages is not None and thread.ip:
        place = Place(thread.ip, thread.sp, thread.bp, exact=not thread.called)
    return Sleeper(
        tid=thread.tid,
        pid=thread.pid,
        comm=thread.comm,
        state=thread.state,
        kernel_thread=thread.kernel_thread,
        switches=thread.switches,
        user=user,
        kernel=thread.kernel or (),
        lost=torn or thread.ip is None or thread.kernel is None,
        place=place,
        pages=pages or (),
    )


def walk(
    ip: AbsoluteAddress, bp: int, wide: bool, read: Callable[[int], bytes]
) -> tuple[AbsoluteAddress, ...]:
    """A user stack by frame pointers, as perf_callchain_user() in arch/x86/events/core.c walks it.

    So it takes what it finds for a frame, wherever it is, as long as there is memory. The kernel
    also stops at memory that is not present (swapped out), which here is read.

    Args:
        ip: The instruction pointer.
        bp: The frame pointer; 0 if there is none.
        wide: In 64-bit mode, so of 8-byte words.
        read: Gives memory from an address on, as much as it likes; nothing where there is none.

    Returns:
        Return addresses, leaf first, at most ``MAX_DEPTH``; the first is ``ip``.
    """
    frame = _WIDE if wide else _NARROW
    stack = [ip]
    begin, data = 0, b""
    while bp and len(stack) < MAX_DEPTH:
        if not begin <= bp <= begin + len(data) - frame.size:
            begin, data = bp, read(bp)
            if len(data) < frame.size:
                break
        bp, address = frame.unpack_from(data, bp - begin)
        stack.append(AbsoluteAddress(address))
    return tuple(stack)


class Memory:
    """The memory of other processes, which run on meanwhile: process_vm_readv(2).

    Attributes:
        refused: Reads that failed for another reason than that there is no such memory or process.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._call = ctypes.CDLL(None, use_errno=True).process_vm_readv
        parts = (ctypes.c_void_p, ctypes.c_ulong)
        self._call.argtypes = (ctypes.c_int, *parts, *parts, ctypes.c_ulong)
        self._call.restype = ctypes.c_ssize_t
        self._data = ctypes.create_string_buffer(_PAGES * mmap.PAGESIZE)
        self._to = (ctypes.c_size_t * 2)(ctypes.addressof(self._data), len(self._data))
        # A part for each page, since what is read are whole parts.
        self._from = (ctypes.c_size_t * (2 * _PAGES))(*[0, mmap.PAGESIZE] * _PAGES)

    def read(self, tid: int, address: int) -> bytes:
        """Memory from ``address`` on, up to four pages; empty where there is none to be read."""
        if not 0 < address < _USER_END:
            return b""
        page = address - address % mmap.PAGESIZE
        self._from[0::2] = [page + i * mmap.PAGESIZE for i in range(_PAGES)]
        self._from[0], self._from[1] = address, page + mmap.PAGESIZE - address
        size = self._call(tid, self._to, 1, self._from, _PAGES, 0)
        if size >= 0:
            return ctypes.string_at(self._data, size)
        if ctypes.get_errno() not in (errno.EFAULT, errno.ESRCH):
            self.refused += 1
        return b""


class ProcThreads:
    """The same as :class:`TaskIterator`, from /proc: proc_pid_stack(5), proc_pid_syscall(5)."""

    def __init__(self, user: bool, kernel: bool) -> None:
        self._user = user
        self._symbols = {}
        if kernel:
            with contextlib.suppress(OSError):
                self._symbols = text_symbols(Path("/proc/kallsyms").read_bytes())

    def read(self) -> list[Thread]:
        """All threads that are asleep, without those that wait for a CPU."""
        found = (self._thread(pid, tid) for pid in processes() for tid in _threads(pid))
        return [thread for thread in found if thread is not None]

    def close(self) -> None:
        """Free everything."""
        self._symbols = {}

    def _thread(self, pid: int, tid: int) -> Thread | None:
        """One thread; None when it is gone, not asleep, or ran meanwhile."""
        folder = f"/proc/{pid}/task/{tid}/"
        try:
            switches = _switches(folder)
            stat = _read(folder + "stat")
            ip = _leaf(folder) if self._user else 0
            kernel = _kernel_stack(folder, self._symbols) if self._symbols else ()
            if _switches(folder) != switches:
                return None
        except OSError:
            return None
        comm, _, rest = stat.partition(b"(")[2].rpartition(b")")
        state, *fields = rest.split()
        if state not in _STATES:
            return None
        return Thread(
            tid=tid,
            pid=pid,
            comm=comm,
            state=_STATES[state],
            kernel_thread=bool(int(fields[5]) & KERNEL_THREAD),
            switches=switches,
            ip=ip,
            bp=0,
            wide=True,
            kernel=kernel,
            scheduler=False,
        )


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _switches(folder: str) -> int:
    return sum(map(int, _SWITCHES.findall(_read(folder + "status"))))


def _leaf(folder: str) -> int | None:
    """Where a thread left user space; 0 when there is no such place, None when it is not told."""
    try:
        *_, ip = _read(folder + "syscall").split()
    except PermissionError:
        return None
    return int(ip, 16) if ip.startswith(b"0x") else 0  # or "running"


def _kernel_stack(
    folder: str, symbols: Dict[tuple[bytes, bytes], AbsoluteAddress]
) -> tuple[AbsoluteAddress, ...] | None:
    try:
        return stack_addresses(_read(folder + "stack"), symbols)
    except PermissionError:
        return None


def text_symbols(kallsyms: bytes) -> dict[tuple[bytes, bytes], AbsoluteAddress]:
    """Addresses by name and module (empty for the core kernel); none where they are hidden.

    Functions of one name cannot be told apart; the name stays right with any of them.
    """
    return {
        (name, module): AbsoluteAddress(int(address, 16))
        for address, name, module in _SYMBOL.findall(kallsyms)
        if address.strip(b"0")
    }


def stack_addresses(
    text: bytes, symbols: Dict[tuple[bytes, bytes], AbsoluteAddress]
) -> tuple[AbsoluteAddress, ...]:
    """The addresses in the text of /proc/PID/stack, leaf first, without those of no known symbol.

    Args:
        text: Lines such as ``[<0>] name+0x10/0x20 [module]``, the module only if there is one.
        symbols: From :func:`text_symbols`.
    """
    frames = _FRAME.findall(text)
    return tuple(
        AbsoluteAddress(symbols[name, module] + int(offset, 16))
        for name, offset, module in frames
        if (name, module) in symbols
    )
