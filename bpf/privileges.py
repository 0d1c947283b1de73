"""What the kernel wants of a process before it lets it record."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from bpflame.errors import BpflameError

CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39
# PID_INIT_INO in the kernel's include/linux/proc_ns.h: the host's own pid namespace.
_HOST_PID_NAMESPACE = 0xEFFFFFFC


def capabilities() -> int:
    """The effective capability set, as a bit mask."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def may_record(have: int) -> bool:
    """Whether a capability set is enough: CAP_SYS_ADMIN, or CAP_BPF with CAP_PERFMON."""
    split = 1 << CAP_BPF | 1 << CAP_PERFMON
    return bool(have & 1 << CAP_SYS_ADMIN) or have & split == split


def sees_host_pids() -> bool:
    """Whether pids here are those that BPF programs see: not so inside most containers."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _HOST_PID_NAMESPACE
    except OSError:
        return True


def require_privileges() -> None:
    """Raise BpflameError saying what is missing, and the command that works."""
    if not may_record(capabilities()):
        if os.path.basename(sys.argv[0]) == "__main__.py":
            program = [sys.executable, "-m", "bpflame"]
        else:
            program = [os.path.abspath(shutil.which(sys.argv[0]) or sys.argv[0])]
        again = shlex.join([*program, *sys.argv[1:]])
        raise BpflameError(
            "recording needs root, or the capabilities CAP_BPF and CAP_PERFMON",
            f"sudo {again}",
        )
    if not sees_host_pids():
        raise BpflameError(
            "this is a container with process ids of its own; BPF sees the host's",
            "start the container with the host's: docker run --pid=host --privileged ...",
        )
