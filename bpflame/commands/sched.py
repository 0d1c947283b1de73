"""What the four commands that record waits have in common."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

from bpflame import arguments
from bpflame.bpf.kallsyms import kernel_entries
from bpflame.bpf.privileges import require_privileges
from bpflame.commands.recording import Request, add_output, add_targets, record
from bpflame.commands.stacks import add_stacks, choose_unwind
from bpflame.console import shorten
from bpflame.errors import UsageError
from bpflame.output import PROFILE
from bpflame.profilers.sched import CHAIN, MAX_WAKERS, OFFCPU, WAKEUP, SchedOptions, prepare
from bpflame.profilers.waits import STATES


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One of the four commands.

    Attributes:
        name: The command.
        help: What it shows, in a few words.
        description: How the picture is read.
        examples: For the end of the help.
    """

    name: str
    help: str
    description: str
    examples: str


def add_parser(commands: Any, question: Question) -> argparse.ArgumentParser:
    """Declare a command and its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        question.name,
        help=question.help,
        usage=f"bpflame {question.name} [options] [-- COMMAND ARGS...]",
        description=f"{question.description}\n"
        "Without a target: the whole system. Without -d and a command: until Ctrl-C.",
        epilog=f"examples:\n{question.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("whose waits")
    add_targets(group)
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("-u", "--user-threads", action="store_true", help="of user threads only")
    kinds.add_argument("-k", "--kernel-threads", action="store_true", help="of kernel threads only")
    waits = parser.add_argument_group("which waits")
    _add_waits(waits)
    _add_shape(waits, question.name)
    add_stacks(parser.add_argument_group("which stacks"))
    add_output(parser.add_argument_group("what to write"), question.name)
    return parser


def _add_waits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-d", "--duration", type=arguments.duration, metavar="SECONDS", help="10, 1.5, 500ms, 2m")
    add(
        "-m",
        "--min",
        type=arguments.shortest_wait,
        metavar="TIME",
        default=0,
        help="shortest wait that counts: 100us, 1ms, 2s; a bare number is microseconds",
    )
    add("-M", "--max", type=arguments.wait_length, metavar="TIME", help="longest wait that counts")
    add(
        "--state",
        type=states,
        metavar="S,D,...",
        default=(),
        help="only waits that begin in these states, as ps names them: "
        "R (ready to run), S, D, T, t, P, I",
    )
    add("--whole-only", action="store_true", help="no waits that began before, or had not ended")
    add(
        "--sample",
        type=arguments.one_in,
        default=1,
        metavar="1/N",
        help="for busy systems: follow one wait in N, and let it count N times",
    )


def _add_shape(group: argparse._ArgumentGroup, question: str) -> None:
    add = group.add_argument
    if question == CHAIN:
        add(
            "--depth",
            type=depth,
            default=8,
            metavar="N",
            help=f"how many wakers in a row, up to {MAX_WAKERS} (default: 8)",
        )
    if question != WAKEUP:
        add(
            "--split",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="tell time blocked, in the run queue and preempted apart (default: yes)",
        )
    add("--check-stacks", action="store_true", help=argparse.SUPPRESS)


def states(text: str) -> tuple[str, ...]:
    """Letters of ``S,D``."""
    letters = tuple(dict.fromkeys(text.split(",")))
    unknown = [letter for letter in letters if letter not in STATES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"not a state: {unknown[0]!r} (known are {', '.join(STATES)}, as ps names them)"
        )
    return letters


def depth(text: str) -> int:
    """A number of wakers."""
    if re.fullmatch("[0-9]{1,2}", text) is None or not 1 <= int(text) <= MAX_WAKERS:
        raise argparse.ArgumentTypeError(f"not a depth from 1 to {MAX_WAKERS}: {text!r}")
    return int(text)


def run(options: argparse.Namespace, question: str) -> int:
    """Record; returns the exit code."""
    request = Request.of(question, options)
    chosen = _chosen(request, options)
    require_privileges()
    # Stacks are taken of tasks that switch or wake another, not of what an interrupt interrupted.
    chosen = dataclasses.replace(chosen, unwind=choose_unwind(request, interrupts=False))
    if chosen.wakers and not kernel_entries().interrupts:
        request.console.warn(
            "the kernel hides its addresses: wakeups by interrupts go to the task that they stop"
        )
    length = "" if options.duration is None else f" for {options.duration:g} s"
    what = "waits" if question == OFFCPU else "waits and who ends them"
    whose = shorten(request.target.describe())
    first = f"recording {what}, {whose}{length}; Ctrl-C stops and saves"
    return record(request, first, lambda: prepare(chosen))


def _chosen(request: Request, options: argparse.Namespace) -> SchedOptions:
    if options.max is not None and options.max < options.min:
        raise UsageError("-M is less than -m: no wait has such a length")
    if options.sample > 1 and request.kind == CHAIN:
        raise UsageError("--sample: a chain needs every wait, or it is torn")
    keep_all = request.output.kind == PROFILE  # to be grouped when it is drawn
    return SchedOptions(
        request.kind,
        request.target,
        depth=getattr(options, "depth", 1),
        shortest=options.min,
        longest=options.max,
        states=options.state,
        user=not options.kernel_stacks,
        kernel=not options.user_stacks,
        only="user" if options.user_threads else "kernel" if options.kernel_threads else "",
        threads=keep_all or options.by == "tid",
        cgroups=keep_all or options.by == "cgroup",
        split=getattr(options, "split", True),
        whole_only=options.whole_only,
        sample=options.sample,
        max_depth=options.max_depth,
        check=options.check_stacks,
    )
