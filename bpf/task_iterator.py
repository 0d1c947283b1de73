"""All threads that are not on a CPU, from a BPF task iterator (Linux 5.8; with user space 5.15).

A few system calls tell of all threads, with kernel stacks and registers. /proc takes several files
for each, and has no frame pointer.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bpflame.bpf.btf import Btf
from bpflame.bpf.load import TRACING, Program, libbcc
from bpflame.errors import BpflameError
from bpflame.raw import AbsoluteAddress

MAX_DEPTH = 127
"""Addresses of a stack, as in ``stack.h``."""

KERNEL_THREAD = 0x200000  # PF_KTHREAD, include/linux/sched.h
_HEAD = struct.Struct("<4I5QIi16s9Q")  # struct thread in threads.bpf.c
_CS_64 = 0x33  # __USER_CS, arch/x86/include/asm/segment.h
_ORC_SYMBOLS = (
    "__start_orc_unwind_ip",
    "__stop_orc_unwind_ip",
    "__start_orc_unwind",
    "__sched_text_start",
    "__sched_text_end",
)
_READ = 1 << 16  # bytes; the kernel gives at most 32 KiB at a time

# Of struct pt_regs, as arch/*/include/uapi/asm/ptrace.h has it. A frame pointer of arm64 leads to
# addresses that may be signed, and only the kernel knows with which bits.
_REGISTERS = {
    "x86_64": {
        "REGS_IP": 128,
        "REGS_BP": 32,
        "REGS_CS": 136,
        "REGS_SP": 152,
        "REGS_ORIG_AX": 120,
        "REGS_CX": 88,
    },
    "aarch64": {"REGS_IP": 256},
}


class Thread(NamedTuple):
    """A thread that is not on a CPU.

    Attributes:
        tid: The kernel's pid.
        pid: The kernel's tgid.
        comm: Its name.
        state: ``task_struct.__state``; 0 for one that waits for a CPU.
        kernel_thread: It has no user space.
        switches: How often it left a CPU: another number means that it ran in between.
        ip: Where it left user space; 0 for none, None when that could not be taken.
        bp: The frame pointer there; 0 when it is not known.
        wide: It is in 64-bit mode.
        kernel: Kernel frames, leaf first; None when they could not be taken.
        scheduler: The scheduler's frames at the leaf are among them, as at sched_switch.
        sp: The stack pointer where it left user space; 0 when it is not known.
        called: It did so by a system call.
    """

    tid: int
    pid: int
    comm: bytes
    state: int
    kernel_thread: bool
    switches: int
    ip: int | None
    bp: int
    wide: bool
    kernel: tuple[AbsoluteAddress, ...] | None
    scheduler: bool
    sp: int = 0
    called: bool = False


class TaskIterator:
    """The program ``threads.bpf.c``, compiled and attached.

    Args:
        user: Take the registers of user space.
        kernel: Take kernel stacks.

    Raises:
        BpflameError: The kernel has no task iterator, or not all that the program asks of it.
    """

    def __init__(self, user: bool, kernel: bool) -> None:
        self._program = Program("threads", _defines(user, kernel))
        self._link = -1
        try:
            self._link = _attach(self._program.load("bpf_iter__task", TRACING))
        except BpflameError:
            self.close()
            raise

    def read(self) -> list[Thread]:
        """All threads that are not on a CPU, in the order of their tids.

        Each is as it was at one moment, but not all at the same one.

        Raises:
            BpflameError: The kernel refused to iterate.
        """
        fd = libbcc().bcc_iter_create(self._link)
        if fd < 0:
            raise BpflameError("cannot make a BPF task iterator")
        try:
            return list(parse(b"".join(iter(lambda: os.read(fd, _READ), b""))))
        except OSError as error:
            raise BpflameError(f"cannot read a BPF task iterator: {error.strerror}") from error
        finally:
            os.close(fd)

    def close(self) -> None:
        """Detach and free everything."""
        if self._link >= 0:
            os.close(self._link)
        self._link = -1
        self._program.close()


def parse(data: bytes) -> Iterator[Thread]:
    """The records that ``threads.bpf.c`` writes.

    Args:
        data: Whole records, one after the other.
    """
    position = 0
    while position < len(data):
        fields = _HEAD.unpack_from(data, position)
        tid, pid, state, flags, switches, ip, bp, sp, called, cs, depth, comm, *leaf = fields
        position += _HEAD.size
        rest = struct.unpack_from(f"<{max(depth, 0)}Q", data, position)
        position += 8 * len(rest)
        kernel = _joined(leaf, rest)
        yield Thread(
            tid=tid,
            pid=pid,
            comm=comm.partition(b"\0")[0],
            state=state,
            kernel_thread=bool(flags & KERNEL_THREAD),
            switches=switches,
            ip=ip,
            bp=bp,
            wide=cs == _CS_64,
            kernel=None if depth < 0 else kernel or rest,
            scheduler=bool(kernel),
            sp=sp,
            called=bool(called),
        )


def _joined(
    leaf: list[AbsoluteAddress], rest: tuple[AbsoluteAddress, ...]
) -> tuple[AbsoluteAddress, ...]:
    """The scheduler's frames and the others; empty when they do not fit together."""
    if not rest or rest[0] not in leaf:
        return ()
    return (*leaf[: leaf.index(rest[0])], *rest)[:MAX_DEPTH]


