"""What a finished recording amounts to: sums, stacks and mappings, put together by key."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bpflame.bpf import counters as names
from bpflame.profile import PARTIAL, Metadata
from bpflame.profilers.counting import Counts
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.target import Target, cgroup_names
from bpflame.raw import TRUNCATED, Context, FileKey, RawProfile, RawSample, RawWaker, StackEnd

_ALWAYS = (names.LOST_SAMPLES, names.LOST_VALUE, names.LOST_STACKS, names.LOST_CHILDREN)
_IF_ANY = (
    names.LOST_THREADS,
    names.LOST_WAKERS,
    names.FILTERED,
    names.NEGATIVE,
    names.MISSED,
    names.RECALLED,
    names.MISTAKEN,
    names.COPIES,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a recording measures.

    Attributes:
        name: The question asked: ``cpu``, ...
        unit: Of the values.
    """

    name: str
    unit: str


def assemble(
    kind: Kind,
    counts: Counts,
    tracker: ProcessTracker,
    files: Mapping[FileKey, int],
    target: Target,
    meta: Metadata,
    extra: Mapping[str, int],
) -> RawProfile:
    """Put a recording together, while the kernel still has the programs that were running.

    Args:
        kind: What was measured.
        counts: All drained.
        tracker: Who mapped what.
        files: Open descriptors of mapped files.
        target: Whom to keep: names are matched here, not in the kernel.
        meta: What the recorder knows; the rest is filled in.
        extra: More to account for than the BPF program counts.
    """
    samples, others = [], 0
    for sample in counts.samples(tracker, functools.cache(cgroup_names)):
        if target.comm is None or target.comm.search(sample.task.comm):
            samples.append(sample)
        else:
            others += sample.value if kind.unit == "samples" else 0  # else a weight, not a number
    total = counts.counters.total
    doubts = uncertain(samples) if kind.unit == "ns" else {}
    kernel = any(s.kernel or any(waker.kernel for waker in s.wakers) for s in samples)
    return RawProfile(
        kind.name,
        kind.unit,
        tuple(samples),
        files,
        _read("/proc/kallsyms") if kernel else b"",
        _read("/proc/modules") if kernel else b"",
        dataclasses.replace(
            meta,
            target=meta.target or target.describe(),
            host=platform.node(),
            kernel=platform.release(),
            counters={
                "samples": total(names.SAMPLES) - others,
                **{name: total(name) for name in _ALWAYS},
                "own_samples": total(names.OWN),
                "idle_samples": total(names.IDLE),
                **{name: total(name) for name in _IF_ANY if total(name)},
                **counts.extra(),
                **doubts,
                **ends(samples),
                **extra,
            },
        ),
    )


def uncertain(samples: Sequence[RawSample]) -> dict[str, int]:
    """How much of the waiting is known in part only, ns."""
    return {
        "unknown_waker_ns": sum(
            s.value for s in samples if s.wakers and s.wakers[0].context is Context.UNKNOWN
        ),
        "partial_ns": sum(s.value for s in samples if PARTIAL in s.waits),
    }


def ends(samples: Sequence[RawSample]) -> dict[str, int]:
    """How many user stacks are whole, and why the others are not; each counts its weight.

    The stack of a waker counts as much as that of who waited.
    """
    counts: Counter[str] = Counter()
    for sample in samples:
        parts: list[RawSample | RawWaker] = [sample]
        parts += [waker for waker in sample.wakers if not waker.bare]
        for part in parts:
            if part.end is StackEnd.UNTOLD:
                counts["untold_stacks"] += sample.value if part.user else 0
                continue
            why = TRUNCATED.get(part.end)
            counts["user_stacks"] += sample.value
            counts[f"truncated: {why}" if why else "complete_stacks"] += sample.value
            counts["guessed_stacks"] += sample.value if part.guessed else 0
    return {name: count for name, count in sorted(counts.items()) if count}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # a kernel without modules, or hidden from us
        return b""
