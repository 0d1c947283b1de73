"""Compare bpflame with profile-bpfcc, perf record and bpftrace, side by side on this machine.

    python benchmarks/run.py [--only FIGURE] [--rounds N] [--write]

FIGURE is startup, overhead, switches, memory, completeness, walks or tables. It needs root, and
Debian's bpfcc-tools, bpftrace, linux-headers-amd64 and linux-perf; completeness is measured on what
is installed of node, perl, postgres, nginx with wrk and others. On a busy machine the figures are
worth nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import (
    completeness,
    machine,
    memory,
    overhead,
    peers,
    programs,
    startup,
    switches,
    tables,
    walks,
)
from benchmarks.errors import BenchmarkError
from benchmarks.report import Result, document, merged, verdicts

_RESULTS = Path(__file__).resolve().with_name("RESULTS.md")
_Measure = Callable[[int, Path], Result]
_FIGURES: dict[str, tuple[_Measure, int]] = {
    "startup": (startup.measure, startup.ROUNDS),
    "overhead": (overhead.measure, overhead.ROUNDS),
    "switches": (switches.measure, switches.ROUNDS),
    "memory": (memory.measure, memory.ROUNDS),
    "completeness": (completeness.measure, completeness.ROUNDS),
    "walks": (walks.measure, walks.ROUNDS),
    "tables": (tables.measure, tables.ROUNDS),
}


def main() -> int:
    """Measure, print, and with --write keep the results; 1 if it cannot."""
    options = _options()
    # Not ignored, as in the background of a script, where profilers would inherit that; and what
    # we started ends with us.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        _check()
        machine.ensure_mounts()
        results, where = _measure(options.only, options.rounds)
    except (BenchmarkError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.write:
        new = document(results, where, options.only or "")
        if options.only:
            new = merged(_RESULTS.read_text(encoding="utf-8"), new)
        _RESULTS.write_text(new, encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=tuple(_FIGURES), help="one figure (default: all)")
    parser.add_argument("--rounds", type=int, help="default: " + _default_rounds())
    parser.add_argument(
        "--write", action="store_true", help="rewrite benchmarks/RESULTS.md, or its part"
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def _default_rounds() -> str:
    return ", ".join(f"{rounds} for {name}" for name, (_, rounds) in _FIGURES.items())


def _check() -> None:
    if os.geteuid() != 0:
        raise BenchmarkError("profilers of the whole system need root")
    missing = peers.missing()
    if missing:
        hint = "apt install bpfcc-tools bpftrace linux-perf gcc g++ make"
        raise BenchmarkError(f"not installed: {', '.join(missing)} ({hint})")


def _measure(only: str | None, rounds: int | None) -> tuple[list[Result], str]:
    machine.warn_if_busy()
    where = machine.describe()
    programs.build()
    results = []
    with tempfile.TemporaryDirectory(prefix="bpflame-bench-") as name, machine.unchanged_settings():
        for figure, (measure, default) in _FIGURES.items():
            if only in (None, figure):
                results.append(measure(rounds or default, Path(name)))
                print(results[-1].text() + "\n", flush=True)
    reached = verdicts(results)
    if reached:
        print(reached)
    return results, where


if __name__ == "__main__":
    sys.exit(main())
