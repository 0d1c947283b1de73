"""Mapped files, opened while the process that maps them lives.

A file that is deleted, replaced, or only visible inside a container can still be read later by the
descriptor; by its path it could not, or it would be another file.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Mapping as Dict

from bpflame.bpf.cpus import possible_cpus
from bpflame.raw import FileKey, Mapping

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_RESERVED = 256  # descriptors left to everything else
_PER_CPU = 3  # of them, for the events and rings


def is_file(path: str) -> bool:
    """Whether a mapping's name is that of a file (``[vdso]``, ``//anon`` and ``""`` are not)."""
    return path.startswith("/") and not path.startswith(
        ("//", "/dev/zero", "/SYSV", "/anon_hugepage")
    )


class FileKeeper:
    """Open descriptors by file. Each distinct file is opened once."""

    def __init__(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        spare = hard - _RESERVED - _PER_CPU * len(possible_cpus())
        self._limit = max(spare, 0) // 2  # the symbolizer opens each once more
        self._open: dict[FileKey, int] = {}
        self._tried: set[tuple[FileKey, int]] = set()

    @property
    def files(self) -> Dict[FileKey, int]:
        """Descriptors, owned by the keeper."""
        return self._open

    def keep(self, pid: int, mapping: Mapping) -> None:
        """Open the file of a mapping, if that was not tried before."""
        key = mapping.file
        if key in self._open or (key, pid) in self._tried or not is_file(key.path):
            return
        self._tried.add((key, pid))  # another process may still have what this one has lost
        if len(self._open) >= self._limit:
            return
        # The first name is the mapped inode itself, whatever its path is by now. The path as
        # bpflame sees it is not tried: that can be another file, and the symbolizer checks it.
        for name in (
            f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}",
            f"/proc/{pid}/root{key.path}",
        ):
            fd = _open_regular(name)
            if fd is not None:
                self._open[key] = fd
                return

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def _open_regular(name: str) -> int | None:
    try:
        fd = os.open(name, _OPEN)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None
