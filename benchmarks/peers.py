"""The profilers side by side: their command lines, and their lives from start to end."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.samples import folded_counts, perf_samples

BPFLAME, BCC, PERF = "bpflame cpu", "profile-bpfcc", "perf record"
TOOLS = (BPFLAME, BCC, PERF)
SUFFIX = {BPFLAME: "folded", BCC: "folded", PERF: "data"}
"""Of the file that a tool writes."""

_READY_SECONDS = 30.0
_SETTLE_SECONDS = 0.7
_END_SECONDS = 60.0


def missing() -> list[str]:
    """Programs that are needed and not here."""
    names = ("profile-bpfcc", "perf", "bpftrace", "gcc", "make")
    return [name for name in names if not shutil.which(name)]


def command(tool: str, rate: int, seconds: int | None, output: Path) -> list[str]:
    """A system-wide recording.

    Args:
        tool: One of TOOLS.
        rate: Samples per second and CPU.
        seconds: How long; None: until SIGINT.
        output: What to write; profile-bpfcc knows standard output only.
    """
    if tool == PERF:
        line = [*perf(output), "record", "-q", "-a", "-g", "-F", str(rate), "-e", "cpu-clock"]
        end = [] if seconds is None else ["--", "sleep", str(seconds)]
        return [*line, "-o", str(output), *end]
    if tool == BCC:
        return [
            "profile-bpfcc",
            "-F",
            str(rate),
            "-f",
            *([] if seconds is None else [str(seconds)]),
        ]
    # As installed beside the interpreter that runs this.
    program = str(Path(sys.executable).with_name("bpflame"))
    line = [program, "cpu", "-q", "-F", str(rate), "-o", str(output)]
    return line if seconds is None else [*line, "-d", str(seconds)]


def perf(data: Path) -> list[str]:
    """perf, with its cache of what it has seen beside its data, not in the user's home."""
    return ["perf", "--buildid-dir", str(data.with_name("buildid"))]


@contextlib.contextmanager
def started(
    line: Sequence[str], stdout: Path, session: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A running command, ended at the end of the block at the latest.

    Args:
        line: Program and arguments.
        stdout: What it prints goes here; its messages to the same name and ``.err``.
        session: It has children of its own: a session, which is ended as a whole.
    """
    with open(stdout, "wb") as out, open(messages_of(stdout), "wb") as err:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=session
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            send = os.killpg if session else os.kill
            send(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                send(process.pid, signal.SIGKILL)
                process.wait()


def messages_of(stdout: Path) -> Path:
    """Where the messages go of what prints to ``stdout``."""
    return stdout.with_name(stdout.name + ".err")


def stdout_of(tool: str, output: Path) -> Path:
    """Where a tool's standard output goes: profile-bpfcc has no other."""
    return output if tool == BCC else output.with_name(output.name + ".out")


def run(line: Sequence[str], stdout: Path, seconds: float = _END_SECONDS) -> None:
    """Run a command to its end.

    Raises:
        BenchmarkError: It failed, or takes longer.
    """
    with started(line, stdout) as process:
        finish(process, stdout, seconds)


def finish(process: subprocess.Popen[bytes], stdout: Path, seconds: float = _END_SECONDS) -> None:
    """Wait for the end of a command.

    Raises:
        BenchmarkError: It failed, or takes longer.
    """
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"no end after {seconds:.0f} s: {process.args!r}") from None
    if code not in (0, -signal.SIGINT):  # perf record ends by the signal that stopped it
        text = messages_of(stdout).read_text(errors="replace").strip()
        raise BenchmarkError(f"exit code {code}: {process.args!r}\n{text}")


@contextlib.contextmanager
def recording(tool: str, rate: int, output: Path) -> Iterator[None]:
    """Profile the whole system during the block; it is entered when samples are taken.

    Raises:
        BenchmarkError: The profiler failed.
    """
    stdout = stdout_of(tool, output)
    with started(command(tool, rate, None, output), stdout) as process:
        wait_until_ready(process, stdout, functools.partial(_samples, process.pid))
        yield
        process.send_signal(signal.SIGINT)
        finish(process, stdout)


def _samples(pid: int) -> bool:
    """All three have an event on each CPU when they sample; what follows takes milliseconds."""
    return perf_events(Path("/proc", str(pid))) >= (os.cpu_count() or 1)


def wait_until_ready(
    process: subprocess.Popen[bytes], stdout: Path, ready: Callable[[], bool]
) -> None:
    """Wait until a profiler is attached, and a little longer.

    Raises:
        BenchmarkError: It has ended, or takes too long.
    """
    end = time.monotonic() + _READY_SECONDS
    while not ready():
        if process.poll() is not None:
            finish(process, stdout)
        if process.poll() is not None or time.monotonic() > end:
            raise BenchmarkError(f"it does not sample: {process.args!r}")
        time.sleep(0.02)
    time.sleep(_SETTLE_SECONDS)


def perf_events(process: Path) -> int:
    """How many perf events are open in a process, from its folder in /proc; 0 if it is gone."""
    count = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                count += "[perf_event]" in os.readlink(entry.path)
    return count


def perf_script(data: Path) -> list[tuple[str, float]]:
    """Thread names and times of the samples in a perf.data file."""
    text = data.with_name(data.name + ".script")
    run([*perf(data), "script", "-F", "comm,time", "-i", str(data)], text)
    return perf_samples(text.read_text(errors="replace"))


def counts(tool: str, output: Path) -> dict[str, int]:
    """Samples by thread name in what a tool wrote."""
    if tool != PERF:
        return folded_counts(output.read_text(errors="replace"))
    found: dict[str, int] = {}
    for name, _ in perf_script(output):
        found[name] = found.get(name, 0) + 1
    return found
