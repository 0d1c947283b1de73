"""Medians, quartiles and ratios of pairs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """What a few measurements say together.

    Attributes:
        median: Half of them are below.
        low: The lower quartile.
        high: The upper quartile.
        count: How many there are.
    """

    median: float
    low: float
    high: float
    count: int

    def text(self, form: str, scale: float = 1.0) -> str:
        """``median [low, high]``, each multiplied by ``scale``, in a format such as ``.2f``."""
        median, low, high = (format(scale * x, form) for x in (self.median, self.low, self.high))
        return f"{median} [{low}, {high}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of two values or more the quartiles lie between them.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no measurements")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours to theirs, round by round: what both rounds suffered from cancels out.

    Raises:
        ValueError: The rounds do not match, or one of theirs is not positive.
    """
    if any(their <= 0 for their in theirs):
        raise ValueError("a ratio to nothing")
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def slowdown(before: float, during: float, after: float) -> float:
    """What was added, as a share of the time without: 0.02 is 2 %.

    Raises:
        ValueError: The times without are not positive.
    """
    base = (before + after) / 2
    if base <= 0:
        raise ValueError("no time without the profiler")
    return during / base - 1
