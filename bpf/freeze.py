"""Whether reading user memory in an interrupt can freeze the running kernel.

From Linux 5.19 the hardened usercopy check looks up vmalloc areas (0aef499f3172) under a lock that
the interrupted code may hold. Linux 6.4 mended copy_from_user_nofault() (d319f344561d), which since
then asks nmi_uaccess_okay(); stable kernels have the fix too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from bpflame.bpf.kernel_code import calls
from bpflame.bpf.unwind import trusted_folder

MENDED = "6.4, 6.3.10, 6.1.36"
"""Where it is mended, for the user: first releases of the main line and of stable branches."""

_USERCOPY_CHECKS = ("__check_object_size", "check_heap_object")


_KERNEL = Path("/sys/kernel/notes")  # with the build id of the kernel
_KNOWN = {b"1": True, b"0": False}


@functools.cache
def can_freeze() -> bool | None:
    """Whether bpf_probe_read_user() in an interrupt, maskable or not, can freeze this kernel.

    It takes some 0.3 s, so what is found is kept for the next time that this kernel runs.

    Returns:
        None where that cannot be told: another architecture, hidden symbols, no privileges.
    """
    name = _name()
    known = _kept(name)
    if known is None:
        known = _judge()
        if known is not None:
            _keep(name, known)
    return known


def _judge() -> bool | None:
    mended = calls("copy_from_user_nofault", "nmi_uaccess_okay")
    if mended is None:
        return None
    return not mended and any(calls(check, "find_vmap_area") for check in _USERCOPY_CHECKS)


def _name() -> str:
    """What the finding is kept under; empty if the kernel does not say which one it is."""
    with contextlib.suppress(OSError):
        return "freeze-" + hashlib.blake2b(_KERNEL.read_bytes(), digest_size=16).hexdigest()
    return ""


def _kept(name: str) -> bool | None:
    with contextlib.suppress(OSError), _folder(create=False) as folder:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with open(fd, "rb") as file:
            return _KNOWN.get(file.read(2))
    return None


def _keep(name: str, found: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    beside = f"{name}.{os.getpid()}"
    with contextlib.suppress(OSError), _folder(create=True) as folder:
        with open(os.open(beside, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(b"1" if found else b"0")
        os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)


@contextlib.contextmanager
def _folder(create: bool) -> Iterator[int]:
    folder = trusted_folder.open_first(trusted_folder.own(), create)
    try:
        yield folder
    finally:
        os.close(folder)
