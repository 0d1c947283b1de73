"""Which stacks the commands that record take, and how user stacks are unwound."""

from __future__ import annotations

import argparse
import re

from bpflame.commands.recording import Request
from bpflame.profilers.unwind_choice import AUTO, DEFAULT_DEPTH, MAX_DEPTH, Unwind, choose


def add_stacks(group: argparse._ArgumentGroup) -> None:
    """Declare the options that say which stacks to take."""
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("-U", "--user-stacks", action="store_true", help="user stacks only")
    kinds.add_argument("-K", "--kernel-stacks", action="store_true", help="kernel stacks only")
    group.add_argument(
        "--unwind",
        choices=(AUTO, *(each.value for each in Unwind)),
        default=AUTO,
        help="user stacks by the unwind tables of programs (dwarf), which need no frame pointers, "
        "or along frame pointers (fp); auto is dwarf where that can be had (default: auto)",
    )
    group.add_argument(
        "--max-depth",
        type=max_depth,
        default=DEFAULT_DEPTH,
        metavar="N",
        help=f"how many user frames a stack may have, up to {MAX_DEPTH} (default: {DEFAULT_DEPTH})",
    )


def max_depth(text: str) -> int:
    """A number of frames."""
    if re.fullmatch("[0-9]{1,3}", text) is None or not 1 <= int(text) <= MAX_DEPTH:
        raise argparse.ArgumentTypeError(f"not a number of frames from 1 to {MAX_DEPTH}: {text!r}")
    return int(text)


def choose_unwind(request: Request, interrupts: bool) -> Unwind:
    """How to unwind user stacks; where it is not as one would expect, the user is told.

    Args:
        request: Checked, and by one with the privileges to record.
        interrupts: Stacks are taken in interrupts.

    Raises:
        UsageError: What was asked for cannot be had here.
    """
    if request.options.kernel_stacks:
        return Unwind.FP
    unwind, reason = choose(request.options.unwind, interrupts)
    if reason:
        request.console.say(reason)
    return unwind
