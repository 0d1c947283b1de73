"""The workloads: built here, run here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
BUILT = SAMPLES / "build" / "bench"

_SOURCES = Path(__file__).resolve().parent / "programs"
_FLAGS = (
    *("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"),
    *("-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-fno-optimize-sibling-calls"),
)


def build() -> None:
    """Compile the programs of the benchmarks and the sample workloads."""
    BUILT.mkdir(parents=True, exist_ok=True)
    include = SAMPLES / "workloads"
    for source in sorted(_SOURCES.glob("*.c")):
        target = BUILT / source.stem
        line = ["gcc", *_FLAGS, f"-I{include}", "-o", str(target), str(source)]
        subprocess.run(line, check=True)
    subprocess.run(["make", "-s", "-C", str(include)], check=True)


def last_cpu() -> int:
    """The CPU for what is pinned: the first one has most interrupts."""
    return max(os.sched_getaffinity(0))


def stamp() -> list[str]:
    """The command that puts the time into its thread's name."""
    return [str(BUILT / "stamp"), str(last_cpu())]


def work(kind: str, units: int) -> tuple[float, float]:
    """Do a fixed amount of work, ``cpu`` or ``syscalls``.

    Returns:
        Seconds of CPU time of its thread, and of wall time.
    """
    line = [str(BUILT / "work"), kind, str(units), str(last_cpu())]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return parse_times(done.stdout)


def parse_times(text: str) -> tuple[float, float]:
    """Two numbers of nanoseconds, as seconds.

    Raises:
        BenchmarkError: They are not two, or not positive.
    """
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise BenchmarkError(f"not two times: {text!r}")
    return int(words[0]) * 1e-9, int(words[1]) * 1e-9


def units_for(kind: str, seconds: float) -> int:
    """How much work takes about so long here."""
    units = 100
    while True:
        cpu, _ = work(kind, units)
        if cpu >= seconds / 4:
            return max(1, round(units * seconds / cpu))
        units *= 4


def mixed_load() -> list[list[str]]:
    """Commands of a mixed load, each for much longer than any recording."""
    names = ("three_paths", "syscalls", "threads", "virtual_calls", "fork_storm")
    programs = [[str(SAMPLES / "build" / "fp" / name), "3600"] for name in names]
    return [*programs, ["sh", str(SAMPLES / "workloads" / "pipeline.sh"), "3600"]]
