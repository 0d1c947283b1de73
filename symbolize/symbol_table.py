"""Which symbol covers an address: the table under ELF files and the kernel alike.

Two rules decide everything, so that the same file gives the same names on every run:

* At one address the better symbol wins: one with a size, then a function over a bare label, then
  global over weak over local, then fewer leading underscores, the longest name, the first name.
* Symbols may nest: an address belongs to the covering symbol that starts last. A symbol without a
  size claims only what no sized symbol covers, up to the next symbol or its limit.

Nested symbols are cut into disjoint ranges once, so that a lookup is one binary search whatever
the file holds: walking back over enclosing symbols at each miss takes quadratic time on a file
made for it.
"""

from __future__ import annotations

import array
import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

LOCAL, WEAK, GLOBAL = 0, 1, 2
"""Values of :attr:`Symbols.binding`, worst first."""

MAX_NAME = 16 << 10
"""Longer names are cut here, bytes; the longest in libLLVM has 554."""

# Names are compared by this many bytes, so that a million aliases of one long name stay cheap.
_COMPARED = 1 << 10

_END_OF_MEMORY = np.uint64(2**64 - 1)


class NameSource(Protocol):
    """Gives the name behind a key of :attr:`Symbols.key`."""

    def __call__(self, key: int, limit: int) -> bytes:
        """The name, without its NUL, cut at ``limit`` bytes; must not raise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Symbols:
    """Symbols as found, in any order; all columns have shape (n,).

    Attributes:
        start: Address.
        size: Bytes; 0 when the source does not know.
        limit: Exclusive end of the section or region that holds the symbol. No symbol reaches past
            it, and one that does not start before it is ignored.
        function: True for functions, False for labels without a type.
        binding: ``LOCAL``, ``WEAK`` or ``GLOBAL``.
        key: What the name source takes.
    """

    start: NDArray[np.uint64]
    size: NDArray[np.uint64]
    limit: NDArray[np.uint64]
    function: NDArray[np.bool_]
    binding: NDArray[np.uint8]
    key: NDArray[np.int64]

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Symbols:
        """The rows selected by a mask of shape (n,) or by indices."""
        columns = (getattr(self, field.name)[rows] for field in dataclasses.fields(self))
        return Symbols(*columns)


class SymbolTable:
    """Disjoint address ranges, each owned by a symbol whose name is read when it is asked for.

    Attributes:
        start: First address of each range, ascending; shape (n,).
        end: Exclusive end of each range; shape (n,).
        key: The owner's key in the name source; shape (n,). Nested symbols give several ranges
            with one key.
    """

    def __init__(self, symbols: Symbols, name_of: NameSource) -> None:
        symbols = symbols.take(symbols.limit > symbols.start)
        symbols = symbols.take(~_covered_labels(symbols))
        symbols = symbols.take(_best_last(symbols, name_of))
        end = _ends(symbols)
        kept = _reaching_past_the_best(symbols.start, end)
        self.start, self.end, owner = _flatten(symbols.start[kept], end[kept])
        self.key: NDArray[np.int64] = symbols.key[kept][owner]
        self._name_of = name_of

    def __len__(self) -> int:
        return len(self.start)

    def lookup(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The range that holds each address.

        Args:
            addresses: In any order; shape (m,).

        Returns:
            Indices for :meth:`name`, or -1 where no symbol covers the address; shape (m,).
        """
        if not len(self):
            return np.full(len(addresses), -1, np.int64)
        index = np.searchsorted(self.start, addresses, side="right").astype(np.int64) - 1
        # An address below the first range has index -1 and is tested against the last range; the
        # result is -1 either way.
        index[addresses >= self.end[index]] = -1
        return index

    def raw_name(self, index: int) -> bytes:
        """The name of the symbol that owns a range, as the file spells it."""
        return self._name_of(int(self.key[index]), MAX_NAME)

    def name(self, index: int) -> str:
        r"""Like :meth:`raw_name`, as text; bytes that are not UTF-8 become ``\xNN``."""
        return self.raw_name(index).decode("utf-8", "backslashreplace")


def _covered_labels(symbols: Symbols) -> NDArray[np.bool_]:
    """Marks the symbols without a size that start inside a sized one; shape (n,)."""
    sized = symbols.size > 0
    rows = np.flatnonzero(sized)
    if not rows.size:
        return np.zeros(len(sized), np.bool_)
    rows = rows[np.argsort(symbols.start[rows])]
    start = symbols.start[rows]
    reach = np.maximum.accumulate(_sized_ends(symbols.take(rows)))
    before = np.searchsorted(start, symbols.start, side="right") - 1
    covered: NDArray[np.bool_] = ~sized & (before >= 0) & (reach[before] > symbols.start)
    return covered


def _sized_ends(symbols: Symbols) -> NDArray[np.uint64]:
    """Exclusive ends by size, cut at the limit before the addition can wrap; shape (n,)."""
    end: NDArray[np.uint64] = symbols.start + np.minimum(
        symbols.size, symbols.limit - symbols.start
    )
    return end


