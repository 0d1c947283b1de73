"""The memory of unwind tables: who has which words, and tables that reach over chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpflame.bpf.unwind.arena import (
    CHUNK_WORDS,
    MAPPING_WORDS,
    MAX_MAPPINGS,
    Arena,
    NoRoom,
    Placed,
)
from bpflame.bpf.unwind.copies import Place
from bpflame.bpf.unwind.rules import Cfa, pack
from bpflame.bpf.unwind.table import MAX_ROWS_OF_PAGE, PAGE, Table
from bpflame.bpf.unwind.walk import Walker
from bpflame.raw import StackEnd
from tests.unit.eh_frame_builder import lookup
from tests.unit.unwind_fakes import arena, fake_bpf, leave, mapped
from tests.unit.walk_harness import library

BASE = 0x400000
RULES = [pack(Cfa.SP, 8 * (number + 1)) for number in range(200)]
"""The rule of number n takes n + 1 words."""


def table_of(*pages: tuple[list[int], int], first: int = 0) -> Table:
    """A table: of each page where rules begin and the one before; the rules go round."""
    records = np.zeros(len(pages), PAGE)
    rows: list[int] = []
    for i, (lows, carry) in enumerate(pages):
        records[i] = (len(rows), len(lows), carry)
        rows += [low << 16 | (len(rows) + n) % len(RULES) for n, low in enumerate(lows)]
    made = Table(first, records, np.array(rows, np.uint32), np.array(RULES, np.uint64))
    made.check()
    return made


def numbers(shift: int = 0) -> np.ndarray:
    """What the programs call the rules: n + shift."""
    return np.arange(shift, len(RULES) + shift, dtype=np.uint32)


def test_a_place_is_taken_once_and_given_back() -> None:
    with arena(1) as words:
        first, second = words.take(3, whole=True), words.take(9, whole=True)
        assert (first, second) == (8, 16)  # 0 to 8 stay free: place 0 means nothing
        words.give(8, 3)
        assert words.take(16, whole=True) == 32
        assert words.take(8, whole=True) == 8


def test_what_is_given_back_grows_together() -> None:
    with arena(1) as words:
        places = [words.take(CHUNK_WORDS // 4 - 8, whole=True) for _ in range(4)]
        assert None not in places
        for place in (places[0], places[2], places[1], places[3]):
            words.give(place, CHUNK_WORDS // 4 - 8)
        assert words.take(CHUNK_WORDS - 8, whole=True) == 8
        assert words.take(1, whole=False) is None


def test_there_are_no_more_chunks_than_allowed() -> None:
    with arena(3) as words:
        assert words.size == 1 << 20
        assert words.take(CHUNK_WORDS, whole=True) == CHUNK_WORDS
        assert words.take(CHUNK_WORDS, whole=True) == 2 * CHUNK_WORDS
        assert words.size == 3 << 20
        assert words.take(CHUNK_WORDS, whole=True) is None
        assert words.take(CHUNK_WORDS - 8, whole=True) == 8


def test_nothing_whole_is_larger_than_a_chunk() -> None:
    with arena(4) as words:
        assert words.take(CHUNK_WORDS + 1, whole=True) is None
        assert words.size == 1 << 20
        assert words.take(CHUNK_WORDS + 1, whole=False) == 8


def test_a_chunk_that_the_kernel_refuses_is_no_room() -> None:
    with fake_bpf() as bpf:
        words = Arena(bpf, 4)
        bpf.refused = True
        assert words.take(CHUNK_WORDS, whole=True) is None
        bpf.refused = False
        assert words.take(CHUNK_WORDS, whole=True) == CHUNK_WORDS
        words.close()


def test_words_are_written_over_the_border_of_chunks() -> None:
    with arena(3) as words:
        leave(words, 16)
        content = np.arange(CHUNK_WORDS + 40, dtype=np.uint32)
        at = words.take(len(content), whole=False)
        assert at == CHUNK_WORDS - 16
        words.write(at, content)
        parts = [words.read(at, 16), words.read(CHUNK_WORDS, CHUNK_WORDS)]
        parts.append(words.read(2 * CHUNK_WORDS, 24))
        assert np.concatenate(parts).tolist() == content.tolist()


SIZES = st.one_of(st.integers(1, 40), st.integers(1, CHUNK_WORDS), st.just(CHUNK_WORDS))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), SIZES, st.booleans()),
        st.tuples(st.just("give"), st.integers(0, 30)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS)
def test_no_word_is_taken_twice_and_none_is_lost(steps: list[tuple]) -> None:
    held: list[tuple[int, int]] = []
    with arena(3) as words:
        for step in steps:
            if step[0] == "give":
                if held:
                    words.give(*held.pop(step[1] % len(held)))
                continue
            _, count, whole = step
            at = words.take(count, whole)
            room = -(-count // 8) * 8
            if at is None:
                assert words.size == 3 << 20
                continue
            assert at > 0
            assert at % MAPPING_WORDS == 0
            assert at + room <= 3 * CHUNK_WORDS
            assert not whole or at // CHUNK_WORDS == (at + room - 1) // CHUNK_WORDS
            assert all(at + room <= a or at >= a + -(-n // 8) * 8 for a, n in held)
            held.append((at, count))
        for place in held:
            words.give(*place)
        assert words.take(words.size // 4 - 8, whole=False) == 8


PAGES = st.lists(
    st.tuples(
        st.one_of(
            st.sets(st.integers(0, 4095), max_size=20).map(sorted),
            st.integers(0, MAX_ROWS_OF_PAGE).map(lambda n: list(range(4096 - n, 4096))),
        ),
        st.integers(0, len(RULES) - 1),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(pages=PAGES, left=st.integers(0, 1200).map(lambda n: 8 * n), shift=st.integers(0, 60000))
def test_what_is_looked_up_is_what_the_table_says(
    pages: list[tuple[list[int], int]], left: int, shift: int
) -> None:
    table = table_of(*pages, first=0x7000)
    with arena(2) as words:
        leave(words, left)
        placed = Placed(words, table, numbers(shift))
        assert (placed.first, placed.count) == (table.first, len(pages))
        check_lookups(words, placed, table, shift)
        placed.remove(words)
        again = Placed(words, table, numbers(shift))
        assert (again.rows, again.pages) == (placed.rows, placed.pages)


def check_lookups(words: Arena, placed: Placed, table: Table, shift: int) -> None:
    """In all pages, at, before and after each row: by C, by Python, and by the table itself."""
    block = mapped(words, [(BASE, BASE + 4096 * placed.count, -BASE, placed.pages, placed.count)])
    walker = Walker(words, block, 1, [0] * shift + RULES, 1)
    for page in range(placed.count):
        start, count, _ = table.pages[page].tolist()
        lows = (table.rows[start : start + count] >> np.uint32(16)).tolist()
        near = {0, 4095, *lows[:20], *lows[-20:]} | {low - 1 for low in lows[:20] if low}
        for low in near:
            rule = lookup(table, table.first + 4096 * page + low)
            offset = 4096 * page + low
            number = library().find_row(placed.pages, offset)
            assert RULES[number - shift] == rule
            assert walker._rule(Place(BASE + offset, 0, 0, exact=True)) == rule


def test_rows_of_a_page_lie_in_one_chunk() -> None:
    """More rows than a chunk holds, in pages of many sizes."""
    sizes = [4095, 1, 0, 2500, 4094, 3333] * 24
    table = table_of(*((list(range(4096 - size, 4096)), 7) for size in sizes))
    assert len(table.rows) > CHUNK_WORDS
    with arena(4) as words:
        leave(words, 4096)
        placed = Placed(words, table, numbers())
        places = []
        for page in range(placed.count):
            at = placed.pages + 2 * page
            start, rest = words.read(at, 2).tolist()
            count = rest & 0xFFFF
            assert count == sizes[page]
            assert start // CHUNK_WORDS == (start + max(count, 1) - 1) // CHUNK_WORDS
            assert placed.rows <= start <= start + count <= placed.rows + placed.size
            places.append((start, start + count))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))
        assert places[0][0] // CHUNK_WORDS < places[-1][0] // CHUNK_WORDS
        check_lookups(words, placed, table, 0)


def test_a_page_without_rows_at_the_end_of_a_chunk_has_its_carry() -> None:
    table = table_of((list(range(16)), 3), ([], 5))
    with arena(2) as words:
        leave(words, 16)
        placed = Placed(words, table, numbers())
        assert placed.rows == CHUNK_WORDS - 16
        check_lookups(words, placed, table, 0)


def test_a_table_without_room_leaves_no_trace() -> None:
    with arena(1) as words:
        leave(words, 24)
        for table in (
            table_of((list(range(100)), 0)),  # no room for its rows
            table_of((list(range(20)), 0)),  # room for its rows only
        ):
            with pytest.raises(NoRoom):
                Placed(words, table, numbers())
        placed = Placed(words, table_of(([0], 0)), numbers())
        assert (placed.rows, placed.pages) == (CHUNK_WORDS - 24, CHUNK_WORDS - 16)


def test_a_full_page_and_a_full_block_are_searched_to_the_end() -> None:
    table = table_of((list(range(1, 4096)), 199))
    with arena(2) as words:
        placed = Placed(words, table, numbers())
        rows = [library().find_row(placed.pages, low) for low in range(4096)]
        assert rows == [199, *(n % len(RULES) for n in range(4095))]
        starts = [BASE + 8192 * n for n in range(MAX_MAPPINGS)]
        block = mapped(words, [(start, start + 4096, 0, 0, 1) for start in starts])
        assert block == CHUNK_WORDS
        walker = Walker(words, block, MAX_MAPPINGS, [], 1)
        for start in (*starts[:100], *starts[::977], *starts[-100:]):
            for address in (start, start + 4095):
                assert library().find_mapping(block, MAX_MAPPINGS, address) == start
                assert walker._rule(Place(address, 0, 0, exact=True)) == Cfa.FRAME
            assert walker._rule(Place(start + 4096, 0, 0, exact=True)) is StackEnd.NO_MAPPING


@settings(deadline=None)
@given(st.integers(0, 70), st.integers(0, 80))
def test_the_mapping_at_or_below_an_address_is_found(count: int, where: int) -> None:
    starts = [BASE + 4096 * (n + 1) for n in range(count)]
    with arena(1) as words:
        records = [(start, start + 4096, 0, 0, 0) for start in starts]
        block = mapped(words, records) if records else 0
        address = BASE + 4096 * where
        found = library().find_mapping(block, count, address)
        below = [start for start in starts if start <= address]
        if below:
            assert found == below[-1]
        elif starts:
            assert found == starts[0]  # which does not hold it: the caller looks
        else:
            assert found == 2**64 - 1
