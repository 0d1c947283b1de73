"""``bpflame render``: draw a recording, or folded stacks, again."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
from typing import IO, Any

from bpflame.commands import results
from bpflame.console import Console
from bpflame.errors import InputError, UsageError
from bpflame.flamegraph.folded import read_folded
from bpflame.output import STDOUT, Output
from bpflame.profile import FrameKind, Profile
from bpflame.profile_file import MAGIC, read_profile
from bpflame.profilers.identity import invoking_user

_UNITS = {"cpu": "samples", "offcpu": "ns", "wakeup": "ns", "offwake": "ns", "chain": "ns"}
"""What bpflame records, and the unit of its values."""


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "render",
        help="draw a recording (.bpflame) or folded stacks",
        description="Read a recording or folded stacks and write a picture, folded stacks, or a "
        "recording. Needs no root and no BPF: any machine will do.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("input", metavar="FILE", help="x.bpflame, or folded text; - is stdin")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="x.svg, x.folded or x.txt, x.bpflame; - is folded text on stdout "
        "(default: FILE's name with .svg)",
    )
    parser.add_argument("--title", default="", help="the picture's title")
    parser.add_argument(
        "--by",
        choices=("comm", "pid", "tid", "cgroup"),
        default="comm",
        help="what the root frames of a recording tell apart (default: comm)",
    )
    parser.add_argument(
        "--kind",
        choices=_UNITS,
        default="",
        help="what folded text is about, which it does not tell itself (default: cpu)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")


def run(options: argparse.Namespace) -> int:
    """Read and write; returns the exit code."""
    if options.command is not None:
        raise UsageError("render takes no command")
    user = invoking_user()
    path = options.output or _default_name(options.input)
    output = Output(path, None if user is None else (user.uid, user.gid))
    output.check()
    profile = read(options.input, options.kind)
    if not options.kind and _looks_like_waits(profile):
        Console(options.quiet).warn("this looks like waits: say --kind offcpu, offwake or chain")
    if options.title:
        meta = dataclasses.replace(profile.meta, title=options.title)
        profile = dataclasses.replace(profile, meta=meta)
    results.write(profile, output, options.by)
    if output.path != STDOUT:
        Console(options.quiet).say(f"wrote {output.path}")
    return 0


def read(path: str, kind: str = "") -> Profile:
    """A profile from a file of any kind that is known, told by its first bytes.

    Args:
        path: The file; ``-`` is standard input.
        kind: The kind of a profile in a file that does not tell; empty for ``cpu``.

    Raises:
        InputError: It cannot be read, or understood.
    """
    if path == STDOUT:
        return _parse(sys.stdin.buffer, "standard input", kind)
    try:
        with open(path, "rb") as file:
            return _parse(file, path, kind)
    except OSError as error:
        raise InputError(path, error.strerror or "cannot be read") from error


def _parse(file: IO[bytes], name: str, kind: str) -> Profile:
    if not file.seekable():
        file = io.BytesIO(file.read())
    start = file.read(len(MAGIC))
    file.seek(0)
    if start == MAGIC:
        if kind:
            raise UsageError(f"--kind {kind}: {name} is a recording, which tells its kind itself")
        return read_profile(file, name)
    text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape")
    try:
        return read_folded(text, name, kind or "cpu", _UNITS[kind or "cpu"])
    finally:
        text.detach()


def _looks_like_waits(profile: Profile) -> bool:
    """Whether text that does not tell its kind is of threads that wait."""
    kinds = (FrameKind.WAIT, FrameKind.WAKER, FrameKind.SEPARATOR)
    return profile.kind == "cpu" and any(
        frame.kind in kinds for sample in profile.samples for frame in sample.stack
    )


def _default_name(path: str) -> str:
    if path == STDOUT:
        raise UsageError("render - needs -o FILE")
    return os.path.splitext(os.path.basename(path))[0] + ".svg"