def _defines(user: bool, kernel: bool) -> dict[str, int | str | None]:
    machine = platform.machine()
    if user and machine not in _REGISTERS:
        raise BpflameError(f"bpflame does not know this architecture: {machine}")
    btf = Btf.of_kernel()
    defines: dict[str, int | str | None] = {
        f"TASK_{name.upper()}": btf.offset("task_struct", name)
        for name in ("comm", "exit_state", "flags", "nivcsw", "nvcsw", "on_cpu", "pid", "tgid")
    }
    defines["TASK_STATE"] = btf.task_state()
    if user:
        defines.update({"USER_STACKS": None, **_REGISTERS[machine]})
    if kernel:
        defines.update({"KERNEL_STACKS": None, **_unwind_table(btf)})
    return defines


def _unwind_table(btf: Btf) -> dict[str, int | str]:
    """What the program needs to unwind the scheduler's frames; empty where it is not to be had.

    That is elsewhere than on x86-64, on kernels that unwind in another way than by ORC, and where
    symbols are hidden.
    """
    found = _kernel_symbols(*_ORC_SYMBOLS)
    if not all(found):
        return {}
    ips, ips_end, rows, start, end = found
    count = (ips_end - ips) // 4
    try:
        return {
            "FRAME_BP": btf.offset("inactive_task_frame", "bp"),
            "FRAME_IP": btf.offset("inactive_task_frame", "ret_addr"),
            "ORC_COUNT": count,
            "ORC_IPS": f"{ips:#x}ULL",
            "ORC_ROWS": f"{rows:#x}ULL",
            "ORC_STEP": 1 << (count - 1).bit_length() - 1,
            "SCHED_END": f"{end:#x}ULL",
            "SCHED_START": f"{start:#x}ULL",
            "TASK_SP": btf.offset("task_struct", "thread") + btf.offset("thread_struct", "sp"),
        }
    except BpflameError:
        return {}


def _kernel_symbols(*names: str) -> list[int]:
    """The addresses of symbols of the core kernel; 0 for one that is hidden or not there."""
    try:
        text = b"\n" + Path("/proc/kallsyms").read_bytes()
    except OSError:
        return [0] * len(names)
    addresses = []
    for name in names:
        end = text.find(f" {name}\n".encode())
        line = text[text.rfind(b"\n", 0, end) + 1 : end].split() if end > 0 else []
        addresses.append(int(line[0], 16) if line else 0)
    return addresses


def _attach(program: int) -> int:
    lib = libbcc()
    lib.bcc_iter_attach.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
    link = int(lib.bcc_iter_attach(program, None, 0))
    if link < 0:
        raise BpflameError("cannot attach the BPF program bpf_iter__task")
    return link
