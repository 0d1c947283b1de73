"""Peak memory, CPU time of the profiler, and bytes written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.errors import retried
from benchmarks.peers import BCC, BPFLAME, PERF
from benchmarks.report import Result, Table, note
from benchmarks.stats import Spread, paired_ratios, spread

ROUNDS = 3
RATES = (99, 999)
_SECONDS = 10
_SCRIPT = "perf script, afterwards"

# What is run, and the suffix of what it writes.
_VARIANTS = (
    (BPFLAME, "folded"),
    (BPFLAME, "svg"),
    (BPFLAME, "bpflame"),
    (BCC, "folded"),
    (PERF, "data"),
)

_METHOD = f"""\
A system-wide recording of {_SECONDS} s under a mixed load: three_paths, syscalls, threads,
virtual_calls, fork_storm and a pipeline of tar and gzip. Peak: ru_maxrss of the profiler or of its
largest child, CPU: time of its whole life and its children's, both by wait4. Kernel: BPF maps
(memlock in /proc/PID/fdinfo) and perf ring buffers, the most that was seen. perf.data still has to
be read: that is perf script, with its text as output. Samples are those in the output, without
idle CPUs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """What one recording took.

    Attributes:
        peak: Bytes of resident memory.
        kernel: Bytes of BPF maps and of ring buffers.
        cpu: Seconds of CPU time, of its whole life.
        written: Bytes of output.
        samples: In the output, without idle.
    """

    peak: int
    kernel: int
    cpu: float
    written: int
    samples: int


Uses = dict[tuple[int, str, str], list[Use]]
"""By rate, profiler and suffix: a use for each round."""


def measure(rounds: int, folder: Path) -> Result:
    """Record with each profiler at each rate."""
    uses: Uses = {}
    with _load(folder):
        for number in range(1, rounds + 1):
            note(f"memory: round {number} of {rounds}")
            todo = [(rate, *variant) for rate in RATES for variant in _VARIANTS]
            for rate, tool, suffix in random.sample(todo, len(todo)):
                output = folder / f"memory.{suffix}"
                use = retried(functools.partial(_record, tool, rate, output))
                uses.setdefault((rate, tool, suffix), []).append(use)
                if tool == PERF:
                    script = _script(output, use.samples)
                    uses.setdefault((rate, _SCRIPT, "text"), []).append(script)
                output.unlink()
    return _result(uses, rounds)


@contextlib.contextmanager
def _load(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for number, line in enumerate(programs.mixed_load()):
            stack.enter_context(peers.started(line, folder / f"load{number}", session=True))
        yield


def _record(tool: str, rate: int, output: Path) -> Use:
    stdout = peers.stdout_of(tool, output)
    line = peers.command(tool, rate, _SECONDS, output)
    if tool == BPFLAME:
        line.append("--json")  # for the count: only folded text can be counted by others
    peak, kernel, cpu = _watch(line, stdout)
    if tool == BPFLAME:
        samples = int(json.loads(stdout.read_text())["counters"]["samples"])
    else:
        samples = sum(n for name, n in peers.counts(tool, output).items() if name != "swapper")
    return Use(peak, kernel, cpu, output.stat().st_size, samples)


def _script(data: Path, samples: int) -> Use:
    text = data.with_name("memory.text")
    peak, kernel, cpu = _watch([*peers.perf(data), "script", "-i", str(data)], text)
    written = text.stat().st_size
    text.unlink()
    return Use(peak, kernel, cpu, written, samples)


def _watch(line: list[str], stdout: Path) -> tuple[int, int, float]:
    """Run a command; returns its peaks, of resident and of kernel memory, and its CPU seconds."""
    report = stdout.with_name("peak")
    report.write_text("")
    kernel = 0
    with peers.started(programs.peak(report, line), stdout) as process:
        while process.poll() is None:
            words = report.read_text().split()
            if words:
                kernel = max(kernel, kernel_bytes(Path("/proc", words[0])))
            time.sleep(0.2)
        peers.finish(process, stdout)
    peak, cpu = programs.parse_peak(report.read_text())
    return peak, kernel, cpu


def kernel_bytes(process: Path) -> int:
    """Bytes of BPF maps and perf ring buffers of a folder in /proc; 0 if it is gone."""
    maps: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(process / "fdinfo"):
            with contextlib.suppress(OSError):
                maps.update(map_bytes(Path(entry.path).read_text()))
    rings = 0
    with contextlib.suppress(OSError):
        rings = ring_bytes((process / "maps").read_text())
    return sum(maps.values()) + rings


def map_bytes(fdinfo: str) -> dict[str, int]:
    """The id and the bytes of a BPF map, from its fdinfo; of another file, nothing."""
    fields = dict(re.findall(r"^(\w+):\s*(\d+)$", fdinfo, re.MULTILINE))
    return {fields["map_id"]: int(fields["memlock"])} if "map_id" in fields else {}


def ring_bytes(maps: str) -> int:
    """Bytes of the mapped perf ring buffers, from /proc/PID/maps."""
    ranges = re.findall(r"^(\w+)-(\w+) .*\[perf_event\]$", maps, re.MULTILINE)
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def _result(uses: Uses, rounds: int) -> Result:
    ratios: dict[str, Spread] = {}
    for rate in RATES:
        ours = uses[rate, BPFLAME, "folded"]
        for tool, suffix in ((BCC, "folded"), (PERF, "data")):
            theirs = uses[rate, tool, suffix]
            for field in ("peak", "written"):
                pair = [getattr(u, field) for u in ours], [getattr(u, field) for u in theirs]
                ratios[f"{field} {rate} Hz / {tool}"] = spread(paired_ratios(*pair))
    rows = tuple(
        _row(f"{rate} Hz: {tool}, {suffix}", found, rate, tool, ratios)
        for (rate, tool, suffix), found in sorted(uses.items(), key=_order)
    )
    header = ("profiler and output", "peak, MB", "kernel, MB", "CPU, s")
    more = ("written, kB", "samples", "peak: folded bpflame / this one", "written: the same")
    title = f"Peak memory, CPU time and bytes written (rounds: {rounds})"
    return Result(title, _METHOD, (Table((*header, *more), rows),), ratios)


def _order(item: tuple[tuple[int, str, str], list[Use]]) -> tuple[int, int]:
    rate, tool, suffix = item[0]
    variant = (tool, suffix)
    return rate, _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS)


def _row(
    name: str, uses: list[Use], rate: int, tool: str, ratios: dict[str, Spread]
) -> tuple[str, ...]:
    found = (ratios.get(f"{field} {rate} Hz / {tool}") for field in ("peak", "written"))
    return (
        name,
        spread([use.peak for use in uses]).text(".1f", 1e-6),
        f"{spread([use.kernel for use in uses]).median * 1e-6:.1f}",
        f"{spread([use.cpu for use in uses]).median:.2f}",
        spread([use.written for use in uses]).text(".0f", 1e-3),
        f"{spread([use.samples for use in uses]).median:,.0f}",
        *("" if ratio is None else ratio.text(".2f") for ratio in found),
    )
