"""``bpflame offwake``: where threads wait, and who ends it."""

from __future__ import annotations

import argparse
from typing import Any

from bpflame.commands import sched
from bpflame.profilers.sched import OFFWAKE

_QUESTION = sched.Question(
    OFFWAKE,
    "where threads wait and who wakes them, in one picture",
    "Sum the time that threads are off the CPU, by their stacks and by those of who\n"
    "woke them: the waiter below, the waker above the line, turned round, so that\n"
    "the two leaves meet.",
    """\
  bpflame offwake -p 1234 -d 10         one process, and whoever ends its waits
  bpflame offwake -p 1234 --unwind fp   where everything has frame pointers
  bpflame offwake -- sh -c 'tar cf - /usr/share/doc | gzip > /dev/null'
""",
)


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    sched.add_parser(commands, _QUESTION).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record; returns the exit code."""
    return sched.run(options, OFFWAKE)
