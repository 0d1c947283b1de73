"""perf_event_open: the events that make samples, and the rings that tell of mappings.

Source: include/uapi/linux/perf_event.h and perf_event_open(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from pathlib import Path

from bpflame.errors import BpflameError, UsageError

TYPE_HARDWARE = 0
TYPE_SOFTWARE = 1
HARDWARE_CYCLES = 0
SOFTWARE_CPU_CLOCK = 0
SOFTWARE_DUMMY = 9

SAMPLE_TIME = 1 << 2
FORMAT_TOTAL_TIME_ENABLED = 1 << 0

# Bits of the flags word, in the order of struct perf_event_attr.
DISABLED = 1 << 0
EXCLUDE_KERNEL = 1 << 5
EXCLUDE_HV = 1 << 6
MMAP = 1 << 8
COMM = 1 << 9
FREQ = 1 << 10
TASK = 1 << 13
WATERMARK = 1 << 14
SAMPLE_ID_ALL = 1 << 18
MMAP2 = 1 << 23
COMM_EXEC = 1 << 24
USE_CLOCKID = 1 << 25
BUILD_ID = 1 << 34  # Linux 5.12

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_FLAG_FD_CLOEXEC = 1 << 3
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408
_CLOCK_MONOTONIC = 1
_MAX_RATE = Path("/proc/sys/kernel/perf_event_max_sample_rate")
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")


class Attr(ctypes.Structure):
    """``struct perf_event_attr``, version 5 (112 bytes, Linux 4.1)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_freq", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64),
        ("branch_sample_type", ctypes.c_uint64),
        ("sample_regs_user", ctypes.c_uint64),
        ("sample_stack_user", ctypes.c_uint32),
        ("clockid", ctypes.c_int32),
        ("sample_regs_intr", ctypes.c_uint64),
        ("aux_watermark", ctypes.c_uint32),
        ("sample_max_stack", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16),
    )


def sampling_attr(event: str, frequency: int) -> Attr:
    """Attributes of a sampling event: ``cpu-clock`` or ``cycles``, ``frequency`` times a second.

    Raises:
        UsageError: No such event, or more often than the kernel allows.
    """
    limit = int(_MAX_RATE.read_text())
    if frequency > limit:
        raise UsageError(
            f"-F {frequency}: this kernel takes at most {limit} samples a second",
            f"sysctl kernel.perf_event_max_sample_rate={frequency}",
        )
    attr = Attr(
        size=ctypes.sizeof(Attr),
        sample_freq=frequency,
        read_format=FORMAT_TOTAL_TIME_ENABLED,
        flags=DISABLED | FREQ,
    )
    if event == "cpu-clock":
        attr.type, attr.config = TYPE_SOFTWARE, SOFTWARE_CPU_CLOCK
    elif event == "cycles":
        attr.type, attr.config = TYPE_HARDWARE, HARDWARE_CYCLES
    else:
        raise UsageError(f"--event {event}: not one of cpu-clock, cycles")
    return attr


def mapping_attr(build_ids: bool) -> Attr:
    """Attributes of an event that only tells of fork, exec, exit and executable mappings.

    Times are CLOCK_MONOTONIC, as ``bpf_ktime_get_ns`` gives them.
    """
    flags = EXCLUDE_KERNEL | EXCLUDE_HV | MMAP | MMAP2 | COMM | COMM_EXEC | TASK
    flags |= SAMPLE_ID_ALL | USE_CLOCKID | WATERMARK | (BUILD_ID if build_ids else 0)
    return Attr(
        type=TYPE_SOFTWARE,
        size=ctypes.sizeof(Attr),
        config=SOFTWARE_DUMMY,
        sample_type=SAMPLE_TIME,
        flags=flags,
        wakeup_events=1,  # a watermark, so bytes: whoever polls wakes at each record
        clockid=_CLOCK_MONOTONIC,
    )


def open_event(attr: Attr, cpu: int) -> int:
    """Open an event for all tasks on one CPU; returns a file descriptor.

    Raises:
        OSError: With the kernel's errno; ENODEV for a CPU that is offline.
    """
    if platform.machine() not in _SYSCALL:
        raise BpflameError(f"bpflame does not know this architecture: {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(
        libc.syscall(
            _SYSCALL[platform.machine()],
            ctypes.byref(attr),
            ctypes.c_int(-1),
            ctypes.c_int(cpu),
            ctypes.c_int(-1),
            ctypes.c_ulong(_FLAG_FD_CLOEXEC),
        )
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def attach(fd: int, program: int) -> None:
    """Run a BPF program of type perf_event whenever the event fires, and start the event."""
    fcntl.ioctl(fd, _IOC_SET_BPF, program)
    fcntl.ioctl(fd, _IOC_ENABLE, 0)


def enabled_time(fd: int) -> int:
    """How long a sampling event has been enabled, ns; it stands still once the event is gone."""
    data = os.read(fd, 16)  # the count, and the time
    return int.from_bytes(data[8:], "little")


def explain(error: OSError, event: str) -> BpflameError:
    """What an errno of :func:`open_event` means to the user."""
    if error.errno in (errno.EACCES, errno.EPERM):
        level = _PARANOID.read_text().strip()
        return BpflameError(
            f"perf events are refused (kernel.perf_event_paranoid is {level})",
            "run as root, or with CAP_PERFMON and CAP_BPF; "
            "in a container also allow perf_event_open (seccomp)",
        )
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return UsageError(
            f"--event {event}: this machine does not have it ({error.strerror})",
            "virtual machines often have no hardware counters: use --event cpu-clock",
        )
    return BpflameError(f"cannot open the perf event {event}: {error.strerror}")
