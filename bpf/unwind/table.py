"""The unwind table of one file, in the form that BPF programs search."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind.rules import Bp, Cfa

MAX_PAGES = 1 << 20
"""4 GB of code: 16 times node's, so that an absurd segment costs 8 MB at most."""
MAX_ROWS_OF_PAGE = 4095
"""What the programs' 12 steps of binary search can tell apart."""
MAX_RULES = 1 << 16

PAGE = np.dtype([("start", "<u4"), ("count", "<u2"), ("carry", "<u2")])
"""One page of 4 KB of code: its rows are ``rows[start : start + count]``; before the first of them
the rule ``carry`` holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """What rule holds where.

    Attributes:
        first: Virtual address of the first page, a multiple of 4096.
        pages: Of dtype :data:`PAGE`, one for each page of code from ``first`` on.
        rows: u32: the low 12 bits of the address from which a rule holds, shifted left by 16, and
            the rule's number in ``rules``. Sorted within each page, addresses distinct.
        rules: u64, distinct, as :func:`bpflame.bpf.unwind.rules.pack` makes them; at most 65,536.
    """

    first: int
    pages: NDArray[np.void]
    rows: NDArray[np.uint32]
    rules: NDArray[np.uint64]

    def check(self) -> None:
        """Raises ValueError unless everything is as said above.

        For tables from disk: the programs must not be led out of the rows, nor find nothing.
        """
        start, count = self.pages["start"].astype(np.int64), self.pages["count"].astype(np.int64)
        low, rule = self.rows >> np.uint32(16), self.rows & np.uint32(0xFFFF)
        kind, bp_kind = self.rules & np.uint64(0xFF), self.rules >> np.uint64(8) & np.uint64(0xFF)
        sizes_right = (
            0 < len(self.pages) <= MAX_PAGES
            and 0 < len(self.rules) <= MAX_RULES
            and 0 <= self.first < 1 << 62
            and self.first % 4096 == 0
        )
        if not sizes_right or (kind > max(Cfa)).any() or (bp_kind > max(Bp)).any():
            raise ValueError("sizes or rules")
        if (rule >= len(self.rules)).any() or (self.pages["carry"] >= len(self.rules)).any():
            raise ValueError("a rule that is not there")
        if len(np.unique(self.rules)) != len(self.rules):
            raise ValueError("a rule twice")
        if (start + count > len(self.rows)).any() or (count > MAX_ROWS_OF_PAGE).any():
            raise ValueError("a page of rows that are not there")
        falls = np.flatnonzero(low[1:] <= low[:-1])
        within = np.searchsorted(falls, start) != np.searchsorted(falls, start + count - 1)
        if (low >= 4096).any() or (within & (count > 0)).any():
            raise ValueError("rows out of order")
