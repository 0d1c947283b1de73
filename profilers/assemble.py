"""What a finished recording amounts to: sums, stacks and mappings, put together by key."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping as Dict
from pathlib import Path

from bpflame.bpf import counters as names
from bpflame.profile import Metadata, Task
from bpflame.profilers.counting import CountKey, StackCounts
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.target import Target, cgroup_names
from bpflame.raw import FileKey, RawProfile, RawSample


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
    counts: StackCounts,
    tracker: ProcessTracker,
    files: Dict[FileKey, int],
    target: Target,
    meta: Metadata,
    counters: Dict[str, int],
) -> RawProfile:
    """Put a recording together, while the kernel still has the programs that were running.

    Args:
        kind: What was measured.
        counts: All drained.
        tracker: Who mapped what.
        files: Open descriptors of mapped files.
        target: Whom to keep: names are matched here, not in the kernel.
        meta: What the recorder knows; the rest is filled in.
        counters: More to account for than the BPF program counts.
    """
    groups = cgroup_names() if any(key.cgroup for key, _ in counts.items()) else {}
    samples, others = [], 0
    for key, value in counts.items():
        sample = _sample(key, value, counts, tracker, groups)
        if target.comm is None or target.comm.search(sample.task.comm):
            samples.append(sample)
        else:
            others += value if kind.unit == "samples" else 0  # else a weight, not a number
    total = counts.counters.total
    kernel = any(sample.kernel for sample in samples)
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
                "lost_samples": total(names.LOST_SAMPLES),
                "lost_value": total(names.LOST_VALUE),
                "lost_stacks": total(names.LOST_STACKS),
                "lost_children": total(names.LOST_CHILDREN),
                "own_samples": total(names.OWN),
                "idle_samples": total(names.IDLE),
                **counters,
            },
        ),
    )


def _sample(
    key: CountKey,
    value: int,
    counts: StackCounts,
    tracker: ProcessTracker,
    groups: Dict[int, str],
) -> RawSample:
    comm = os.fsdecode(key.comm.split(b"\0", 1)[0])
    cgroup = groups.get(key.cgroup, f"cgroup {key.cgroup}") if key.cgroup else ""
    return RawSample(
        Task(key.pid, key.tid, comm, cgroup),
        tracker.find(key.pid, key.born),
        counts.stack(key.user),
        counts.stack(key.kernel),
        counts.lost(key.user) or counts.lost(key.kernel),
        value,
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # a kernel without modules, or hidden from us
        return b""
