"""The machine: what it is, what the peers need mounted, its settings left as they were."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bpflame
from benchmarks.errors import BenchmarkError
from benchmarks.programs import ROOT
from benchmarks.report import note

_PACKAGES = ("bpfcc-tools", "bpftrace", "linux-perf", "python3-bpfcc")
_SETTINGS = Path("/proc/sys/kernel")
_WATCHED = ("perf_*", "kptr_restrict", "unprivileged_bpf_disabled", "sched_autogroup_enabled")
_BUSY = 0.5
_TRACING = Path("/sys/kernel/tracing")

# In a mount namespace of its own, where nobody else sees what is mounted. The arguments are the
# headers, empty where those of the kernel are in place, and the command.
_MOUNT = f"""\
set -e
if [ -n "$1" ]; then
    mount -t tmpfs none /lib/modules
    modules=/lib/modules/$(uname -r)
    mkdir "$modules"
    ln -s "$1" "$modules/build"
    ln -s "$2" "$modules/source"
fi
[ -e {_TRACING}/events ] || mount -t tracefs none {_TRACING}
shift 2
exec "$@"
"""


def ensure_mounts() -> None:
    """Give the peers kernel headers and tracefs, where the machine has them not in place.

    bcc's own tools do not compile without the headers of the running kernel; the distribution's of
    another kernel do. perf and bpftrace find tracepoints in tracefs only. The whole benchmark
    starts anew in a mount namespace that has them.

    Raises:
        BenchmarkError: No headers are installed.
    """
    in_place = Path("/lib/modules", platform.release(), "build").exists()
    if in_place and (_TRACING / "events").exists():
        return
    found = None if in_place else find_headers(Path("/usr/src"))
    if found is None and not in_place:
        raise BenchmarkError("no kernel headers for profile-bpfcc: apt install linux-headers-amd64")
    line = ["unshare", "-m", "sh", "-c", _MOUNT, "sh", *map(str, found or ("", ""))]
    sys.stderr.flush()
    os.execvp(line[0], [*line, sys.executable, *sys.argv])


def find_headers(folder: Path) -> tuple[Path, Path] | None:
    """The newest headers in a folder: those of the architecture, and the common ones."""
    pairs = []
    for common in folder.glob("linux-headers-*-common"):
        build = common.with_name(common.name.removesuffix("common") + "amd64")
        if build.is_dir():
            version = [int(number) for number in re.findall(r"\d+", common.name)]
            pairs.append((version, build, common))
    return max(pairs)[1:] if pairs else None


def headers() -> str:
    """Which headers bcc's tools use."""
    return Path("/lib/modules", platform.release(), "build").resolve().name


@contextlib.contextmanager
def unchanged_settings() -> Iterator[None]:
    """Put the kernel's settings back if a profiler changed one."""
    paths = [path for pattern in _WATCHED for path in _SETTINGS.glob(pattern)]
    before = {path: path.read_text() for path in paths}
    try:
        yield
    finally:
        for path, text in before.items():
            if path.read_text() != text:
                note(f"{path} was changed while measuring: put back to {text.strip()}")
                path.write_text(text)


def warn_if_busy() -> None:
    """Say so when others are at work: they make the figures worse."""
    load = os.getloadavg()[0]
    if load > _BUSY:
        note(f"the machine is not quiet: load average {load:.1f}")


def describe() -> str:
    """Date, machine and versions, as Markdown."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    lines = [
        ("date", time.strftime("%Y-%m-%d")),
        ("CPU", f"{cpu_model(cpuinfo)}, {os.cpu_count()} cores"),
        ("virtualised", "yes" if is_virtual(cpuinfo) else "no"),
        ("kernel", f"{platform.release()} {platform.machine()}"),
        ("bpflame", f"{bpflame.__version__}{_commit()}"),
        *((name, _version(name)) for name in _PACKAGES),
        ("kernel headers for profile-bpfcc", headers()),
        ("Python", platform.python_version()),
        ("load average at the start", f"{os.getloadavg()[0]:.2f}"),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in lines)


def cpu_model(cpuinfo: str) -> str:
    """The model's name, from /proc/cpuinfo."""
    match = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def is_virtual(cpuinfo: str) -> bool:
    """Whether the processor says that there is a hypervisor, from /proc/cpuinfo."""
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return match is not None and "hypervisor" in match[1].split()


def _version(package: str) -> str:
    return _said("dpkg-query", "-Wf", "${Version}", package) or "unknown"


def _commit() -> str:
    """Of the checkout, and if the profiler in it was changed since; empty outside of one."""
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    parts = ("bpf", "bpflame", "flamegraph", "profilers", "symbolize")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--", *parts)
    return f" ({commit}{', with changes' if changed else ''})" if commit else ""


def _said(*line: str) -> str:
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
