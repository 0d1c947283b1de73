from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.symbolize.symbol_table import (
    GLOBAL,
    LOCAL,
    MAX_NAME,
    WEAK,
    Symbols,
    SymbolTable,
)

Row = tuple[str, int, int, bool, int]
"""Name, start, size, is a function, binding."""


def table(rows: Sequence[Row], limit: int = 1 << 20) -> SymbolTable:
    names = [row[0].encode() for row in rows]
    return SymbolTable(
        Symbols(
            start=np.array([row[1] for row in rows], np.uint64),
            size=np.array([row[2] for row in rows], np.uint64),
            limit=np.full(len(rows), limit, np.uint64),
            function=np.array([row[3] for row in rows], np.bool_),
            binding=np.array([row[4] for row in rows], np.uint8),
            key=np.arange(len(rows), dtype=np.int64),
        ),
        lambda key, limit: names[key][:limit],
    )


def names_at(symbols: SymbolTable, *addresses: int) -> list[str | None]:
    index = symbols.lookup(np.array(addresses, np.uint64))
    return [None if i < 0 else symbols.name(int(i)) for i in index]


def function(name: str, start: int, size: int = 0, binding: int = GLOBAL) -> Row:
    return name, start, size, True, binding


def test_empty_table_finds_nothing() -> None:
    assert names_at(table([]), 0, 1, 2**64 - 1) == [None, None, None]


def test_sized_symbol_covers_its_bytes_and_no_more() -> None:
    symbols = table([function("f", 0x100, 0x10)])
    found = names_at(symbols, 0xFF, 0x100, 0x10F, 0x110, 0, 2**64 - 1)
    assert found == [None, "f", "f", None, None, None]


def test_sizeless_symbol_ends_at_the_next_one_and_at_its_limit() -> None:
    symbols = table([function("a", 0x100), function("b", 0x180)], limit=0x200)
    assert names_at(symbols, 0x17F, 0x180, 0x1FF, 0x200) == ["a", "b", "b", None]


def test_sizes_are_cut_at_the_limit_without_wrapping() -> None:
    symbols = table([function("f", 0x100, 2**64 - 1)], limit=0x200)
    assert names_at(symbols, 0x1FF, 0x200, 0x10, 2**64 - 1) == ["f", None, None, None]


def test_symbol_past_its_limit_is_ignored() -> None:
    assert names_at(table([function("f", 0x200, 8)], limit=0x200), 0x200) == [None]


def test_address_past_an_inner_symbol_belongs_to_the_outer_one() -> None:
    symbols = table(
        [
            function("outer", 0x100, 0x100),
            function("middle", 0x120, 0x80),
            function("inner", 0x140, 0x10),
        ]
    )
    found = names_at(symbols, 0x100, 0x120, 0x140, 0x150, 0x19F, 0x1A0, 0x1FF, 0x200)
    wanted = ["outer", "middle", "inner", "middle", "middle", "outer", "outer", None]
    assert found == wanted


def test_overlapping_symbols_belong_to_the_one_that_starts_last() -> None:
    symbols = table([function("a", 0x100, 0x40), function("b", 0x120, 0x40)])
    assert names_at(symbols, 0x11F, 0x120, 0x13F, 0x140, 0x160) == ["a", "b", "b", "b", None]


def test_longer_alias_goes_on_where_the_better_one_ends() -> None:
    symbols = table([function("best", 0x100, 8), function("longer", 0x100, 0x20, LOCAL)])
    assert names_at(symbols, 0x107, 0x108, 0x11F, 0x120) == ["best", "longer", "longer", None]


def test_label_inside_a_sized_function_does_not_split_it() -> None:
    symbols = table([function("f", 0x100, 0x40), ("label", 0x110, 0, False, LOCAL)])
    assert names_at(symbols, 0x10F, 0x110, 0x13F, 0x140) == ["f", "f", "f", None]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (("x", 16, 8, False, LOCAL), ("longer", 16, 0, True, GLOBAL)),
        (("x", 16, 8, True, LOCAL), ("longer", 16, 8, False, GLOBAL)),
        (("x", 16, 8, True, GLOBAL), ("longer", 16, 8, True, WEAK)),
        (("x", 16, 8, True, WEAK), ("longer", 16, 8, True, LOCAL)),
        (("read", 16, 8, True, GLOBAL), ("__libc_read", 16, 8, True, GLOBAL)),
        (("_read", 16, 8, True, GLOBAL), ("__read", 16, 8, True, GLOBAL)),
        (("memcpy", 16, 8, True, GLOBAL), ("bcopy", 16, 8, True, GLOBAL)),
        (("C1", 16, 8, True, GLOBAL), ("C2", 16, 8, True, GLOBAL)),
    ],
    ids=["sized", "function", "global", "weak", "underscores", "one less", "longest", "name"],
)
def test_better_alias_wins_in_any_order(better: Row, worse: Row) -> None:
    assert names_at(table([better, worse]), 16) == [better[0]]
    assert names_at(table([worse, better]), 16) == [better[0]]