def _ends(symbols: Symbols) -> NDArray[np.uint64]:
    """Exclusive ends of symbols sorted by start; shape (n,)."""
    starts = np.append(np.unique(symbols.start), _END_OF_MEMORY)
    following = starts[np.searchsorted(starts[:-1], symbols.start, side="right")]
    sizeless_end = np.minimum(following, symbols.limit)
    return np.where(symbols.size > 0, _sized_ends(symbols), sizeless_end)


def _best_last(symbols: Symbols, name_of: NameSource) -> NDArray[np.int64]:
    """The order that sorts by start, the best symbol of each address last; shape (n,)."""
    # Where a symbol has a size, _covered_labels has removed those without.
    rank = symbols.function.astype(np.uint8) * 4 + symbols.binding
    order = np.lexsort((rank, symbols.start))
    if not order.size:
        return order
    start, rank = symbols.start[order], rank[order]
    # Only runs of equal (start, rank) at the end of an address need their names.
    new_run = np.append(True, (start[1:] != start[:-1]) | (rank[1:] != rank[:-1]))
    first = np.flatnonzero(new_run)
    last = np.append(first[1:], len(order)) - 1
    ends_address = np.append(start[last][:-1] != start[first][1:], True)
    tied = ends_address & (last > first)
    for low, high in zip(first[tied].tolist(), last[tied].tolist(), strict=True):
        keys = symbols.key[order[low : high + 1]].tolist()
        best = low + min(range(len(keys)), key=lambda i: _preference(name_of(keys[i], _COMPARED)))
        order[best], order[high] = order[high], order[best]
    _sort_the_longer(symbols, name_of, order)
    return order


def _sort_the_longer(symbols: Symbols, name_of: NameSource, order: NDArray[np.int64]) -> None:
    """Sorts the symbols that go on where the best of their address ends: they own what follows."""
    start, size = symbols.start[order], symbols.size[order]
    best = np.searchsorted(start, start, side="right") - 1
    longer = np.flatnonzero(size > size[best])
    addresses, count = np.unique(best[longer], return_counts=True)
    for high in addresses[count > 1].tolist():
        places = longer[best[longer] == high]
        ranked = sorted(order[places].tolist(), key=lambda i: _rank(symbols, name_of, i))
        order[places] = ranked


def _rank(
    symbols: Symbols, name_of: NameSource, index: int
) -> tuple[int, int, tuple[int, ...], bytes]:
    """Sorts symbols of one address, the best last."""
    underscores, length, name = _preference(name_of(int(symbols.key[index]), _COMPARED))
    rank = int(symbols.function[index]) * 4 + int(symbols.binding[index])
    reversed_name = bytes(255 - byte for byte in name) + b"\xff"
    return rank, int(symbols.size[index]), (-underscores, -length), reversed_name


def _preference(name: bytes) -> tuple[int, int, bytes]:
    """Sorts aliases, the best first."""
    return len(name) - len(name.lstrip(b"_")), -len(name), name


def _reaching_past_the_best(
    start: NDArray[np.uint64], end: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Marks the best symbol of each address and those that go on where it ends; shape (n,)."""
    if not start.size:
        return np.zeros(0, np.bool_)
    best = np.searchsorted(start, start, side="right") - 1
    kept: NDArray[np.bool_] = (best == np.arange(len(start))) | (end > end[best])
    return kept


def _flatten(
    start: NDArray[np.uint64], end: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Cuts ranges sorted by start into disjoint ones, each owned by the one that starts last.

    Returns:
        Starts, ends, and the index of the owner; all of shape (m,), m < 2 n.
    """
    owner = np.arange(len(start), dtype=np.int64)
    overlaps_previous = np.zeros(len(start) + 1, np.bool_)
    overlaps_previous[1:-1] = np.maximum.accumulate(end)[:-1] > start[1:]
    alone = ~(overlaps_previous[:-1] | overlaps_previous[1:])
    if alone.all():
        return start, end, owner
    cut_start, cut_end, cut_owner = _cut(start[~alone], end[~alone])
    cut_owner = owner[~alone][cut_owner]
    start = np.concatenate((start[alone], cut_start))
    end = np.concatenate((end[alone], cut_end))
    owner = np.concatenate((owner[alone], cut_owner))
    order = np.argsort(start)
    return start[order], end[order], owner[order]


def _cut(
    start: NDArray[np.uint64], end: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """The sweep of :func:`_flatten`: each symbol is pushed and popped once, so it is linear."""
    # Arrays: a list of tuples takes 2 GB for the largest file that is read.
    cut_start, cut_end, cut_owner = array.array("Q"), array.array("Q"), array.array("q")
    starts, ends = array.array("Q", start.tobytes()), array.array("Q", end.tobytes())
    starts.append(int(end.max()))
    open_symbols = array.array("q")
    position = 0
    for index, upto in enumerate(starts):
        while open_symbols and position < upto:
            top = open_symbols[-1]
            if ends[top] > position:
                cut_start.append(position)
                cut_owner.append(top)
                position = min(ends[top], upto)
                cut_end.append(position)
            if ends[top] <= position:
                open_symbols.pop()
        position = upto
        open_symbols.append(index)
    return (
        np.frombuffer(cut_start, np.uint64),
        np.frombuffer(cut_end, np.uint64),
        np.frombuffer(cut_owner, np.int64),
    )
