"""What every command that records has in common: its options, and the way from start to file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from typing import Protocol

from bpflame import arguments
from bpflame.commands import results
from bpflame.console import Console, put
from bpflame.errors import UsageError
from bpflame.output import STDOUT, Output, unique_name
from bpflame.profile import Metadata, Profile
from bpflame.profilers.command import Command
from bpflame.profilers.identity import Identity, invoking_user
from bpflame.profilers.recorder import Progress, Recorder
from bpflame.profilers.signals import StopSignals
from bpflame.profilers.target import Target, find_cgroup
from bpflame.raw import RawProfile

_STDERR = 2


def add_targets(group: argparse._ArgumentGroup) -> None:
    """Declare the options that say whom to record."""
    add = group.add_argument
    add("-p", "--pid", type=arguments.numbers, metavar="PID[,PID]", help="these processes")
    add("-t", "--tid", type=arguments.numbers, metavar="TID[,TID]", help="these threads")
    add("--children", action="store_true", help="with -p: also what they start from now on")
    add("-n", "--comm", type=arguments.pattern, metavar="REGEX", help="threads of such a name")
    add("--cgroup", metavar="PATH", help="a version 2 control group and those below it")
    add("--as-root", action="store_true", help="under sudo: run the command as root")


def add_output(group: argparse._ArgumentGroup, kind: str) -> None:
    """Declare the options that say what to write."""
    add = group.add_argument
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="x.svg, x.folded or x.txt, x.bpflame; - is folded text on stdout "
        f"(default: {kind}-<target>-<time>.svg)",
    )
    add("--title", default="", help="the picture's title")
    add(
        "--by",
        choices=("comm", "pid", "tid", "cgroup"),
        default="comm",
        help="what the root frames tell apart (default: comm)",
    )
    add("--json", action="store_true", help="a summary for machines on stdout")
    add("-q", "--quiet", action="store_true", help="warnings and errors only")
    add("--no-progress", action="store_true", help="no progress line")
    add("--color", choices=("auto", "always", "never"), default="auto", help="(default: auto)")


def target_of(options: argparse.Namespace) -> Target:
    """The choice of tasks, checked.

    Raises:
        UsageError: It contradicts itself, or names what is not there.
    """
    if options.command is not None and not options.command:
        raise UsageError("no command after --")
    if options.command and (options.pid or options.tid or options.cgroup):
        raise UsageError("a command and -p, -t or --cgroup exclude each other")
    if options.pid and options.tid:
        raise UsageError("-p and -t exclude each other")
    if options.children and not options.pid:
        raise UsageError("--children needs -p")
    target = Target(
        options.pid or (),
        options.tid or (),
        options.children,
        options.comm,
        None if options.cgroup is None else find_cgroup(options.cgroup),
        tuple(options.command or ()),
    )
    target.check()
    return target


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One recording, as the user asked for it.

    Attributes:
        kind: The question: ``cpu``, ...
        target: Whom to record.
        options: The parsed command line.
        output: Where the result goes; checked.
        console: Where messages go.
        user: Who called sudo.
    """

    kind: str
    target: Target
    options: argparse.Namespace
    output: Output
    console: Console
    user: Identity | None

    @classmethod
    def of(cls, kind: str, options: argparse.Namespace) -> Request:
        """Check everything that can be checked before a recording starts."""
        progress = False if options.no_progress else None
        console = Console(options.quiet, progress, options.color)
        target = target_of(options)
        user = invoking_user()
        path = options.output or unique_name(kind, target.short())
        output = Output(path, None if user is None else (user.uid, user.gid))
        if options.json and path == STDOUT:
            raise UsageError("--json and -o - both want standard output")
        output.check()
        return cls(kind, target, options, output, console, user)

    def command(self) -> Command | None:
        """The command to record, waiting behind its gate."""
        if not self.target.command:
            return None
        # Our standard output is for data alone.
        stdout = _STDERR if self.output.path == STDOUT or self.options.json else 1
        return Command(self.target.command, None if self.options.as_root else self.user, stdout)


class Prepared(Protocol):
    """A compiled program, ready for its targets."""

    def recorder(self, command: Command | None, meta: Metadata) -> Recorder:
        """What records, for a command behind its gate and with what is known beforehand."""


def record(request: Request, first_line: str, prepare: Callable[[], Prepared]) -> int:
    """Record, name, write, account.

    Args:
        request: What was asked for.
        first_line: Said when the recording begins.
        prepare: Compiles the BPF program.

    Returns:
        The exit code: the command's own where there is one.
    """
    console = request.console
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        prepared = prepare()  # before the command exists: it may fail
        command = request.command()
        if command is not None:
            stack.callback(command.close)
        recorder = prepared.recorder(command, Metadata(title=request.options.title))
        stack.callback(recorder.close)
        raw = recorder.run(
            request.options.duration,
            signals,
            lambda now: _show(console, now),
            lambda: console.say(first_line),
        )
        exit_code = _end(command, signals, console)
        profile = _symbolize(raw, signals, console)
        console.progress("writing", force=True)
        results.write(profile, request.output, request.options.by)
        _account(profile, request, exit_code)
    return exit_code


def _show(console: Console, now: Progress) -> None:
    console.progress(
        f"recording: {now.elapsed:.0f} s, {now.samples:,} events, "
        f"{now.stacks:,} unique stacks, {now.lost:,} lost"
    )


def _end(command: Command | None, signals: StopSignals, console: Console) -> int:
    """See the command to its end; its exit code if it ended by itself or by the user's signal."""
    if command is None:
        return 0
    code = command.poll()
    if code is not None:
        return code
    if not command.end(signals):
        console.warn(f"the command still runs, as process {command.pid}")
        return 0
    return (command.poll() or 0) if signals.stopped else 0


def _symbolize(raw: RawProfile, signals: StopSignals, console: Console) -> Profile:
    # numpy takes a while to load: not before the recording has begun. It would start a thread on
    # each CPU for linear algebra, of which there is none here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from bpflame.symbolize.resolve import symbolize

    profile = symbolize(
        raw,
        lambda: signals.hurried,
        lambda done, total: console.progress(f"symbolizing: {done} of {total} files"),
    )
    if signals.hurried:
        console.warn("symbolization was cut short; addresses without names are in brackets")
    return profile


def _account(profile: Profile, request: Request, exit_code: int) -> None:
    console, output = request.console, request.output
    if not profile.samples:
        console.warn(f"no samples: {results.no_samples(profile.kind)}")
    if output.path != STDOUT:
        console.say(f"wrote {output.path}")
    console.say(results.audit(profile))
    if request.options.json:
        put(json.dumps(results.summary(profile, output, exit_code), sort_keys=True))
