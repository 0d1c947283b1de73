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
        ratios: Ratios by name, which targets refer to.
    """

    title: str
    method: str
    tables: tuple[Table, ...]
    ratios: Mapping[str, Spread]

    def text(self) -> str:
        """A section of Markdown."""
        tables = (table.text() for table in self.tables)
        return "\n\n".join([f"## {self.title}", self.method, *tables])


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What bpflame is meant to reach.

    Attributes:
        claim: In words.
        ratio: Name of a ratio, ours to theirs.
        limit: The median of the ratio is to be below. Where it is not, but the lower quartile is,
            the measurements cannot tell the two apart.
    """

    claim: str
    ratio: str
    limit: float

    def verdict(self, ratios: Mapping[str, Spread]) -> tuple[str, ...] | None:
        """A row of the table of targets; None if the ratio was not measured."""
        measured = ratios.get(self.ratio)
        if measured is None:
            return None
        if measured.median < self.limit:
            verdict = "met"
        else:
            verdict = "even, within the noise" if measured.low < self.limit else "MISSED"
        return (self.claim, f"< {self.limit:g}", measured.text(".3f"), verdict)


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


TARGETS = (
    Target("first sample in below half of profile-bpfcc's time", "startup / profile-bpfcc", 0.5),
    *_overhead_targets(),
)


def verdicts(results: Iterable[Result]) -> str:
    """The targets that were measured, each met or MISSED; empty if there are none."""
    ratios = {name: ratio for result in results for name, ratio in result.ratios.items()}
    rows = tuple(row for target in TARGETS if (row := target.verdict(ratios)) is not None)
    if not rows:
        return ""
    return Table(("target", "ratio", "median [quartiles]", "verdict"), rows).text()


def document(results: Sequence[Result], machine: str) -> str:
    """The text of RESULTS.md."""
    head = (
        "# Benchmarks\n\n"
        "Written by `benchmarks/run.py --write`, not by hand. Every figure compares bpflame with\n"
        "its peers in one run on one machine: the ratios carry over to other machines, the times\n"
        "do not. Figures are medians and, in brackets, quartiles."
    )
    sections = [head, machine, "## Targets", verdicts(results), *(r.text() for r in results)]
    return "\n\n".join(section for section in sections if section) + "\n"


def note(text: str) -> None:
    """Say how far we are."""
    print(text, file=sys.stderr, flush=True)
