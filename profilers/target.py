"""Whom to record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shlex
from pathlib import Path

from bpflame.errors import UsageError
from bpflame.profilers.procfs import command_name, process_of


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The choice of tasks; all fields empty means the whole system.

    Attributes:
        pids: Processes.
        tids: Threads.
        children: Also what the processes start from now on.
        comm: Threads whose name matches (``re.search``).
        cgroup: Folder of a version 2 control group; its descendants belong to it.
        command: A command to start and record with its children.
    """

    pids: tuple[int, ...] = ()
    tids: tuple[int, ...] = ()
    children: bool = False
    comm: re.Pattern[str] | None = None
    cgroup: Path | None = None
    command: tuple[str, ...] = ()

    @property
    def processes(self) -> tuple[int, ...] | None:
        """The pids that samples can come from, if that is known beforehand."""
        if self.pids:
            return self.pids
        if self.tids:
            return tuple({process_of(tid) or 0 for tid in self.tids})
        return () if self.command else None

    def includes(self, pid: int, tid: int) -> bool:
        """Whether a thread that lives now belongs to it, as far as the kernel is to tell."""
        if self.command:
            return False
        if self.pids and pid not in self.pids:
            return False
        if self.tids and tid not in self.tids:
            return False
        if self.cgroup is None:
            return True
        folder = cgroup_of(pid, tid)
        return folder is not None and folder.is_relative_to(self.cgroup)

    def check(self) -> None:
        """Raise UsageError naming what is not there."""
        for pid in self.pids:
            if process_of(pid) != pid:
                thread = process_of(pid) is not None
                raise UsageError(
                    f"no process {pid}" + (" (it is a thread)" if thread else ""),
                    f"-t {pid} records a thread" if thread else "ps -e lists the processes",
                )
        for tid in self.tids:
            if process_of(tid) is None:
                raise UsageError(f"no thread {tid}", "ps -eL lists the threads")

    def describe(self) -> str:
        """The choice as a phrase, for titles and messages."""
        if self.command:
            return shlex.join(self.command)
        parts = []
        if self.pids:
            parts.append(", ".join(_named("pid", pid) for pid in self.pids))
        if self.tids:
            parts.append(", ".join(_named("tid", tid) for tid in self.tids))
        if self.comm is not None:
            parts.append(f"comm {self.comm.pattern}")
        if self.cgroup is not None:
            parts.append(f"cgroup {self.cgroup}")
        return ", ".join(parts) or "all processes"

    def short(self) -> str:
        """The choice as a part of a file name."""
        if self.command:
            text = os.path.basename(self.command[0])
        elif self.pids or self.tids:
            text = "-".join(str(number) for number in (self.pids or self.tids)[:3])
        elif self.comm is not None:
            text = self.comm.pattern
        elif self.cgroup is not None:
            text = self.cgroup.name
        else:
            text = "all"
        return re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).strip("_.")[:40] or "target"


def _named(kind: str, number: int) -> str:
    name = command_name(number)
    return f"{kind} {number} ({name})" if name else f"{kind} {number}"


def find_cgroup(text: str) -> Path:
    """The folder of a version 2 control group, given by path or below the mount.

    Raises:
        UsageError: There is none.
    """
    mount = cgroup_mount()
    for candidate in (Path(text), mount / text.lstrip("/") if mount else None):
        if candidate is not None and os.path.isfile(candidate / "cgroup.procs"):
            found = candidate.resolve()
            if mount is not None and found.is_relative_to(mount):
                return found
            raise UsageError(
                f"--cgroup {text}: not a version 2 control group",
                "version 1 groups cannot be told apart in BPF; "
                f"the version 2 ones are below {mount or '(not mounted)'}",
            )
    raise UsageError(f"--cgroup {text}: no such control group", f"they are below {mount}")


@functools.cache
def cgroup_mount() -> Path | None:
    """Where the version 2 hierarchy is mounted."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4])
    return None


def cgroup_of(pid: int, tid: int) -> Path | None:
    """The folder of the version 2 control group that a thread is in."""
    mount = cgroup_mount()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/task/{tid}/cgroup").read_text().splitlines():
            if line.startswith("0::/") and mount is not None:
                return mount / line[len("0::/") :]
    return None


def cgroup_names() -> dict[int, str]:
    """Paths of the version 2 control groups, by their id (the inode of the folder)."""
    mount = cgroup_mount()
    names: dict[int, str] = {}
    for folder, _, _ in os.walk(mount) if mount is not None else ():
        with contextlib.suppress(OSError):  # removed in between
            names[os.stat(folder).st_ino] = "/" + os.path.relpath(folder, mount).removeprefix(".")
    return names
