"""``bpflame cpu``: where the CPU time goes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from bpflame import arguments
from bpflame.bpf.privileges import require_privileges
from bpflame.commands.recording import Request, add_output, add_targets, record
from bpflame.commands.stacks import add_stacks, choose_unwind
from bpflame.console import shorten
from bpflame.output import PROFILE
from bpflame.profilers.cpu import CpuOptions, prepare

_EXAMPLES = """\
examples:
  bpflame cpu -d 10                      the whole system for ten seconds
  bpflame cpu -p 1234 -o app.svg         one process, until Ctrl-C
  bpflame cpu -F 999 -- ./server --once  a command and all that it starts
  bpflame cpu -p 1234 --max-depth 500    a program that calls itself deeply
  bpflame cpu --unwind fp -d 10          where everything has frame pointers
  bpflame cpu -d 10 -o - | grep malloc   folded stacks for other tools
  bpflame cpu -d 10 -o run.bpflame       keep the recording, draw it later:
  bpflame render run.bpflame --by pid -o run.svg
"""


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "cpu",
        help="where the CPU time goes",
        usage="bpflame cpu [options] [-- COMMAND ARGS...]",
        description="Sample the stacks of what runs on the CPUs and draw them as a flame graph.\n"
        "Without a target: the whole system. Without -d and a command: until Ctrl-C.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add_targets(parser.add_argument_group("whom to sample"))
    _add_sampling(parser.add_argument_group("how to sample"))
    add_stacks(parser.add_argument_group("which stacks"))
    add_output(parser.add_argument_group("what to write"), "cpu")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-F",
        "--freq",
        type=arguments.frequency,
        default=99,
        metavar="HZ",
        help="samples per second and CPU (default: 99)",
    )
    add("-d", "--duration", type=arguments.duration, metavar="SECONDS", help="10, 1.5, 500ms, 2m")
    add("-C", "--cpu", type=arguments.cpus, metavar="CPUS", help="only these CPUs: 0-3,8")
    add("-I", "--idle", action="store_true", help="idle CPUs too")
    add(
        "--event",
        choices=("cpu-clock", "cycles"),
        default="cpu-clock",
        help="cpu-clock works everywhere, cycles need a PMU (default: cpu-clock)",
    )


def run(options: argparse.Namespace) -> int:
    """Record; returns the exit code."""
    request = Request.of("cpu", options)
    keep_all = request.output.kind == PROFILE  # to be grouped when it is drawn
    chosen = CpuOptions(
        target=request.target,
        frequency=options.freq,
        event=options.event,
        cpus=options.cpu,
        user=not options.kernel_stacks,
        kernel=not options.user_stacks,
        idle=options.idle,
        threads=keep_all or options.by == "tid",
        cgroups=keep_all or options.by == "cgroup",
        max_depth=options.max_depth,
    )
    chosen.check()
    require_privileges()
    # Both events are interrupts: cycles one that cannot be masked, cpu-clock that of a timer.
    chosen = dataclasses.replace(chosen, unwind=choose_unwind(request, interrupts=True))

    length = "" if options.duration is None else f" for {options.duration:g} s"
    first = (
        f"sampling {shorten(request.target.describe())} at {chosen.frequency} Hz ({chosen.event})"
        f"{length}; Ctrl-C stops and saves"
    )
    return record(request, first, lambda: prepare(chosen))
