"""What a recording needs of the system, checked one by one.

Each check looks at the thing itself, never at a version number: kernels carry backports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
from pathlib import Path

from bpflame.bpf.btf import VMLINUX, Btf
from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.freeze import MENDED, can_freeze
from bpflame.bpf.load import load_bcc
from bpflame.bpf.perf_event import explain, open_event, sampling_attr
from bpflame.bpf.privileges import capabilities, may_record, sees_host_pids
from bpflame.errors import BpflameError
from bpflame.profilers.unwind_choice import lacks

OK, WARN, FAIL = "ok", "warn", "FAIL"

_SYSCTL = Path("/proc/sys/kernel")
_LOCKDOWN = Path("/sys/kernel/security/lockdown")


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        verdict: ``ok``, ``warn`` (less than all works) or ``FAIL`` (recording does not).
        name: What was looked at.
        found: What was found.
        todo: What to do; empty when nothing is to do.
    """

    verdict: str
    name: str
    found: str
    todo: str = ""


def examine() -> list[Check]:
    """All checks, in the order in which problems are best mended."""
    return [
        _privileges(),
        _pid_namespace(),
        _bcc(),
        _btf(),
        _perf_event(),
        _perf_event_paranoid(),
        _cycles(),
        _kptr_restrict(),
        _lockdown(),
        _jit(),
        _user_memory(),
        _unwinding(),
    ]


def _privileges() -> Check:
    if may_record(capabilities()):
        who = "root" if os.geteuid() == 0 else "capabilities"
        return Check(OK, "privileges", f"{who}, enough to record")
    program = shutil.which("bpflame") or "bpflame"
    return Check(
        FAIL, "privileges", "neither root nor CAP_BPF and CAP_PERFMON", f"sudo {program} ..."
    )


def _pid_namespace() -> Check:
    if sees_host_pids():
        return Check(OK, "process ids", "those of the host")
    return Check(FAIL, "process ids", "of a container", "docker run --pid=host --privileged ...")


def _bcc() -> Check:
    try:
        bcc = load_bcc()
    except BpflameError as error:
        return Check(FAIL, "bcc", error.message, error.hint)
    version = getattr(bcc, "__version__", "of unknown version")
    return Check(OK, "bcc", f"{version} in {os.path.dirname(str(bcc.__file__))}")


def _btf() -> Check:
    try:
        offset = Btf.of_kernel().offset("task_struct", "tgid")
    except BpflameError as error:
        return Check(FAIL, "BTF", error.message, error.hint)
    return Check(OK, "BTF", f"{VMLINUX} (task_struct.tgid at {offset})")


def _opens(event: str) -> BpflameError | None:
    try:
        os.close(open_event(sampling_attr(event, 99), online_cpus()[0]))
    except OSError as error:
        return explain(error, event)
    except BpflameError as error:
        return error
    return None


def _perf_event() -> Check:
    error = _opens("cpu-clock")
    if error is None:
        return Check(OK, "perf events", "cpu-clock can be opened")
    return Check(FAIL, "perf events", error.message, error.hint)


def _cycles() -> Check:
    if _opens("cycles") is None:
        return Check(OK, "hardware counters", "cycles can be counted")
    return Check(OK, "hardware counters", "none for us: --event cycles is not to be had")


def _perf_event_paranoid() -> Check:
    level = _number("perf_event_paranoid")
    # Debian's and Ubuntu's level 3 and above refuses even CAP_PERFMON (SECURITY_PERF_EVENTS_
    # RESTRICT asks for CAP_SYS_ADMIN); the levels of the upstream kernel end at 2.
    if level is not None and level > 2 and os.geteuid() != 0:
        return Check(
            WARN,
            "perf_event_paranoid",
            f"{level}: refuses perf events to all but root",
            "sudo sysctl kernel.perf_event_paranoid=2, or run as root",
        )
    return Check(OK, "perf_event_paranoid", f"{level}")


def _kptr_restrict() -> Check:
    level = _number("kptr_restrict")
    hidden = _first_kernel_address() == 0
    if hidden:
        return Check(
            WARN,
            "kptr_restrict",
            f"{level}: kernel addresses are hidden, kernel frames will have no names",
            "sudo sysctl kernel.kptr_restrict=1 (2 hides them from root too)"
            if level == 2
            else "run as root",
        )
    return Check(OK, "kptr_restrict", f"{level}, kernel symbols can be read")


def _first_kernel_address() -> int:
    try:
        with open("/proc/kallsyms") as symbols:
            return max(int(line.split()[0], 16) for line in itertools.islice(symbols, 16))
    except (OSError, ValueError):
        return 0


def _lockdown() -> Check:
    try:
        text = _LOCKDOWN.read_text()
    except OSError:
        return Check(OK, "lockdown", "none")
    match = re.search(r"\[(\w+)\]", text)
    mode = match[1] if match else "unknown"
    if mode == "confidentiality":
        return Check(
            FAIL,
            "lockdown",
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity or without lockdown",
        )
    return Check(OK, "lockdown", mode)


def _jit() -> Check:
    try:
        on = Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip()
    except OSError:  # not shown in a network namespace of its own, or not readable
        return Check(OK, "BPF JIT", "not shown here")
    if on == "0":
        return Check(
            WARN,
            "BPF JIT",
            "off: programs run several times slower",
            "sudo sysctl net.core.bpf_jit_enable=1",
        )
    return Check(OK, "BPF JIT", "on")


def _user_memory() -> Check:
    name = "user memory access"
    frozen = can_freeze()
    if frozen is None:
        return Check(OK, name, "the kernel's code cannot be read here to check for the freeze")
    if frozen:
        return Check(
            WARN,
            name,
            f"this kernel can freeze in bpf_probe_read_user (mended in {MENDED})",
            "upgrade the kernel before you read user memory with BPF, with any tool",
        )
    return Check(OK, name, "without the freeze in bpf_probe_read_user")


def _unwinding() -> Check:
    name = "unwinding"
    missing = lacks()
    if missing:
        return Check(WARN, name, f"along frame pointers: {missing}")
    if can_freeze():
        return Check(
            WARN,
            name,
            "by unwind tables, but for cpu along frame pointers: this kernel can freeze",
            "upgrade the kernel",
        )
    return Check(OK, name, "by unwind tables (--unwind dwarf), frame pointers are not needed")


def _number(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((_SYSCTL / name).read_text())
    return None
