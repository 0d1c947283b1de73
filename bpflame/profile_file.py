"""The ``.bpflame`` file: a profile that can be drawn many ways later, on another machine.

gzip of one JSON document; docs/format.md describes it. Frames and stacks are stored once each,
stacks as a tree in which a parent comes before its children.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from typing import IO, Any

from bpflame.errors import InputError
from bpflame.profile import Frame, FrameKind, Metadata, Profile, Reason, Sample, Task

VERSION = 1
MAGIC = b"\x1f\x8b"
_MAX_BYTES = 1 << 30  # of JSON, against a file made to fill the memory


def write_profile(profile: Profile, out: IO[bytes]) -> None:
    """Write a profile; equal profiles give equal bytes."""
    frames: dict[Frame, int] = {}
    tasks: dict[Task | None, int] = {}
    nodes: dict[tuple[int, int], int] = {}
    samples = []
    for sample in profile.samples:
        node = -1
        for frame in sample.stack:
            number = frames.setdefault(frame, len(frames))
            node = nodes.setdefault((node, number), len(nodes))
        samples.append([node, tasks.setdefault(sample.task, len(tasks)), sample.value])
    document = {
        "bpflame": VERSION,
        "kind": profile.kind,
        "unit": profile.unit,
        "meta": {**dataclasses.asdict(profile.meta), "counters": dict(profile.meta.counters)},
        "frames": [
            [f.name, f.kind.value, f.module, f.file, f.line, f.unnamed and f.unnamed.value]
            for f in frames
        ],
        "tasks": [task and [task.pid, task.tid, task.comm, task.cgroup] for task in tasks],
        "stacks": list(nodes),
        "samples": samples,
    }
    text = json.dumps(document, separators=(",", ":"), sort_keys=True)
    with gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
        packed.write(text.encode())


def read_profile(data: IO[bytes], name: str) -> Profile:
    """Read a profile back.

    Args:
        data: The file's bytes.
        name: What to call the file in errors.

    Raises:
        InputError: It is not such a file, damaged, or of a later version.
    """
    try:
        with gzip.GzipFile(fileobj=data) as packed:
            text = packed.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(name, f"not a bpflame profile: {error}") from error
    if len(text) > _MAX_BYTES:
        raise InputError(name, f"too large: more than {_MAX_BYTES >> 20} MB unpacked")
    try:
        document = json.loads(text)
        version = document["bpflame"]
        if version != VERSION:
            raise InputError(
                name,
                f"written in version {version!r} of the format",
                f"this bpflame reads {VERSION}",
            )
        return _profile(document)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(name, f"damaged: {type(error).__name__} {error}") from error


def _profile(document: dict[str, Any]) -> Profile:
    frames = [
        Frame(str(name), FrameKind(kind), str(module), str(file), int(line), _reason(reason))
        for name, kind, module, file, line, reason in document["frames"]
    ]
    tasks = [
        None if task is None else Task(int(task[0]), int(task[1]), str(task[2]), str(task[3]))
        for task in document["tasks"]
    ]
    parents, tops = [], []
    for node, (parent, frame) in enumerate(document["stacks"]):
        if not -1 <= parent < node:
            raise ValueError("a stack refers to what comes later")
        parents.append(parent)
        tops.append(frames[_index(frame)])
    samples = []
    for node, task, value in document["samples"]:
        if not -1 <= node < len(tops) or not isinstance(value, int) or value < 0:
            raise ValueError("a sample refers to nothing")
        stack = []
        while node >= 0:
            stack.append(tops[node])
            node = parents[node]
        samples.append(Sample(tuple(reversed(stack)), value, tasks[_index(task)]))
    return Profile(
        str(document["kind"]),
        str(document["unit"]),
        tuple(samples),
        _metadata(document["meta"]),
    )


def _index(number: int) -> int:
    if number < 0:
        raise IndexError(number)
    return number


def _reason(value: str | None) -> Reason | None:
    return None if value is None else Reason(value)


def _metadata(fields: dict[str, Any]) -> Metadata:
    known = {
        name: type(value)(fields[name])
        for name, value in dataclasses.asdict(Metadata()).items()
        if name in fields and name != "counters"
    }
    if not 0 <= known.get("start", 0) < 1e11 or not 0 <= known.get("duration", 0) < 1e11:
        raise ValueError("start or duration out of range")
    counters = {str(name): int(count) for name, count in fields.get("counters", {}).items()}
    return Metadata(**known, counters=counters)