def test_many_aliases_give_one_answer_in_any_order() -> None:
    rows = [function(name, 16, 8) for name in ("_a", "__longest", "ab", "cd", "b")]
    found = {names_at(table(order), 16)[0] for order in itertools.permutations(rows)}
    assert found == {"ab"}


def test_names_are_cut_and_odd_bytes_shown() -> None:
    assert len(table([function("x" * (MAX_NAME + 9), 16, 8)]).name(0)) == MAX_NAME
    symbols = SymbolTable(
        Symbols(
            start=np.array([16], np.uint64),
            size=np.array([8], np.uint64),
            limit=np.array([64], np.uint64),
            function=np.array([True]),
            binding=np.array([GLOBAL], np.uint8),
            key=np.array([0], np.int64),
        ),
        lambda key, limit: b"caf\xc3\xa9\xff",
    )
    assert symbols.name(0) == "café\\xff"
    assert symbols.raw_name(0) == b"caf\xc3\xa9\xff"


def expected(rows: Sequence[Row], limit: int, address: int) -> set[str]:
    """The rules of the module, read off one address at a time, ranks of aliases left out."""
    sized = [row for row in rows if row[2] and row[1] < limit]
    covering = [row for row in sized if row[1] <= address < min(row[1] + row[2], limit)]
    if covering:
        last = max(row[1] for row in covering)
        return {row[0] for row in covering if row[1] == last}
    below = [row for row in rows if row[1] <= address and row[1] < limit]
    last = max((row[1] for row in below), default=-1)
    labels = [row for row in below if row[1] == last and not row[2]]
    hidden = any(row[1] <= last < min(row[1] + row[2], limit) for row in sized)
    return set() if hidden or address >= limit else {row[0] for row in labels}


rows_strategy = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.integers(0, 20),
        st.booleans(),
        st.sampled_from([LOCAL, WEAK, GLOBAL]),
    ),
    max_size=12,
)


@given(rows=rows_strategy, limit=st.integers(1, 70), shuffle=st.randoms())
def test_every_address_follows_the_rules(
    rows: list[tuple[int, int, bool, int]], limit: int, shuffle: random.Random
) -> None:
    named: list[Row] = [(f"s{i:02}", *row) for i, row in enumerate(rows)]
    addresses = list(range(90))
    found = names_at(table(named, limit), *addresses)
    for address, name in zip(addresses, found, strict=True):
        wanted = expected(named, limit, address)
        assert name in wanted if wanted else name is None, hex(address)
    shuffle.shuffle(named)
    assert names_at(table(named, limit), *addresses) == found


@given(rows=rows_strategy)
def test_ranges_are_sorted_and_disjoint(rows: list[tuple[int, int, bool, int]]) -> None:
    symbols = table([(f"s{i}", *row) for i, row in enumerate(rows)])
    assert (symbols.start < symbols.end).all()
    assert (symbols.end[:-1] <= symbols.start[1:]).all()


@pytest.mark.parametrize("shape", ["onion", "comb", "aliases"])
def test_hostile_shapes_take_linear_time(shape: str) -> None:
    """A walk back over enclosing symbols would take hours for these."""
    n = 200_000
    step = np.arange(n, dtype=np.uint64)
    start, size = {
        "onion": (step, np.uint64(4 * n) - np.uint64(2) * step),
        "comb": (step * np.uint64(4), np.where(step == 0, np.uint64(4 * n), np.uint64(1))),
        "aliases": (np.full(n, 16, np.uint64), np.full(n, 8, np.uint64)),
    }[shape]
    began = time.process_time()
    symbols = SymbolTable(
        Symbols(
            start=start,
            size=size,
            limit=np.full(n, 8 * n, np.uint64),
            function=np.ones(n, np.bool_),
            binding=np.full(n, GLOBAL, np.uint8),
            key=np.arange(n, dtype=np.int64),
        ),
        lambda key, limit: b"n%d" % key,
    )
    found = symbols.lookup(np.arange(0, 4 * n, 8, dtype=np.uint64) + np.uint64(3))
    assert time.process_time() - began < 5
    assert (found >= 0).any()
