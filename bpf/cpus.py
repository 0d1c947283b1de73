"""Lists of CPUs, as sysfs and users write them: ``0-3,8``."""

from __future__ import annotations

from pathlib import Path

_SYSFS = Path("/sys/devices/system/cpu")


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as ``0-3,8``, sorted and each once.

    Raises:
        ValueError: The text is no such list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        low = int(first)
        high = int(last) if dash else low
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(part)
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def online_cpus() -> tuple[int, ...]:
    """CPUs that run tasks now."""
    return parse_cpus((_SYSFS / "online").read_text())


def possible_cpus() -> tuple[int, ...]:
    """CPUs that per-CPU maps have a slot for."""
    return parse_cpus((_SYSFS / "possible").read_text())
