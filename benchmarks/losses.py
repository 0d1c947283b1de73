"""What the tools say that they lost."""

from __future__ import annotations

import json
import mmap
import re
import struct
from pathlib import Path

from benchmarks.errors import BenchmarkError

_RECORD = struct.Struct("<IHH")  # type, misc, size: struct perf_event_header
_LOST, _LOST_SAMPLES = 2, 13  # PERF_RECORD_*, include/uapi/linux/perf_event.h
_DATA_SECTION = 40  # where the header of perf.data has its offset and its size
_MAGIC = b"PERFILE2"


def bpflame_losses(summary: str) -> int:
    """Of all kinds, from what ``--json`` prints: all ``lost_`` counters but the weight of the lost.

    Raises:
        BenchmarkError: It is no such summary.
    """
    try:
        counters = json.loads(summary)["counters"]
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"not a summary of bpflame: {summary!r}") from None
    return sum(
        int(value)
        for name, value in counters.items()
        if (name.startswith("lost_") and name != "lost_value") or name == "negative_waits"
    )


def perf_losses(data: Path) -> int:
    """Events that perf record had no room for, from its perf.data.

    The kernel tells of losses in the ring buffer, as soon as there is room again; from version 6.1
    on perf adds at the end what each event's own count says, which has the last losses as well.

    Raises:
        BenchmarkError: It is no whole perf.data.
    """
    found = {_LOST: 0, _LOST_SAMPLES: 0}
    try:
        with open(data, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # it can be gigabytes
        at, length = struct.unpack_from("<QQ", content, _DATA_SECTION)
        end = at + length
        while at < end:
            kind, _, size = _RECORD.unpack_from(content, at)
            if size < _RECORD.size:
                raise BenchmarkError(f"{data}: a record of {size} bytes")
            if kind in found:
                # The number is the second of a LOST record, after the event's id, else the first.
                place = at + _RECORD.size + (8 if kind == _LOST else 0)
                found[kind] += struct.unpack_from("<Q", content, place)[0]
            at += size
    except (struct.error, ValueError):  # a file of no size cannot be mapped
        raise BenchmarkError(f"{data}: cut short") from None
    if content[: len(_MAGIC)] != _MAGIC or not length:
        raise BenchmarkError(f"{data}: not perf.data, or perf did not end it")
    return max(found.values())


def bpftrace_losses(text: str) -> int:
    """Events and stacks, by its messages; about what its full maps refuse it says nothing."""
    events = sum(int(number) for number in re.findall(r"\bLost (\d+) events", text))
    return events + text.count("failed to look up stack id")
