"""Unwind tables on disk, by build id, so that each file is read once and not at each recording.

The folder is best effort: whatever is wrong with it, a table is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np

from bpflame.bpf.unwind import trusted_folder
from bpflame.bpf.unwind.rules import Bp, Cfa
from bpflame.bpf.unwind.table import PAGE, Table

_FORMAT = 3
"""To be raised when files of the same .eh_frame get other tables than before."""
_DIGEST = 16
# magic, version; first address; numbers of pages, rows and rules; then the digest.
_HEADER = struct.Struct("<8sIQIII")
_MAGIC = b"bpflame\0"
_MAX_BYTES = 512 << 20
_MAX_FILE = 64 << 20
"""Twelve times the table of libLLVM-15."""
_MAX_BUILD_ID = 64
_DAY, _HOUR = 86_400, 3_600


def _version() -> int:
    """Changes with the format of the rows, the pages and the rules."""
    names = [[(member.name, member.value) for member in kinds] for kinds in (Cfa, Bp)]
    return zlib.crc32(repr((_FORMAT, names, PAGE.descr)).encode())


_VERSION = _version()


class TableCache:
    """Keeps tables in a folder. No method raises for what is wrong with folder or disk.

    Args:
        folder: None for bpflame's own, under $XDG_CACHE_HOME or ~/.cache, or /var/cache for root
            where these belong to somebody else. It is made when the first table is stored.
        limit: Bytes in the folder; what was used least recently goes.
    """

    def __init__(self, folder: str | None = None, limit: int = _MAX_BYTES) -> None:
        self._folders = [folder] if folder is not None else trusted_folder.own()
        self._limit = limit
        self._size: int | None = None

    def load(self, build_id: bytes) -> Table | None:
        """The table of a build id; None when there is none that is sound."""
        if not 0 < len(build_id) <= _MAX_BUILD_ID:
            return None
        with contextlib.suppress(OSError), self._opened(create=False) as folder:
            try:
                return _read(folder, build_id)
            except FileNotFoundError:
                return None
            except (ValueError, OSError):
                _remove_own(folder, build_id.hex())
        return None

    def store(self, build_id: bytes, table: Table) -> None:
        """Keeps a table."""
        if not 0 < len(build_id) <= _MAX_BUILD_ID:
            return
        content = _content(build_id, table)
        if len(content) > min(_MAX_FILE, self._limit):
            return
        with contextlib.suppress(OSError), self._opened(create=True) as folder:
            _write(folder, build_id.hex(), content)
            if self._size is not None:
                self._size += len(content)
            if self._size is None or self._size > self._limit:
                self._size = _evict(folder, self._limit)

    @contextlib.contextmanager
    def _opened(self, create: bool) -> Iterator[int]:
        """A descriptor of the first folder that can be trusted. Raises OSError without one."""
        descriptor = trusted_folder.open_first(self._folders, create)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _read(folder: int, build_id: bytes) -> Table:
    """Raises OSError, or ValueError for what is no sound table."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(build_id.hex(), flags, dir_fd=folder)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise ValueError("not a file of ours")
        if status.st_mode & 0o022 or not _HEADER.size + _DIGEST < status.st_size <= _MAX_FILE:
            raise ValueError("not a table")
        content = bytearray(status.st_size)
        view = memoryview(content)
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError("cut off")
            view = view[count:]
        table = _table(build_id, bytes(content))
        if time.time() - status.st_mtime > _DAY:
            with contextlib.suppress(OSError):
                os.utime(descriptor)
    return table


def _table(build_id: bytes, content: bytes) -> Table:
    """Raises ValueError."""
    magic, version, first, pages, rows, rules = _HEADER.unpack_from(content)
    body = _HEADER.size + _DIGEST
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError("of another version")
    at_rows = body + pages * PAGE.itemsize
    at_rules = at_rows + rows * 4
    if len(content) != at_rules + rules * 8:
        raise ValueError("of another size")
    if _digest(build_id, content) != content[_HEADER.size : body]:
        raise ValueError("damaged")
    table = Table(
        first,
        np.frombuffer(content, PAGE, pages, body),
        np.frombuffer(content, "<u4", rows, at_rows),
        np.frombuffer(content, "<u8", rules, at_rules),
    )
    table.check()
    return table


def _content(build_id: bytes, table: Table) -> bytes:
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, table.first),
        *(len(table.pages), len(table.rows), len(table.rules)),
    )
    arrays = b"".join(
        array.astype(kind, copy=False).tobytes()
        for array, kind in ((table.pages, PAGE), (table.rows, "<u4"), (table.rules, "<u8"))
    )
    blank = header + bytes(_DIGEST) + arrays
    return header + _digest(build_id, blank) + arrays


def _digest(build_id: bytes, content: bytes) -> bytes:
    """Of the build id, the header and what follows the digest."""
    digest = hashlib.blake2b(build_id, digest_size=_DIGEST)
    digest.update(content[: _HEADER.size])
    digest.update(memoryview(content)[_HEADER.size + _DIGEST :])
    return digest.digest()


def _write(folder: int, name: str, content: bytes) -> None:
    """Writes a file beside and renames it, so that readers see all of it or none."""
    beside = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(beside, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise


def _remove_own(folder: int, name: str) -> None:
    with contextlib.suppress(OSError):
        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid == os.geteuid():
            os.unlink(name, dir_fd=folder)


def _evict(folder: int, limit: int) -> int:
    """Removes what was used least recently until the rest fits; how many bytes that is."""
    now, total = time.time(), 0
    found: list[tuple[float, str, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.startswith(".") and now - status.st_mtime > _HOUR:
                    os.unlink(entry.name, dir_fd=folder)  # of a writer that was killed
                    continue
                found.append((status.st_mtime, entry.name, status.st_size))
                total += status.st_size
    for _, name, size in sorted(found):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
            total -= size
    return total
