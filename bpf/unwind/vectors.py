"""Numbers at many places of a buffer at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXACT = 56


def unaligned(data: bytes, kind: str) -> NDArray[Any]:
    """A view of data as a number at each byte, so that ``view[n]`` is the number at byte n."""
    width = np.dtype(kind).itemsize
    view: NDArray[Any] = np.ndarray((max(len(data) - width + 1, 0),), kind, data, strides=(1,))
    return view


def uleb(
    data: NDArray[np.uint8], position: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Reads an unsigned LEB128 of at most ten bytes at each position.

    Args:
        data: With ten bytes after the last position.
        position: Shape (n,).

    Returns:
        The numbers, or 2^56 for all from there on, and the positions after them.
    """
    value = data[position].astype(np.int64)
    after = position + 1
    more = (value >= 0x80).nonzero()[0]
    if not more.size:
        return value, after
    value[more] &= 0x7F
    for shift in range(7, 70, 7):
        if not more.size:
            break
        byte = data[after[more]].astype(np.int64)
        after[more] += 1
        if shift < _EXACT:
            value[more] |= (byte & 0x7F) << shift
        else:
            value[more[byte & 0x7F != 0]] = 1 << _EXACT
        more = more[byte >= 0x80]
    return value, after
