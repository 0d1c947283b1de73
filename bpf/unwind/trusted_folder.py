"""Folders for files that root will believe.

As bpflame runs as root, such a folder, and all folders above it, must be ones that only root or its
own user can change. Under sudo with the HOME of a user it is the one in /var/cache.
"""

from __future__ import annotations

import contextlib
import os
import stat

_SYSTEM_FOLDER = "/var/cache/bpflame/unwind"


def own() -> list[str]:
    """Where bpflame keeps tables, best first."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    folders = [os.path.join(base, "bpflame", "unwind")] if os.path.isabs(base) else []
    return folders + ([_SYSTEM_FOLDER] if os.geteuid() == 0 else [])


def open_first(folders: list[str], create: bool) -> int:
    """A descriptor of the first folder that can be trusted.

    Args:
        folders: Paths.
        create: Whether to make folders that are not there.

    Raises:
        OSError: There is none.
    """
    error: OSError = FileNotFoundError("no folder for unwind tables")
    for folder in folders:
        try:
            return _open_folder(folder, create)
        except OSError as problem:
            error = problem
    raise error


def _open_folder(path: str, create: bool) -> int:
    """Opens a folder that nobody else can change or replace; raises OSError otherwise."""
    path = os.path.realpath(path)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open("/", flags)
    try:
        _require_trusted(folder, above=True)
        names = [name for name in path.split("/") if name]
        for index, name in enumerate(names):
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folder)
            inner = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
            _require_trusted(folder, above=index < len(names) - 1)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _require_trusted(folder: int, above: bool) -> None:
    """Raises PermissionError when somebody else can change what is in a folder.

    Args:
        folder: A descriptor.
        above: Whether it is a folder above the one of the tables: then it may be root's, or one
            like /tmp in which nobody can replace the files of others.
    """
    status = os.fstat(folder)
    owners = {os.geteuid(), 0} if above else {os.geteuid()}
    shared = status.st_mode & 0o022 and not (above and status.st_mode & stat.S_ISVTX)
    if status.st_uid not in owners or shared:
        raise PermissionError("a folder that others can change")
