"""What bpflame is meant to reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from benchmarks.stats import Spread


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What bpflame is meant to reach.

    Attributes:
        claim: In words.
        figure: Name of a figure: a ratio, ours to theirs, or a number with its unit.
        limit: The median of the figure is to be below. Where it is not, but the lower quartile is,
            the measurements cannot tell the two apart.
        unit: Of the limit; empty: a ratio.
        at_most: The limit itself is good enough.
        form: How a figure with a unit is written.
    """

    claim: str
    figure: str
    limit: float
    unit: str = ""
    at_most: bool = False
    form: str = ",.0f"

    def verdict(self, figures: Mapping[str, Spread]) -> tuple[str, ...] | None:
        """A row of the table of targets; None if the figure was not measured."""
        measured = figures.get(self.figure)
        if measured is None:
            return None
        if self._reached(measured.median):
            verdict = "met"
        else:
            verdict = "even, within the noise" if self._reached(measured.low) else "MISSED"
        sign = "<=" if self.at_most else "<"
        limit = f"{sign} {self.limit:,g} {self.unit}".strip()
        return (self.claim, limit, measured.text(self.form if self.unit else ".3f"), verdict)

    def _reached(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value < self.limit


def _overhead_targets() -> Iterable[Target]:
    for work in ("cpu", "syscalls"):
        for tool in ("perf record", "profile-bpfcc"):
            for rate in (99, 999, 9999):
                what = "cost of a sample" if rate == 9999 else "time under the profiler"
                yield Target(
                    f"{work}, {rate} Hz: {what} not above that of {tool}",
                    f"overhead {work} {rate} Hz / {tool}",
                    1.0,
                )


def _switch_targets() -> Iterable[Target]:
    for work in ("pingpong", "locks"):
        figures = f"switches {work}: bpflame"
        yield Target(
            f"{work}: what bpflame offcpu adds to a switch",
            f"{figures} offcpu, ns",
            3000,
            "ns",
            at_most=True,
        )
        yield Target(
            f"{work}: bpflame offcpu adds less than the bpftrace program",
            f"{figures} offcpu / bpftrace",
            1.0,
        )
        yield Target(
            f"{work}: bpflame chain --depth 8 adds less than twice what bpflame offcpu does",
            f"{figures} chain --depth 8 / bpflame offcpu",
            2.0,
        )
        yield Target(
            f"{work}: what bpflame offcpu --sample 1/10 adds to a switch",
            f"{figures} offcpu --sample 1/10, ns",
            1000,
            "ns",
        )
        yield Target(
            f"{work}: what bpflame offcpu -p adds to a switch of others",
            f"{figures} offcpu -p OTHER, ns",
            300,
            "ns",
        )
    yield Target("what bpflame lost at switches", "switches: lost by bpflame", 0, "events", True)


def _completeness_targets() -> Iterable[Target]:
    for kind in ("workloads", "stock programs"):
        for tool in ("bpflame cpu --unwind dwarf", "bpflame offcpu --unwind dwarf"):
            yield Target(
                f"{kind}: what is missing of whole stacks at worst, {tool}",
                f"completeness {kind}: {tool}, % not whole",
                0.5,
                "%",
                at_most=True,
                form=".2f",
            )


def _walk_targets() -> Iterable[Target]:
    for what in (
        *("deep 30 at a tick", "deep 30, nanosleep at a switch", "deep 30, read at a switch"),
        *("the worst at a tick", "the worst at a switch"),
    ):
        yield Target(
            f"a frame of a walk, {what}",
            f"walks: a frame of {what}, ns",
            130,
            "ns",
            at_most=True,
        )
    for event in ("user mode", "system calls", "switches"):
        yield Target(
            f"{event} at depth 30: a whole event with the kernel stack",
            f"walks: an event, {event}: dwarf-30-nofp, us",
            6,
            "us",
            form=".2f",
        )
    for name in ("cpu", "offcpu", "chain"):
        for what, limit in (("compile", 1500), ("load", 300)):
            figure = f"walks: {what} {name} dwarf, ms"
            yield Target(f"to {what} bpflame {name} --unwind dwarf", figure, limit, "ms")


def _table_targets() -> Iterable[Target]:
    limits = {
        "tables: CPU seconds for a million rows, the worst file": (0.333, "s"),  # 3 million/s
        "tables: 700 libraries cold, s": (3, "s"),
        "tables: 700 libraries from the cache, s": (0.5, "s"),
        "tables: libraries, MB of maps": (150, "MB"),
        "tables: processes cold, s": (3, "s"),
        "tables: processes from the cache, s": (0.5, "s"),
        "tables: processes, MB of maps": (150, "MB"),
    }
    for figure, (limit, unit) in limits.items():
        claim = figure.removesuffix(f", {unit}")
        yield Target(claim, figure, limit, unit, form=".2f")


TARGETS = (
    Target("first sample in below half of profile-bpfcc's time", "startup / profile-bpfcc", 0.5),
    *_overhead_targets(),
    *_switch_targets(),
    *_completeness_targets(),
    *_walk_targets(),
    *_table_targets(),
)
