"""The walk of the BPF programs and the one in Python: the same, whatever tables and stacks say.

Tables, mappings and stacks are made by Random: of hypothesis' own values too many are alike for
stacks to get deep.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bpflame.bpf.unwind.arena import Arena, Placed
from bpflame.bpf.unwind.copies import Copy, Place
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.bpf.unwind.table import PAGE, Table
from bpflame.bpf.unwind.walk import WHY_FRAMES, WHY_LATER, WHY_NO_TABLE, Walked, Walker
from bpflame.raw import StackEnd
from tests.unit import walk_harness
from tests.unit.unwind_fakes import arena, leave, mapped

CODE, STACK = 0x400000, 0x7FFD00000000
VSYSCALL = 0xFFFFFFFFFF600000
WHYS = [None, WHY_NO_TABLE, WHY_FRAMES, WHY_LATER]
PLAIN = [8, 16, 24, 32, 64]
ODD_OFFSETS = [0, -8, 12, 4096, 2**31 - 8, -(2**31)]
SIMPLE = [Cfa.GAP, Cfa.SIGNAL, Cfa.END, Cfa.UNSUPPORTED, Cfa.FRAME]


def random_rule(random: Random, wild: bool) -> int:
    weights = (
        [2, 60, 8, 3, 4, 4, 2, 4, 1, 1, 3, 2] if wild else [1, 400, 9, 3, 3, 3, 2, 6, 1, 1, 3, 2]
    )
    kind = random.choices(list(Cfa), weights)[0]
    if kind in SIMPLE:
        return pack(kind)
    offset = random.choice(PLAIN)
    if kind is Cfa.PLT:
        offset = random.randrange(16)
    elif kind in (Cfa.AT_SP, Cfa.AT_BP):
        offset = random.choice([-16, -8, 0, 8, 24]) << 8 | random.choice([0, 8, 16, 255])
    elif wild and random.random() < 0.3:
        offset = random.choice(ODD_OFFSETS)
    bp_kind = random.choices(list(Bp), [4, 3, 2, 1] if wild else [40, 10, 1, 1])[0]
    bp_offset = random.choice([-16, -16, -24, -128, 0, 8, -(2**15), 2**15 - 1][: 8 if wild else 3])
    return pack(kind, offset, bp_kind, bp_offset if bp_kind in (Bp.AT_CFA, Bp.AT_BP) else 0)


def random_table(random: Random, rules: list[int]) -> Table:
    pages = np.zeros(random.randint(1, 3), PAGE)
    rows: list[int] = []
    for i in range(len(pages)):
        count = random.choice([0, 1, 2, 3, 17, 200, 4095])
        pages[i] = (len(rows), count, random.randrange(len(rules)))
        lows = sorted(random.sample(range(4096), count))
        rows += [low << 16 | random.randrange(len(rules)) for low in lows]
    return Table(0, pages, np.array(rows, np.uint32), np.array(rules, np.uint64))


class Scene:
    """A random program with its stack.

    Some are wild; in others most rules and words are as in a program that works.
    """

    def __init__(self, words: Arena, random: Random) -> None:
        self.random, self.wild = random, random.random() < 0.4
        leave(words, 8 * random.randint(0, 600))
        self.rules = list({random_rule(random, self.wild) for _ in range(random.randint(1, 30))})
        self.code: list[range] = []
        records = []
        start = CODE
        for _ in range(random.randint(1, 5)):
            why = random.choices(WHYS, [12 if self.wild else 60, 1, 2, 1])[0]
            end = start + 4096 * random.randint(1, 3)
            records.append((start, end, 0, 0, why or 0))
            if why is None:
                table = random_table(random, self.rules)
                placed = Placed(words, table, np.arange(len(self.rules), dtype=np.uint32))
                end = start + 4096 * placed.count + random.choice([0, 0, 0, 4096, -100])
                records[-1] = (start, end, -start, placed.pages, placed.count)
            self.code.append(range(start, end + 1))
            start = end + -end % 4096 + 4096 * random.choice([0, 1, 300])
        self.block = mapped(words, records)
        self.size = 4096 * random.randint(1, 3)
        content = [self.word() for _ in range(self.size // 8)]
        self.memory = struct.pack(f"<{len(content)}Q", *content)

    def odd(self) -> int:
        some = [0, 1, 5, 1 << 63, VSYSCALL, VSYSCALL + 1, VSYSCALL + 4096, 2**64 - 1]
        in_stack = STACK + self.random.randrange(self.size)
        return self.random.choice([*some, in_stack, self.random.getrandbits(64)])

    def place(self) -> int:
        span = self.random.choice(self.code)
        ends = (span[0], span[0] + 1, span[-1])
        return self.random.choice(ends if self.random.random() < 0.05 else span)

    def in_stack(self, most: int) -> int:
        return STACK + 8 * self.random.randrange(most // 8)

    def word(self) -> int:
        number = self.random.random()
        if number < (0.05 if self.wild else 0.003):
            return self.odd()
        return self.place() if number < (0.7 if self.wild else 0.95) else self.in_stack(self.size)

    def leaf(self) -> Place:
        odd = self.random.random
        return Place(
            self.odd() if odd() < 0.02 else self.place(),
            self.odd() if odd() < 0.02 else self.in_stack(512),
            self.odd() if odd() < 0.1 else self.in_stack(self.size),
            self.odd() if odd() < 0.1 else self.in_stack(self.size),
            self.odd() if odd() < 0.1 else self.place(),
            self.random.random() < 0.7,
        )


def check_scene(seed: int, walks: int = 12) -> Iterator[Walked]:
    random = Random(seed)  # noqa: S311
    with arena(2) as words:
        scene = Scene(words, random)
        pages = range(0, scene.size, 4096)
        memory = tuple((STACK + at, scene.memory[at : at + 4096]) for at in pages)
        for _ in range(walks):
            leaf, most = scene.leaf(), random.choice([1, 5, 40, 127, 127])
            walker = Walker(words, scene.block, len(scene.code), scene.rules, most)
            python = walker.walk(leaf, Copy(2, 1, 0, leaf, memory).word)
            c = walk_harness.walk(leaf, scene.rules, scene.block, len(scene.code), memory, most)
            assert c == python, leaf
            yield c


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_both_walks_give_the_same_stack(seed: int) -> None:
    assert len(list(check_scene(seed))) == 12


def test_the_scenes_have_stacks_of_all_kinds() -> None:
    """Else the test above would say little."""
    found = [walked for seed in range(100) for walked in check_scene(seed)]
    ends = {walked.end for walked in found}
    assert ends == set(StackEnd) - {StackEnd.UNTOLD, StackEnd.NARROW}
    assert {walked.guessed for walked in found} == {False, True}
    assert sum(len(walked.ips) > 4 for walked in found) > len(found) / 10
