"""``bpflame offcpu``: where threads wait."""

from __future__ import annotations

import argparse
from typing import Any

from bpflame.commands import sched
from bpflame.profilers.sched import OFFCPU

_QUESTION = sched.Question(
    OFFCPU,
    "where threads wait",
    "Sum the time that threads are off the CPU, by their stacks. The leaf tells how\n"
    "a wait went: [blocked], [run queue] (ready, no CPU free yet), [preempted].",
    """\
  bpflame offcpu -p 1234 -d 10             where one process waits
  bpflame offcpu -m 1ms --state S,D -d 10  what blocks for 1 ms or longer
  bpflame offcpu -p 1234 --max-depth 500   a program that calls itself deeply
  bpflame offcpu -- ./server --once        a command and all that it starts
""",
)


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    sched.add_parser(commands, _QUESTION).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record; returns the exit code."""
    return sched.run(options, OFFCPU)
