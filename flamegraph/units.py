"""Numbers as people read them."""

from __future__ import annotations

_TIMES = ((10**9, "s"), (10**6, "ms"), (10**3, "µs"))
_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def format_value(value: int, unit: str) -> str:
    """A value of a profile with its unit: ``1,234 samples``, ``1.23 ms``, ``4.00 KiB``."""
    if unit == "ns":
        return _scaled(value, _TIMES) or f"{value} ns"
    if unit == "bytes":
        return _scaled(value, _SIZES) or counted(value, "byte")
    if unit == "count":
        return f"{value:,}"
    return counted(value, unit.removesuffix("s"))


def counted(number: int, noun: str) -> str:
    """``1 sample``, ``1,234 samples``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` with two decimals; of nothing, it is nothing."""
    return f"{100 * part / whole:.2f}%" if whole else "0.00%"


def _scaled(value: int, scales: tuple[tuple[int, str], ...]) -> str:
    for factor, name in scales:
        if value >= factor:
            return f"{value / factor:,.2f} {name}"
    return ""
