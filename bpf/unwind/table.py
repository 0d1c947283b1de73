"""The unwind table of one file, in the form that BPF programs search."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

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
