"""How many user stacks reach their root."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.errors import BenchmarkError, retried
from benchmarks.report import Result, Table, note
from benchmarks.roots import Rooted, in_folded, in_perf_script
from benchmarks.stats import spread
from benchmarks.subjects import SECONDS, SUBJECTS, Subject

ROUNDS = 1
RATE, PERF_RATE = 999, 199
CPU, OFFCPU = "bpflame cpu --unwind dwarf", "bpflame offcpu --unwind dwarf"
FP, PERF = "bpflame cpu --unwind fp", "perf record --call-graph dwarf"
KINDS = ("workloads", "stock programs")

_PERF_BYTES = 16384
_SCRIPT_SECONDS = 300.0

_METHOD = f"""\
Sample workloads without frame pointers, and programs as the distribution has them, for some
{SECONDS} s each: recorded from their start, servers under load from later on. At {RATE} Hz, for
perf at {PERF_RATE} Hz with {_PERF_BYTES} bytes of each stack. Weight: samples, or for offcpu the ns
of the waits.

At its root: by the same rule for all, a stack with one of the functions that start a program or a
thread among the outermost frames, by its name or, where the C library and the dynamic linker have
none, by its address. Said to be whole: what bpflame itself states, and why the others are not. Of
stacks with user frames; along frame pointers nothing can be stated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What one recording has.

    Attributes:
        samples: Of all kinds.
        rooted: By the names.
        whole: By the recorder's own statement, as a share; None if there is none.
        why: Why the others are not, as shares.
    """

    samples: int
    rooted: Rooted
    whole: float | None
    why: dict[str, float]

    @property
    def at_root(self) -> float:
        """The share of the weight that reaches its root."""
        return self.rooted.rooted / max(1, self.rooted.stacks)


Rows = dict[tuple[Subject, str], list[Found]]
"""A recording for each round."""


def measure(rounds: int, folder: Path) -> Result:
    """Record each with each."""
    rows: Rows = {}
    absent = {subject: why for subject in SUBJECTS if (why := subject.missing())}
    for subject, why in absent.items():
        note(f"completeness: no {subject.name}: not installed: {why}")
    called = programs.roots()
    for number in range(1, rounds + 1):
        for subject in SUBJECTS:
            if subject not in absent:
                note(f"completeness: round {number} of {rounds}: {subject.name}")
                for tool in tools(subject):
                    record = functools.partial(_record, subject, tool, folder, called)
                    _keep(rows.setdefault((subject, tool), []), tool, record)
    return result(rows, [subject.name for subject in absent], rounds)


def _keep(founds: list[Found], tool: str, record: Callable[[], Found]) -> None:
    """Record; a peer that crashes every time has no figures, which costs the others nothing."""
    try:
        founds.append(retried(record))
    except BenchmarkError as error:
        if tool != PERF:
            raise
        note(f"completeness: left out: {error}")


def tools(subject: Subject) -> tuple[str, ...]:
    """What records it."""
    return (*((CPU, FP, PERF) if subject.cpu else ()), *((OFFCPU,) if subject.waits else ()))


def command(tool: str, output: Path, depth: int) -> list[str]:
    """A recording, without its target."""
    if tool == PERF:
        graph = f"dwarf,{_PERF_BYTES}"
        line = [*peers.perf(output), "record", "-q", "-e", "cpu-clock", "-F", str(PERF_RATE)]
        # As bpflame asks for build ids of mappings: where anybody does, some kernels (6.18) mark
        # the records of all others too as if they had them, and perf crashes.
        return [*line, "--buildid-mmap", "--call-graph", graph, "-o", str(output)]
    # As installed beside the interpreter that runs this.
    line = [str(Path(sys.executable).with_name("bpflame")), *tool.split()[1:]]
    line += [] if tool == OFFCPU else ["-F", str(RATE)]
    return [*line, "--max-depth", str(depth), "-q", "--json", "-o", str(output)]


def _record(subject: Subject, tool: str, folder: Path, called: programs.Places) -> Found:
    output = folder / f"completeness.{'data' if tool == PERF else 'folded'}"
    output.unlink(missing_ok=True)
    stdout = output.with_name(output.name + ".out")
    line = command(tool, output, subject.depth)
    with _target(subject, tool, folder) as target:
        peers.run([*line, *target], stdout)
    if tool != PERF:
        rooted = in_folded(output.read_text(errors="replace"), called)
        return stated(stdout.read_text(errors="replace"), rooted)
    text = output.with_name("completeness.text")
    fields = ["-F", "comm,ip,sym,dso", "--no-inline", "-i", str(output)]
    peers.run([*peers.perf(output), "script", *fields], text, _SCRIPT_SECONDS)
    rooted = in_perf_script(text.read_text(errors="replace"), called)
    return Found(rooted.stacks, rooted, None, {})


@contextlib.contextmanager
def _target(subject: Subject, tool: str, folder: Path) -> Iterator[list[str]]:
    """The end of a command line."""
    if subject.service is None:
        yield ["--", *subject.line]
        return
    with subject.service(folder) as pids:
        whom = ["-p", ",".join(map(str, pids))]
        yield [*whom, *(["--", "sleep"] if tool == PERF else ["-d"]), str(SECONDS)]


def stated(summary: str, rooted: Rooted) -> Found:
    """What bpflame says of a recording, in the last line that it prints with ``--json``.

    Raises:
        BenchmarkError: It is no such summary, or there is nothing in it.
    """
    try:
        counters = json.loads(summary.rstrip().rpartition("\n")[2])["counters"]
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"not a summary of bpflame: {summary!r}") from None
    if not rooted.stacks:
        raise BenchmarkError("no user stacks at all")
    told = counters.get("user_stacks", 0)
    why = {
        match[1]: value / told
        for name, value in counters.items()
        if (match := re.fullmatch("truncated: (.*)", name)) and told
    }
    whole = counters.get("complete_stacks", 0) / told if told else None
    return Found(counters["samples"], rooted, whole, why)


def result(rows: Rows, absent: list[str], rounds: int) -> Result:
    """Tables, and for the targets the worst of each kind."""
    figures = {}
    for kind in KINDS:
        for tool in (CPU, OFFCPU):
            lacks = [
                1 - min(share for found in founds for share in (found.whole, found.at_root))
                for (subject, by), founds in rows.items()
                if by == tool and subject.stock == (kind == KINDS[1])
            ]
            if lacks:
                figures[f"completeness {kind}: {tool}, % not whole"] = spread([100 * max(lacks)])
    tables = tuple(_table(rows, kind) for kind in KINDS)
    missing = f"\n\nNot installed: {', '.join(absent)}." if absent else ""
    title = f"Completeness of user stacks (rounds: {rounds})"
    return Result(title, _METHOD + missing, tables, figures)


def _table(rows: Rows, kind: str) -> Table:
    lines = []
    for (subject, tool), founds in rows.items():
        if subject.stock != (kind == KINDS[1]):
            continue
        if not founds:
            lines.append((f"{subject.name}: {tool}", "", "", "", "", "it fails"))
            continue
        wholes = [found.whole for found in founds if found.whole is not None]
        depths = [found.rooted.frames / max(1, found.rooted.stacks) for found in founds]
        lines.append(
            (
                f"{subject.name}: {tool}",
                f"{spread([found.samples for found in founds]).median:,.0f}",
                f"{spread(depths).median:.1f}",
                f"{spread([found.at_root for found in founds]).median:.2%}",
                f"{spread(wholes).median:.2%}" if wholes else "",
                _reasons(founds),
            )
        )
    header = (
        kind,
        "samples",
        "mean depth",
        "at the root",
        "said to be whole",
        "why others are not",
    )
    return Table(header, tuple(lines))


def _reasons(founds: list[Found]) -> str:
    names = sorted({name for found in founds for name in found.why})
    means = {n: sum(found.why.get(n, 0) for found in founds) / len(founds) for n in names}
    order = sorted(means.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.2%}" for name, share in order)
