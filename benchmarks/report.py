"""Results as text: for the terminal and for RESULTS.md, the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.stats import Spread
from benchmarks.targets import TARGETS


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
