"""``bpflame doctor``: what this system allows, and what to do about the rest."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from bpflame import system
from bpflame.console import put
from bpflame.errors import UsageError
from bpflame.flamegraph.text import printable


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "doctor",
        help="check this system, and say what to do",
        description="One line for each thing that a recording needs: what is found, and what to "
        "do where it is not enough. Exit code 1 when recording cannot work.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="for machines, on stdout")


def run(options: argparse.Namespace) -> int:
    """Check and print; returns 1 if recording cannot work."""
    if options.command is not None:
        raise UsageError("doctor takes no command")
    checks = system.examine()
    if options.json:
        rows = [dataclasses.asdict(check) for check in checks]
        put(json.dumps({"schema": 1, "checks": rows}, indent=1))
    else:
        for check in checks:
            todo = f" -> {check.todo}" if check.todo else ""
            put(printable(f"{check.verdict:<5} {check.name}: {check.found}{todo}"))
    return 1 if any(check.verdict == system.FAIL for check in checks) else 0
