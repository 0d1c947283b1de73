"""What was measured of unwind tables, as tables and figures."""

from __future__ import annotations

import dataclasses

from benchmarks.report import Result, Table
from benchmarks.stats import Spread, spread
from benchmarks.table_processes import MAPPED_BY_EACH, PROCESSES, SECONDS, Recorded

LIBRARIES = 700
ROWS = "tables: CPU seconds for a million rows"

_METHOD = """\
Single files: build_table, the least of three times in each round. Rows: of .eh_frame, before those
that change nothing are left out.

Sets of files, distinct by build id: what a recording does with each, which is to open it, read or
build its table, keep it in the cache, and write it into BPF maps. CPU time of one process; the
files are in memory. For {libraries} libraries the time is in proportion where there are not as
many.

Processes: {processes} of them map the code of {each} libraries each, of the same set, and wait 20
ms again and again; bpflame offcpu -p of all of them for {seconds} s. Table time, bytes and what is
whole are its own statements, CPU and peak memory those of wait4."""


@dataclasses.dataclass(frozen=True, slots=True)
class Single:
    """One file.

    Attributes:
        rows: Of its .eh_frame.
        kept: Of its table.
        seconds: CPU time to build it.
    """

    rows: int
    kept: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A set of files.

    Attributes:
        files: How many.
        without: How many have no table.
        seconds: CPU time.
        rules: Distinct ones in all.
        maps: Bytes of BPF maps.
        cache: Bytes on disk.
    """

    files: int
    without: int
    seconds: float
    rules: int
    maps: int
    cache: int


@dataclasses.dataclass
class Found:
    """All rounds, by name and whether the cache was there."""

    single: dict[str, list[Single]] = dataclasses.field(default_factory=dict)
    loaded: dict[tuple[str, str], list[Loaded]] = dataclasses.field(default_factory=dict)
    recorded: dict[str, list[Recorded]] = dataclasses.field(default_factory=dict)


def result(found: Found, rounds: int) -> Result:
    """Tables and figures of all rounds."""
    speeds = {
        name: spread([1e6 * one.seconds / one.rows for one in singles])
        for name, singles in found.single.items()
    }
    figures: dict[str, Spread] = {f"{ROWS}, {name}": speed for name, speed in speeds.items()}
    if speeds:
        figures[f"{ROWS}, the worst file"] = max(speeds.values(), key=lambda speed: speed.median)
    for (name, state), loads in found.loaded.items():
        figures[f"tables: {name} {state}, s"] = spread([load.seconds for load in loads])
        figures[f"tables: {name}, MB of maps"] = spread([load.maps * 1e-6 for load in loads])
        if name.endswith(" libraries"):
            scaled = [load.seconds * LIBRARIES / load.files for load in loads]
            figures[f"tables: {LIBRARIES} libraries {state}, s"] = spread(scaled)
            figures["tables: libraries, MB of maps"] = spread([load.maps * 1e-6 for load in loads])
    for state, records in found.recorded.items():
        figures[f"tables: processes {state}, s"] = spread([record.tables for record in records])
        figures["tables: processes, MB of maps"] = spread([r.maps * 1e-6 for r in records])
    method = _METHOD.format(
        libraries=LIBRARIES, processes=PROCESSES, each=MAPPED_BY_EACH, seconds=SECONDS
    )
    tables = (_single_table(found), _loaded_table(found), _recorded_table(found))
    return Result(f"Unwind tables (rounds: {rounds})", method, tables, figures)


def _single_table(found: Found) -> Table:
    rows = tuple(
        (
            name,
            f"{singles[0].rows:,}",
            f"{singles[0].kept:,}",
            spread([one.seconds for one in singles]).text(".0f", 1e3),
            spread([one.rows / one.seconds for one in singles]).text(".1f", 1e-6),
        )
        for name, singles in found.single.items()
    )
    return Table(("file", "rows", "of them in the table", "CPU, ms", "million rows/s"), rows)


def _loaded_table(found: Found) -> Table:
    rows = tuple(
        (
            f"{name}, {state}",
            f"{loads[0].files:,}",
            f"{loads[0].without:,}",
            spread([load.seconds for load in loads]).text(".2f"),
            f"{loads[0].rules:,}",
            f"{loads[0].maps * 1e-6:.0f}",
            f"{loads[0].cache * 1e-6:.0f}",
        )
        for (name, state), loads in found.loaded.items()
    )
    header = ("files", "files", "without table", "CPU, s", "rules", "maps, MB", "cache, MB")
    return Table(header, rows)


def _recorded_table(found: Found) -> Table:
    rows = tuple(
        (
            f"{PROCESSES} processes, {state}",
            f"{records[0].files:,}",
            spread([record.tables for record in records]).text(".2f"),
            f"{records[0].maps * 1e-6:.0f}",
            f"{spread([record.whole for record in records]).median:.2%}",
            spread([record.cpu for record in records]).text(".2f"),
            f"{spread([record.peak for record in records]).median * 1e-6:.0f}",
        )
        for state, records in found.recorded.items()
    )
    header = ("recording", "tables", "tables, CPU s", "maps, MB", "whole", "CPU in all, s")
    return Table((*header, "peak, MB"), rows)
