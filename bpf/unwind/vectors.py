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


def distinct(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As np.unique with return_inverse, without an order, and without sorting most of the time.

    Returns:
        The number of each value, and the distinct values.
    """
    # Multiplied by 2^64 over the golden ratio, 16 bits from the top: a slot for each value.
    slot = ((values.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)).view(
        np.int64
    )
    holder = np.zeros(1 << 16, np.int64)
    holder[slot] = values
    number = np.full(1 << 16, -1, np.int64)
    number[slot] = 0
    used = np.flatnonzero(number == 0)
    number[used] = np.arange(len(used))
    result = number[slot]
    crowded = np.flatnonzero(holder[slot] != values)
    if not crowded.size:
        return result, holder[used]
    more, inverse = np.unique(values[crowded], return_inverse=True)
    result[crowded] = inverse.reshape(-1) + len(used)
    return result, np.concatenate((holder[used], more))
