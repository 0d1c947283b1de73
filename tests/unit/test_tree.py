from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.errors import UsageError
from bpflame.flamegraph.folded import read_folded
from bpflame.flamegraph.layout import SPAN, Layout, lay_out
from bpflame.flamegraph.transforms import GROUPINGS, group_by
from bpflame.flamegraph.tree import ROOT, Node, build_tree
from bpflame.profile import Frame, FrameKind, Metadata, Profile, Reason, Sample, Task

NAMES = st.sampled_from(["a", "b", "foo", "foo(int)", "foo::bar", "foo.part.0", "", "é"])
KINDS = st.sampled_from([FrameKind.USER, FrameKind.KERNEL])
FRAMES = st.builds(
    Frame, NAMES, KINDS, st.sampled_from(["", "x", "y"]), st.just("f.c"), st.integers(0, 2)
)
TASKS = st.none() | st.builds(
    Task, st.integers(1, 3), st.integers(1, 3), st.text(max_size=3), st.just("/x")
)
SAMPLES = st.lists(
    st.builds(Sample, st.lists(FRAMES, max_size=6).map(tuple), st.integers(0, 10**6), TASKS),
    max_size=20,
)


def nodes(root: Node) -> list[tuple[int, Node]]:
    found, todo = [], [(0, root)]
    while todo:
        depth, node = todo.pop()
        found.append((depth, node))
        todo.extend((depth + 1, child) for child in reversed(node.children))
    return found


def shape(root: Node) -> list[tuple[int, Frame, int, int]]:
    return [(depth, node.frame, node.self_value, node.total) for depth, node in nodes(root)]


@given(SAMPLES)
def test_the_tree_holds_every_sample_once(samples: list[Sample]) -> None:
    root = build_tree(samples)
    assert root.total == sum(sample.value for sample in samples)
    for _, node in nodes(root):
        assert node.total == node.self_value + sum(child.total for child in node.children)
        keys = [(child.frame.name, child.frame.kind.value) for child in node.children]
        assert keys == sorted(set(keys))
    prefixes = {
        tuple((frame.name, frame.kind) for frame in sample.stack[:length])
        for sample in samples
        for length in range(len(sample.stack) + 1)
    } | {()}
    assert len(nodes(root)) == len(prefixes)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_merge_does_not_depend_on_order(samples: list[Sample], rnd: random.Random) -> None:
    shuffled = list(samples)
    rnd.shuffle(shuffled)
    assert shape(build_tree(shuffled)) == shape(build_tree(samples))


def test_siblings_that_sort_between_a_name_and_its_children() -> None:
    lines = ["main;foo 1", "main;foo(int);x 100", "main;foo;y 100"]
    for order in itertools.permutations(lines):
        (main,) = build_tree(read_folded(order, "x").samples).children
        assert [(n.frame.name, n.total) for n in main.children] == [("foo", 101), ("foo(int)", 100)]


def test_kinds_of_one_name_are_kept_apart() -> None:
    root = build_tree(read_folded(["f 1", "f_[k] 2", "f_[j] 4"], "x").samples)
    assert [node.frame.kind.value for node in root.children] == ["jit", "kernel", "user"]


def test_chains_of_wakers_merge_as_far_as_they_agree() -> None:
    lines = ["f;--;f_[w];a_[w] 1", "f;--;f_[w];--;b_[w] 2", "f;--;f 4", "f;[blocked] 8", "f;f 16"]
    root = build_tree(read_folded(lines, "x").samples)
    assert [(depth, n.frame.name, n.frame.kind.value, n.total) for depth, n in nodes(root)[1:]] == [
        (1, "f", "user", 31),
        (2, "--", "separator", 7),
        (3, "f", "user", 4),
        (3, "f", "waker", 3),
        (4, "--", "separator", 2),
        (5, "b", "waker", 2),
        (4, "a", "waker", 1),
        (2, "[blocked]", "wait", 8),
        (2, "f", "user", 16),
    ]


def test_a_node_keeps_what_its_frames_agree_on() -> None:
    here = Frame("f", module="m", file="f.c", line=1, unnamed=Reason.NO_SYMBOL)
    there = Frame("f", module="m", file="f.c", line=2, unnamed=Reason.UNMAPPED)
    elsewhere = Frame("f", module="n", file="g.c", line=2)
    (node,) = build_tree([Sample((here,), 1), Sample((there,), 1)]).children
    assert node.frame == Frame("f", module="m", file="f.c", unnamed=Reason.UNMAPPED)
    (node,) = build_tree([Sample((f,), 1) for f in (here, there, elsewhere)]).children
    assert node.frame == Frame("f")
    # Agreement is per place: main of another program does not blur this one.
    apart = build_tree([Sample((Frame("a"), here), 1), Sample((Frame("b"), there), 1)])
    assert [node.children[0].frame for node in apart.children] == [here, there]


def test_empty() -> None:
    root = build_tree(())
    assert (root.frame, root.total, root.children) == (ROOT, 0, [])
    assert lay_out(root).boxes == []


def test_ten_thousand_frames_deep() -> None:
    deep = tuple(Frame(f"f{n}") for n in range(10_000))
    root = build_tree([Sample(deep, 1), Sample(deep[:5000], 1)])
    assert lay_out(root).rows == 10_001
    assert root.total == 2


