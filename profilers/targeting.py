"""Whom a program records: the constants and maps of ``bpf/programs/process.h``."""

from __future__ import annotations

import os

from bpflame.bpf.btf import Btf
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.errors import UsageError
from bpflame.profilers.target import Target

_BORN_ENTRIES = 1 << 16
_FOLLOWED = 1 << 16  # processes that live at one time
_FROM_EXEC, _NOW = b"\1", b"\2"  # enum target


def target_defines(target: Target, btf: Btf) -> dict[str, int | str | None]:
    """The compile-time constants that choose tasks."""
    follow = bool(target.command) or target.children
    defines: dict[str, int | str | None] = {
        "BORN_ENTRIES": _BORN_ENTRIES,
        "OWN_PID": os.getpid(),
        "SIGNAL_LIVE": btf.offset("signal_struct", "live"),
        "TARGET_ENTRIES": _FOLLOWED if follow else len(target.pids) + len(target.tids) + 1,
        "TASK_PID": btf.offset("task_struct", "pid"),
        "TASK_SIGNAL": btf.offset("task_struct", "signal"),
        "TASK_TGID": btf.offset("task_struct", "tgid"),
    }
    if len(target.pids) == 1 and not follow:
        defines["ONLY_PID"] = target.pids[0]  # cheaper than to look it up
    switches = {
        "FILTER_CGROUP": target.cgroup is not None,
        "FILTER_PID": bool(target.pids or target.command),
        "FILTER_TID": bool(target.tids),
        "FOLLOW_CHILDREN": follow,
    }
    return {**defines, **{name: None for name, on in switches.items() if on}}


def choose_targets(program: Program, target: Target, command_pid: int | None) -> None:
    """Write the filters' maps."""
    targets = BpfMap(program.map_fd("targets"), 4, 1)
    for number in (*target.pids, *target.tids):
        targets.update(number.to_bytes(4, "little"), _NOW)
    if command_pid is not None:
        targets.update(command_pid.to_bytes(4, "little"), _FROM_EXEC)
    if target.cgroup is not None:
        try:
            folder = os.open(target.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UsageError(f"--cgroup {target.cgroup}: {error.strerror}") from error
        groups = BpfMap(program.map_fd("cgroup_target"), 4, 4)
        groups.update(bytes(4), folder.to_bytes(4, "little"))
        os.close(folder)
