"""The workloads: built here, run here."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
BUILT = SAMPLES / "build" / "bench"

Places = frozenset[tuple[str, int]]
"""Names of files, and addresses in them."""

_LINKER = Path("/lib64/ld-linux-x86-64.so.2")
_LINKER_START = 0x3D  # bytes of _start and _dl_start_user, sysdeps/x86_64/dl-machine.h

SOURCES = Path(__file__).resolve().parent / "programs"
_FLAGS = (
    *("-std=gnu11", "-O2", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"),
    "-fno-optimize-sibling-calls",
)
_FRAME_POINTERS = ("-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer")
DEEP, FRAMELESS = "-30", "-30-nofp"
"""What is added to the names of programs that work at depth 30, with and without frame pointers."""
_VARIANTS = {
    "": _FRAME_POINTERS,
    DEEP: (*_FRAME_POINTERS, "-DDEPTH=30"),
    FRAMELESS: ("-fomit-frame-pointer", "-DDEPTH=30"),
}


def build() -> None:
    """Compile the programs of the benchmarks and the sample workloads."""
    BUILT.mkdir(parents=True, exist_ok=True)
    include = SAMPLES / "workloads"
    for source in sorted(SOURCES.glob("*.c")):
        for variant in _VARIANTS if '"deep.h"' in source.read_text() else ("",):
            target = BUILT / (source.stem + variant)
            flags = (*_FLAGS, *_VARIANTS[variant], f"-I{include}")
            subprocess.run(["gcc", *flags, "-o", str(target), str(source)], check=True)
    subprocess.run(["make", "-s", "-C", str(include)], check=True)


def last_cpu() -> int:
    """The CPU for what is pinned: the first one has most interrupts."""
    return max(os.sched_getaffinity(0))


def stamp() -> list[str]:
    """The command that puts the time into its thread's name."""
    return [str(BUILT / "stamp"), str(last_cpu())]


def peak(report: Path, line: Sequence[str]) -> list[str]:
    """A command, with its peak memory and its CPU time to be found in ``report``."""
    return [str(BUILT / "peak"), str(report), *line]


def parse_peak(text: str) -> tuple[int, float]:
    """Bytes and seconds of a command that has ended, from its report.

    Raises:
        BenchmarkError: It has not ended.
    """
    words = text.split()
    if len(words) != 3:
        raise BenchmarkError(f"not what a command took: {text!r}")
    return int(words[1]) * 1024, int(words[2]) * 1e-6


def work(kind: str, units: int, variant: str = "") -> tuple[float, float]:
    """Do a fixed amount of work, ``cpu`` or ``syscalls``.

    Returns:
        Seconds of CPU time of its thread, and of wall time.
    """
    cpu, wall = _said("work" + variant, kind, units)
    return cpu * 1e-9, wall * 1e-9


def switch(kind: str, units: int, variant: str = "") -> tuple[float, int]:
    """Make a fixed number of switches, ``pingpong`` or ``locks``.

    Returns:
        Seconds of wall time, and the switches that the kernel counted.
    """
    wall, switches = _said("switch" + variant, kind, units)
    return wall * 1e-9, switches


def _said(program: str, kind: str, units: int) -> tuple[int, int]:
    line = [str(BUILT / program), kind, str(units), str(last_cpu())]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return parse_pair(done.stdout)


def parse_pair(text: str) -> tuple[int, int]:
    """The two numbers that a program prints.

    Raises:
        BenchmarkError: They are not two, or not positive.
    """
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise BenchmarkError(f"not two numbers above 0: {text!r}")
    return int(words[0]), int(words[1])


def roots() -> Places:
    """Where the outermost frames of stacks are that may have no names.

    They are those of the C library that call main, or the function of a thread, and the code with
    which the dynamic linker begins.
    """
    done = subprocess.run([str(BUILT / "roots")], check=True, stdout=subprocess.PIPE, text=True)
    # What is shown of a return address is the byte before.
    found = {("libc.so.6", address - 1) for address in parse_pair(done.stdout)}
    with _LINKER.open("rb") as file:
        (entry,) = struct.unpack_from("<Q", file.read(64), 24)  # e_entry
    return frozenset(found | {(_LINKER.name, entry + i) for i in range(_LINKER_START)})


def units_for(seconds: float, measure: Callable[[int], float]) -> int:
    """How many units of work take about so long here, by the seconds that a number of them take."""
    units = 100
    while True:
        taken = measure(units)
        if taken >= seconds / 4:
            return max(1, round(units * seconds / taken))
        units *= 4


def mixed_load() -> list[list[str]]:
    """Commands of a mixed load, each for much longer than any recording."""
    names = ("three_paths", "syscalls", "threads", "virtual_calls", "fork_storm")
    programs = [[str(SAMPLES / "build" / "fp" / name), "3600"] for name in names]
    return [*programs, ["sh", str(SAMPLES / "workloads" / "pipeline.sh"), "3600"]]
