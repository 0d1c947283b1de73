"""Where the boxes of a flame graph go: a call tree as intervals on rows."""

from __future__ import annotations

import dataclasses
import math

from bpflame.flamegraph import collector
from bpflame.flamegraph.tree import Node

SPAN = 10_000_000
"""The width of the whole profile, in the units of :class:`Box`.

Renderers hold coordinates as 32-bit floats, which are exact for whole numbers up to 2**24.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """One frame, or one block of frames too narrow to draw.

    Attributes:
        depth: 0 for the root.
        x0: Left edge, 0 to :data:`SPAN`.
        x1: Right edge; greater than ``x0``.
        value: What the width stands for, exactly.
        node: The node; None for a block of children of one node that are too narrow.
        hidden: Frames behind the block, all depths; 0 with a node.
    """

    depth: int
    x0: int
    x1: int
    value: int
    node: Node | None
    hidden: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """The boxes of a picture and what is not among them.

    Attributes:
        boxes: In preorder: a parent before its children, left to right.
        rows: Depth of the deepest box, plus one; 0 without boxes.
        hidden_frames: Frames that have no box of their own.
        hidden_value: The samples that end in those frames.
    """

    boxes: list[Box]
    rows: int
    hidden_frames: int
    hidden_value: int


@collector.paused()
def lay_out(root: Node, minwidth: float = 0.0) -> Layout:
    """Place the nodes of a tree.

    Siblings keep their order. Those narrower than ``minwidth`` are moved to the right of the
    others, where one block stands for all of them if together they are wide enough; if not, that
    stretch stays empty. Either way they are counted.

    Args:
        root: A tree of :func:`bpflame.flamegraph.tree.build_tree`.
        minwidth: The least width of a box, as a share of the whole width, 0 to 1.
    """
    total = root.total
    boxes: list[Box] = []
    rows = hidden_frames = hidden_value = 0
    if total <= 0:
        return Layout(boxes, 0, sum(_count(child) for child in root.children), 0)
    # A box less than one unit wide could round to no width at all.
    least = max(math.ceil(total * minwidth), -(-total // SPAN))
    todo: list[tuple[Box, int]] = [(Box(0, 0, SPAN, total, root), 0)]
    while todo:
        box, start = todo.pop()
        boxes.append(box)
        rows = max(rows, box.depth + 1)
        if box.node is None:
            continue
        drawn = [child for child in box.node.children if child.total >= least]
        placed: list[tuple[Box, int]] = []
        for child in drawn:
            placed.append((_box(box.depth + 1, start, child.total, total, child), start))
            start += child.total
        if len(drawn) < len(box.node.children):
            narrow = [child for child in box.node.children if child.total < least]
            value = sum(child.total for child in narrow)
            frames = sum(_count(child) for child in narrow)
            hidden_frames += frames
            hidden_value += value
            if value >= least:
                placed.append((_box(box.depth + 1, start, value, total, None, frames), start))
        todo.extend(reversed(placed))
    return Layout(boxes, rows, hidden_frames, hidden_value)


def _box(depth: int, start: int, value: int, total: int, node: Node | None, hidden: int = 0) -> Box:
    x0 = start * SPAN // total
    return Box(depth, x0, (start + value) * SPAN // total, value, node, hidden)


def _count(node: Node) -> int:
    """How many nodes a subtree has."""
    count, todo = 0, [node]
    while todo:
        node = todo.pop()
        count += 1
        todo.extend(node.children)
    return count