def drawn_and_hidden(root: Node, layout: Layout, least: float) -> None:
    """At each depth, what is drawn and what is hidden make up what the drawn parents hold."""
    drawn_at: dict[int, int] = {}
    for box in layout.boxes:
        drawn_at[box.depth] = drawn_at.get(box.depth, 0) + box.value
    missing = 0
    for depth, parents in itertools.groupby(
        sorted((b for b in layout.boxes if b.node), key=lambda b: b.depth), key=lambda b: b.depth
    ):
        inside = [child for b in parents if b.node for child in b.node.children]
        narrow = [child.total for child in inside if child.total < least]
        missing += sum(narrow)
        blocks = sum(b.value for b in layout.boxes if b.depth == depth + 1 and not b.node)
        wide = sum(child.total for child in inside if child.total >= least)
        assert drawn_at.get(depth + 1, 0) == wide + blocks
        assert blocks <= sum(narrow)
    assert missing == layout.hidden_value


@given(SAMPLES, st.sampled_from([0.0, 0.01, 0.1, 0.3]))
def test_layout_loses_nothing(samples: list[Sample], minwidth: float) -> None:
    root = build_tree(samples)
    layout = lay_out(root, minwidth)
    count = len(nodes(root)) - (not root.total)
    assert len([box for box in layout.boxes if box.node]) + layout.hidden_frames == count
    drawn_and_hidden(root, layout, max(root.total * minwidth, root.total / SPAN, 1e-9))


@given(SAMPLES, st.sampled_from([0.0, 0.1]))
def test_boxes_nest_and_never_overlap(samples: list[Sample], minwidth: float) -> None:
    path: list[tuple[int, int]] = []
    right: dict[int, int] = {}
    for box in lay_out(build_tree(samples), minwidth).boxes:
        assert 0 <= box.x0 < box.x1 <= SPAN
        del path[box.depth :]
        assert len(path) == box.depth, "in preorder"
        if path:
            assert path[-1][0] <= box.x0
            assert box.x1 <= path[-1][1]
        assert box.x0 >= right.get(box.depth, 0)
        right[box.depth] = box.x1
        path.append((box.x0, box.x1))


def test_narrow_siblings_share_a_block() -> None:
    lines = [f"main;tiny{n};deeper 1" for n in range(10)] + ["main;wide 90"]
    layout = lay_out(build_tree(read_folded(lines, "x").samples), 0.05)
    assert (layout.hidden_frames, layout.hidden_value) == (20, 10)
    block = layout.boxes[-1]
    assert (block.node, block.hidden, block.value, block.x1) == (None, 20, 10, SPAN)


def test_positions_stay_exact_for_large_counts() -> None:
    layout = lay_out(build_tree(read_folded([f"a {10**15}", f"b {3 * 10**15}"], "x").samples))
    assert [(box.x0, box.x1) for box in layout.boxes] == [
        (0, SPAN),
        (0, SPAN // 4),
        (SPAN // 4, SPAN),
    ]


MAIN = (Frame("main"),)


def profile(*tasks: Task | None) -> Profile:
    samples = tuple(Sample(MAIN, n + 1, task) for n, task in enumerate(tasks))
    return Profile("cpu", "samples", samples, Metadata(host="h"))


@given(SAMPLES, st.sampled_from(sorted(GROUPINGS)))
def test_grouping_conserves_the_total(samples: list[Sample], by: str) -> None:
    before = Profile("cpu", "ns", tuple(samples))
    after = group_by(before, by)
    assert after.total == before.total
    assert build_tree(after.samples).total == build_tree(before.samples).total


@pytest.mark.parametrize(
    ("by", "roots"),
    [
        ("comm", ["nginx"]),
        ("pid", ["nginx-12"]),
        ("tid", ["nginx-12/14"]),
        ("cgroup", ["/system.slice/nginx.service", "nginx"]),
    ],
)
def test_group_by(by: str, roots: list[str]) -> None:
    grouped = group_by(profile(Task(12, 14, "nginx", "/system.slice/nginx.service"), None), by)
    first, second = grouped.samples
    assert first.stack == (*(Frame(root, FrameKind.PROCESS) for root in roots), *MAIN)
    assert second.stack == MAIN
    assert grouped.meta.host == "h"


def test_grouping_by_what_was_not_recorded() -> None:
    with pytest.raises(UsageError, match="did not tell threads apart"):
        group_by(profile(Task(1, 0, "a")), "tid")
    with pytest.raises(UsageError, match="did not keep cgroups"):
        group_by(profile(Task(1, 1, "a")), "cgroup")
    with pytest.raises(UsageError, match="cannot group by colour"):
        group_by(profile(), "colour")


@pytest.mark.parametrize("by", sorted(GROUPINGS))
def test_an_interrupt_has_only_its_name(by: str) -> None:
    tasks = (Task(0, 0, "[timer]"), Task(7, 8, "[timer]", "/x"))
    interrupt, thread = group_by(profile(*tasks), by).samples
    assert interrupt.stack == (Frame("[timer]", FrameKind.PROCESS), *MAIN)
    assert (thread.stack == interrupt.stack) is (by == "comm")


def test_the_idle_task_has_no_thread_id_anyway() -> None:
    grouped = group_by(profile(Task(0, 0, "swapper/0"), Task(1, 1, "init")), "tid")
    assert grouped.samples[0].stack[0].name == "swapper/0-0/0"
