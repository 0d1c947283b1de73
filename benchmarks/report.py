"""Results as text: for the terminal and for RESULTS.md, the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.stats import Spread


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """As Markdown, its columns aligned; all but the first to the right."""
        lines = [self.header, *self.rows]
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(self.header))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join(_row(line, widths) for line in (self.header, rule, *self.rows))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([first, *rest])} |"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One figure.

    Attributes:
        title: What was measured.
        method: How, as a paragraph.
        tables: The measurements.
        figures: Ratios and others by name, which targets refer to.
    """

    title: str
    method: str
    tables: tuple[Table, ...]
    figures: Mapping[str, Spread]

    def text(self) -> str:
        """A section of Markdown."""
        tables = (table.text() for table in self.tables)
        return "\n\n".join([f"## {self.title}", self.method, *tables])


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
    """

    claim: str
    figure: str
    limit: float
    unit: str = ""
    at_most: bool = False

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
        return (self.claim, limit, measured.text(",.0f" if self.unit else ".3f"), verdict)

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


TARGETS = (
    Target("first sample in below half of profile-bpfcc's time", "startup / profile-bpfcc", 0.5),
    *_overhead_targets(),
    *_switch_targets(),
)


def verdicts(results: Iterable[Result]) -> str:
    """The targets that were measured, each met or MISSED; empty if there are none."""
    figures = {name: figure for result in results for name, figure in result.figures.items()}
    rows = tuple(row for target in TARGETS if (row := target.verdict(figures)) is not None)
    if not rows:
        return ""
    return Table(("target", "limit", "median [quartiles]", "verdict"), rows).text()


_RULE = "\n---\n\n"


def merged(old: str, new: str) -> str:
    """Two documents in one file, the new in the place of the one with its title, or behind."""
    title = new.partition("\n")[0]
    kept = [part for part in old.split(_RULE) if part and part.partition("\n")[0] != title]
    return _RULE.join([*kept, new])


def document(results: Sequence[Result], machine: str, only: str = "") -> str:
    """The text of RESULTS.md, or of the part of it that was measured by itself."""
    head = (
        f"# Benchmarks{only and ': '}{only}\n\n"
        "Written by `benchmarks/run.py --write`, not by hand. Every figure compares bpflame with\n"
        "its peers in one run on one machine: the ratios carry over to other machines, the times\n"
        "do not. Figures are medians and, in brackets, quartiles."
    )
    sections = [head, machine, "## Targets", verdicts(results), *(r.text() for r in results)]
    return "\n\n".join(section for section in sections if section) + "\n"


def note(text: str) -> None:
    """Say how far we are."""
    print(text, file=sys.stderr, flush=True)
