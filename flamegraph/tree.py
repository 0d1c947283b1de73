"""Merge samples into a call tree: frames of one name and kind under one parent are one node."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bpflame.flamegraph import collector
from bpflame.profile import Frame, FrameKind, Sample

ROOT = Frame("all", FrameKind.PROCESS)
"""The frame of the root, which stands for the whole profile."""


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """One function at one place in the tree.

    Attributes:
        frame: What is known of all the frames merged here: a module, file or line in which they
            differ is left out.
        self_value: The weight of the samples that end here.
        total: ``self_value`` and that of all descendants.
        children: Sorted by name, then kind.
    """

    frame: Frame
    self_value: int = 0
    total: int = 0
    children: list[Node] = dataclasses.field(default_factory=list, repr=False)


@collector.paused()
def build_tree(samples: Sequence[Sample]) -> Node:
    """The call tree of the samples, whatever their order; its root is :data:`ROOT`.

    Sorts the stacks frame by frame and walks them, so that each node is opened once and closed
    once, children come out sorted, and depth costs no recursion. Sorting the lines of a folded
    file as text instead, as is common, opens ``foo`` twice when ``foo(int)`` sorts in between.
    """
    ranks = _ranks(samples)
    keys = [tuple([ranks[id(frame)] for frame in sample.stack]) for sample in samples]
    root = Node(ROOT)
    path = [root]
    key: tuple[int, ...] = ()
    stack: tuple[Frame, ...] = ()
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        sample = samples[index]
        common = _common_prefix(key, keys[index])
        if stack[:common] != sample.stack[:common]:
            for node, frame in zip(path[1 : common + 1], sample.stack[:common], strict=True):
                node.frame = _shared(node.frame, frame)
        _close(path, common + 1)
        for frame in sample.stack[common:]:
            node = Node(frame)
            path[-1].children.append(node)
            path.append(node)
        path[-1].self_value += sample.value
        key, stack = keys[index], sample.stack
    _close(path, 1)
    root.total += root.self_value
    return root


def _ranks(samples: Sequence[Sample]) -> dict[int, int]:
    """By identity of a frame, its place among all names and kinds.

    Producers intern their frames, so identities are few; hashing 2.7 million frames by value
    would take longer than the rest of the merge.
    """
    frames = {id(frame): frame for sample in samples for frame in sample.stack}
    keys = {identity: (frame.name, frame.kind.value) for identity, frame in frames.items()}
    order = {key: rank for rank, key in enumerate(sorted(set(keys.values())))}
    return {identity: order[key] for identity, key in keys.items()}


def _common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def _close(path: list[Node], length: int) -> None:
    """Close the open nodes beyond ``length``: nothing more will be added to their totals."""
    while len(path) > length:
        node = path.pop()
        node.total += node.self_value
        path[-1].total += node.total


def _shared(left: Frame, right: Frame) -> Frame:
    """What two frames of one name and kind agree on, independent of the order they come in."""
    if left == right:
        return left
    file = left.file if left.file == right.file else ""
    reasons = [frame.unnamed for frame in (left, right) if frame.unnamed is not None]
    return Frame(
        name=left.name,
        kind=left.kind,
        module=left.module if left.module == right.module else "",
        file=file,
        line=left.line if file and left.line == right.line else 0,
        unnamed=min(reasons) if len(reasons) == 2 else None,
    )
