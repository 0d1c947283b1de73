"""Where results go: a whole file or none at all, owned by the one who asked."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from bpflame.errors import BpflameError, UsageError

SVG, FOLDED, PROFILE = "svg", "folded", "profile"
_SUFFIXES = {".svg": SVG, ".folded": FOLDED, ".txt": FOLDED, ".bpflame": PROFILE}
STDOUT = "-"

Writer = Callable[[IO[bytes]], None]


class Output:
    """One file to write, or standard output.

    Args:
        path: File name, or ``-`` for folded text on standard output.
        owner: uid and gid that the file is to have; None to leave it to the system.

    Attributes:
        kind: ``svg``, ``folded`` or ``profile``, from the suffix.

    Raises:
        UsageError: The suffix is none of those known.
    """

    def __init__(self, path: str, owner: tuple[int, int] | None = None) -> None:
        self.path = path
        self._owner = owner
        if path == STDOUT:
            self.kind = FOLDED
            return
        suffix = os.path.splitext(path)[1].lower()
        if suffix in _SUFFIXES:
            self.kind = _SUFFIXES[suffix]
        elif _special(path):  # /dev/stdout, a pipe: text is what can go anywhere
            self.kind = FOLDED
        else:
            known = ", ".join(_SUFFIXES)
            raise UsageError(f"-o {path}: the suffix must say what to write: {known}")

    def check(self) -> None:
        """Raise BpflameError if the file cannot be written: better now than after an hour."""
        if self.path == STDOUT:
            return
        if _special(self.path):
            if not os.access(self.path, os.W_OK):
                raise BpflameError(f"cannot write {self.path}: permission denied")
            return
        if os.path.isdir(self.path):
            raise BpflameError(f"cannot write {self.path}: it is a directory")
        with _named(self.path), _beside(self.path) as (_, temporary):
            os.unlink(temporary)

    def write(self, writer: Writer) -> None:
        """Let ``writer`` write the file; it appears whole, or the old one stays.

        Raises:
            BpflameError: It cannot be written; nothing half done is left.
        """
        if self.path == STDOUT:
            with _named("standard output"):
                sys.stdout.flush()
                with open(sys.stdout.fileno(), "wb", closefd=False) as out:
                    writer(out)
            return
        with _named(self.path):
            if _special(self.path):
                with open(self.path, "wb") as out:
                    writer(out)
            else:
                self._replace(writer)

    def _replace(self, writer: Writer) -> None:
        with _beside(self.path) as (fd, temporary):
            with open(fd, "wb") as out:
                writer(out)
                out.flush()
                self._set_owner(out.fileno())
            os.replace(temporary, self.path)

    def _set_owner(self, fd: int) -> None:
        """Keep what an existing file had; a new one gets the usual mode.

        Recordings stay private, as perf.data does: they tell of every process.
        """
        owner = self._owner
        try:
            old = os.lstat(self.path)
        except FileNotFoundError:
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(fd, 0o600 if self.kind == PROFILE else 0o666 & ~umask)
        else:
            os.fchmod(fd, stat.S_IMODE(old.st_mode) if stat.S_ISREG(old.st_mode) else 0o600)
            if owner is None and os.geteuid() == 0:
                owner = old.st_uid, old.st_gid
        if owner is not None:
            with contextlib.suppress(OSError):  # file systems without owners
                os.fchown(fd, *owner)


def unique_name(kind: str, target: str) -> str:
    """``cpu-<target>-<time>.svg`` in the current folder, of a file that is not there yet."""
    stem = f"{kind}-{target}-{time.strftime('%Y%m%dT%H%M%S')}"
    name, number = f"{stem}.svg", 1
    while os.path.lexists(name):
        number += 1
        name = f"{stem}-{number}.svg"
    return name


def _special(path: str) -> bool:
    """Whether there is something that is neither a regular file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def _beside(path: str) -> Iterator[tuple[int, str]]:
    """A temporary file in the folder of ``path``, gone afterwards unless it was renamed."""
    folder, name = os.path.split(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
    try:
        yield fd, temporary
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BpflameError(f"cannot write {path}: {error.strerror}") from error
