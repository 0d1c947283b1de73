"""``bpflame chain``: the whole chain of wakers."""

from __future__ import annotations

import argparse
from typing import Any

from bpflame.commands import sched
from bpflame.profilers.sched import CHAIN

_QUESTION = sched.Question(
    CHAIN,
    "where threads wait, who wakes them, who woke those, ...",
    "As offwake, and on: who ended the wait of the waker, if it waited meanwhile, up\n"
    "to --depth. Interrupts end a chain: [timer], [irq], [softirq].",
    """\
  bpflame chain -p 1234 -d 10              what a process waits for in the end
  bpflame chain -p 1234 --unwind fp        where everything has frame pointers
  bpflame chain --depth 4 -- ./pipeline    a command and all that it starts
""",
)


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    sched.add_parser(commands, _QUESTION).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record; returns the exit code."""
    return sched.run(options, CHAIN)
