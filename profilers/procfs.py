"""What /proc tells of processes: their executable mappings, above all.

Linux 6.11 answers for one mapping at a time (the PROCMAP_QUERY ioctl), with the build id and
without a text to print and parse; older kernels give the text of /proc/PID/maps.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bpflame.raw import AbsoluteAddress, FileKey, FileOffset, Mapping

_EXECUTABLE = 0x04
_COVERING_OR_NEXT = 0x10
_BUILD_ID_MAX = 20
_PATH_MAX = 4096


class _Query(ctypes.Structure):
    """``struct procmap_query``, include/uapi/linux/fs.h."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("query_flags", ctypes.c_uint64),
        ("query_addr", ctypes.c_uint64),
        ("vma_start", ctypes.c_uint64),
        ("vma_end", ctypes.c_uint64),
        ("vma_flags", ctypes.c_uint64),
        ("vma_page_size", ctypes.c_uint64),
        ("vma_offset", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("vma_name_size", ctypes.c_uint32),
        ("build_id_size", ctypes.c_uint32),
        ("vma_name_addr", ctypes.c_uint64),
        ("build_id_addr", ctypes.c_uint64),
    )


_PROCMAP_QUERY = 3 << 30 | ctypes.sizeof(_Query) << 16 | ord("f") << 8 | 17


def executable_mappings(pid: int) -> list[Mapping] | None:
    """The executable mappings of a process, by address; None when it is gone.

    Kernel threads have none.
    """
    try:
        with open(f"/proc/{pid}/maps", "rb", buffering=0) as maps:
            try:
                return list(_queried(maps.fileno()))
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
            return list(parse_maps(maps.readall()))
    except (OSError, ValueError):
        return None


def _queried(fd: int) -> Iterator[Mapping]:
    name = ctypes.create_string_buffer(_PATH_MAX)
    build_id = ctypes.create_string_buffer(_BUILD_ID_MAX)
    query = _Query(
        size=ctypes.sizeof(_Query),
        query_flags=_EXECUTABLE | _COVERING_OR_NEXT,
        vma_name_addr=ctypes.addressof(name),
        build_id_addr=ctypes.addressof(build_id),
    )
    while True:
        query.vma_name_size, query.build_id_size = _PATH_MAX, _BUILD_ID_MAX
        try:
            fcntl.ioctl(fd, _PROCMAP_QUERY, query)
        except OSError as error:
            if error.errno == errno.ENOENT:  # no further mapping
                return
            if error.errno == errno.ENAMETOOLONG:  # of a path beyond PATH_MAX: an unusable one
                return
            raise
        path = os.fsdecode(name.value) if query.vma_name_size else ""
        identity = build_id.raw[: query.build_id_size]
        yield Mapping(
            AbsoluteAddress(query.vma_start),
            AbsoluteAddress(query.vma_end),
            FileOffset(query.vma_offset),
            FileKey(path, identity, 0 if identity else query.inode),
        )
        query.query_addr = query.vma_end


_LINE = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) [-r][-w](.)[ps] ([0-9a-f]+) \S+ (\d+) *(.*)", re.ASCII
)


def parse_maps(text: bytes) -> Iterator[Mapping]:
    """The executable mappings in the text of /proc/PID/maps (proc_pid_maps(5))."""
    for line in text.split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None or match[3] != b"x":
            continue
        path = os.fsdecode(match[6].replace(rb"\012", b"\n"))  # the one character it escapes
        yield Mapping(
            AbsoluteAddress(int(match[1], 16)),
            AbsoluteAddress(int(match[2], 16)),
            FileOffset(int(match[4], 16)),
            FileKey(path, b"", int(match[5])),
        )


def processes() -> Iterator[int]:
    """The pids of all processes now."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return os.path.exists(f"/proc/{pid}")


def process_of(tid: int) -> int | None:
    """The process a thread belongs to; None when there is no such thread."""
    try:
        status = Path(f"/proc/{tid}/status").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"^Tgid:\t(\d+)$", status, re.MULTILINE)
    return int(match[1]) if match else None


def command_name(pid: int) -> str:
    """The name of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").rstrip("\n")
    except OSError:
        return ""
