"""What the profilers wrote: how many samples of which thread, and when the first was taken."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable

from benchmarks.errors import BenchmarkError

STAMP_RANGE = 10**9
"""Stamps are milliseconds modulo this; see ``programs/stamp.c``."""

_STAMP = re.compile(r"t(\d{9})")
_PERF_LINE = re.compile(r"\s*(.*?)\s+(\d+\.\d+):")


def folded_counts(text: str) -> collections.Counter[str]:
    """Samples by root frame, which is the thread's name, of folded stacks.

    Lines that are not a stack and a count are passed over: not every profiler escapes a newline in
    the name of a thread, and anyone may have given one such a name.
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in text.split("\n"):
        stack, _, count = line.rpartition(" ")
        if stack and count.isdecimal():
            counts[stack.split(";", 1)[0]] += int(count)
    return counts


def perf_samples(text: str) -> list[tuple[str, float]]:
    """Thread names and times in seconds, of ``perf script -F comm,time``; other lines are not."""
    matches = (_PERF_LINE.match(line) for line in text.split("\n"))
    return [(match[1], float(match[2])) for match in matches if match is not None]


def first_time(samples: Iterable[tuple[str, float]], started: float) -> float:
    """Seconds from ``started`` to the earliest sample of the stamping thread, by its own time.

    Raises:
        BenchmarkError: There is no such sample.
    """
    times = [time for name, time in samples if _STAMP.fullmatch(name)]
    if not times:
        raise BenchmarkError("no sample of the stamping thread")
    return min(times) - started


def first_stamp(names: Iterable[str], started: float) -> float:
    """Seconds from ``started`` (CLOCK_MONOTONIC) to the earliest stamp among thread names.

    Raises:
        BenchmarkError: There is no stamp, or one is from before the start.
    """
    start = started * 1000
    delays = []
    for name in names:
        match = _STAMP.fullmatch(name)
        if match is not None:
            # A stamp is cut to the millisecond: by that much it can seem to precede the start.
            delay = (int(match[1]) + 1 - start) % STAMP_RANGE - 1
            if delay > STAMP_RANGE / 2:
                raise BenchmarkError(f"{name} is from before the start, {start:.0f}")
            delays.append(delay)
    if not delays:
        raise BenchmarkError("no sample of the stamping thread")
    return max(0.0, min(delays)) / 1000
