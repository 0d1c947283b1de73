"""What records every switch of the scheduler: command lines, lives, and what they take."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import peers, programs
from benchmarks.errors import BenchmarkError
from benchmarks.losses import bpflame_losses, bpftrace_losses, perf_losses
from benchmarks.memory import kernel_bytes
from benchmarks.samples import folded_counts

OFFCPU, OFFWAKE, WAKEUP = "bpflame offcpu", "bpflame offwake", "bpflame wakeup"
CHAIN, SAMPLED = "bpflame chain --depth 8", "bpflame offcpu --sample 1/10"
OTHER = "bpflame offcpu -p OTHER"
"""Asked for a process that sleeps: what the switches of all others cost."""

BPFTRACE, PERF = "bpftrace", "perf record"
OURS = (OFFCPU, OFFWAKE, CHAIN, WAKEUP, SAMPLED, OTHER)
TOOLS = (*OURS, BPFTRACE, PERF)

_PROGRAM = Path(__file__).resolve().parent / "programs" / "offcpu.bt"
_END_SECONDS = 180.0  # bpftrace names the functions of whatever else was running
_ATTACHED = re.compile(r"^tp_name:\s*sched_switch$", re.MULTILINE)

_Found = TypeVar("_Found")


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """What one recording took, and lost.

    Attributes:
        peak: Bytes of resident memory.
        kernel: Bytes of BPF maps and of ring buffers, at its end.
        cpu: Seconds of CPU time, of its whole life, without its BPF programs.
        written: Bytes of output.
        lost: Events and other things that it says it lost.
    """

    peak: int
    kernel: int
    cpu: float
    written: int
    lost: int


def command(tool: str, output: Path, other: int) -> list[str]:
    """A system-wide recording, of waits unless it says otherwise, until SIGINT.

    Args:
        tool: One of TOOLS, or bpflame or perf record with other options.
        output: What to write; bpftrace gets it as its standard output.
        other: The process id for OTHER.
    """
    if tool.startswith(PERF):
        words = tool.split()[2:] or ["-g", "-e", "sched:sched_switch"]
        return [*peers.perf(output), "record", "-q", "-a", *words, "-o", str(output)]
    if tool == BPFTRACE:
        return ["bpftrace", "-q", str(_PROGRAM)]
    # As installed beside the interpreter that runs this.
    program = str(Path(sys.executable).with_name("bpflame"))
    words = [str(other) if word == "OTHER" else word for word in tool.split()[1:]]
    return [program, *words, "-q", "--json", "-o", str(output)]


def under(
    tool: str, kind: str, folder: Path, other: int, work: Callable[[], _Found]
) -> tuple[_Found, Use]:
    """Do some work while a tool records; what the work returns, and what the tool took.

    Args:
        tool: As for :func:`command`.
        kind: The name of the threads that do the work.
        folder: For files.
        other: The process id for OTHER.
        work: Called when every switch is recorded.

    Raises:
        BenchmarkError: The tool failed, or recorded nothing of the work.
    """
    output = folder / f"switches.{'data' if tool.startswith(PERF) else 'folded'}"
    stdout = output if tool == BPFTRACE else peers.stdout_of(tool, output)
    report = folder / "peak"
    report.write_text("")
    line = programs.peak(report, command(tool, output, other))
    with peers.started(line, stdout) as process:

        def ready() -> bool:
            words = report.read_text().split()
            return bool(words) and is_attached(tool, Path("/proc", words[0]))

        peers.wait_until_ready(process, stdout, ready)
        done = work()
        pid = int(report.read_text().split()[0])
        kernel = kernel_bytes(Path("/proc", str(pid)))
        with contextlib.suppress(ProcessLookupError):  # it has failed, as is seen next
            os.kill(pid, signal.SIGINT)
        peers.finish(process, stdout, _END_SECONDS)
    _check(tool, kind, output)
    peak, cpu = programs.parse_peak(report.read_text())
    use = Use(peak, kernel, cpu, output.stat().st_size, _lost(tool, output, stdout))
    output.unlink()
    return done, use


def is_attached(tool: str, process: Path) -> bool:
    """Whether a tool records by now, from its folder in /proc.

    bpflame has a raw tracepoint, and perf an event on each CPU, as has bpflame cpu. bpftrace has
    one on each as well, for its messages, and the tracepoint.
    """
    cpus = os.cpu_count() or 1
    if tool.startswith((PERF, peers.BPFLAME)):
        return peers.perf_events(process) >= cpus
    if tool == BPFTRACE:
        return peers.perf_events(process) > cpus
    infos = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(process / "fdinfo"):
            with contextlib.suppress(OSError):
                infos.append(Path(entry.path).read_text())
    return any(_ATTACHED.search(info) for info in infos)


def _check(tool: str, kind: str, output: Path) -> None:
    """What records nothing costs nothing: no such figures."""
    if tool == OTHER or tool.startswith(PERF):  # perf names what it lacks, and what was lost
        return
    text = output.read_text(errors="replace")
    # The sums of bpftrace have no names of threads.
    if not ("@ns[" in text if tool == BPFTRACE else kind in folded_counts(text)):
        raise BenchmarkError(f"{tool} recorded nothing of {kind}")


def _lost(tool: str, output: Path, stdout: Path) -> int:
    if tool.startswith(PERF):
        return perf_losses(output)
    if tool == BPFTRACE:
        files = stdout, peers.messages_of(stdout)
        return sum(bpftrace_losses(file.read_text(errors="replace")) for file in files)
    return bpflame_losses(stdout.read_text())
