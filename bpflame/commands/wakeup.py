"""``bpflame wakeup``: who ends the waits of others."""

from __future__ import annotations

import argparse
from typing import Any

from bpflame.commands import sched
from bpflame.profilers.sched import WAKEUP

_QUESTION = sched.Question(
    WAKEUP,
    "who wakes others, and how long these had waited",
    "Sum the time that threads were blocked, by the stacks of those who woke them;\n"
    "the leaf is who was woken. Targets are those who wait.",
    """\
  bpflame wakeup -d 10             who wakes whom, on the whole system
  bpflame wakeup -p 1234 -d 10     who wakes the threads of one process
  bpflame wakeup --unwind fp       where everything has frame pointers
""",
)


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    sched.add_parser(commands, _QUESTION).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record; returns the exit code."""
    return sched.run(options, WAKEUP)
