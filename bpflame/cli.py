"""The command line: arguments to a command, errors to the user."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import bpflame.commands.chain
import bpflame.commands.cpu
import bpflame.commands.doctor
import bpflame.commands.offcpu
import bpflame.commands.offwake
import bpflame.commands.render
import bpflame.commands.wakeup
from bpflame import __version__
from bpflame.console import Console, drop_stdout
from bpflame.errors import BpflameError, UsageError

COMMANDS = (
    bpflame.commands.cpu,
    bpflame.commands.offcpu,
    bpflame.commands.wakeup,
    bpflame.commands.offwake,
    bpflame.commands.chain,
    bpflame.commands.render,
    bpflame.commands.doctor,
)
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


class Parser(argparse.ArgumentParser):
    """argparse with our way to fail: an exception, printed in one place."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message, f"see: {self.prog} --help")


def parser() -> Parser:
    """All commands and their options."""
    top = Parser(
        prog="bpflame",
        description="Where a Linux system spends its time: BPF stack profiles as flame graphs.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"bpflame {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run bpflame; returns its exit code.

    0 ok; with ``-- COMMAND`` the command's own; 1 cannot record or write; 2 wrong usage or bad
    input; 130 interrupted before anything was recorded.
    """
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command: list[str] | None = None
    if "--" in arguments:
        split = arguments.index("--")
        arguments, command = arguments[:split], arguments[split + 1 :]
    console = Console()
    try:
        options, extra = parser().parse_known_args(arguments)
        if extra:
            _refuse(extra)
        options.command = command
        console = Console(color=getattr(options, "color", "auto"))
        return int(options.run(options))
    except BpflameError as error:
        console.error(error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:
        drop_stdout()  # whoever read it has gone, and need not be told
        return _BROKEN_PIPE
    except OSError as error:  # what nothing closer to it could explain
        console.error(str(error), "see: bpflame doctor")
        return BpflameError.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130


def _open_standard_streams() -> None:
    """Give closed standard descriptors to /dev/null, or the next file opened becomes one."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - for good


def _refuse(extra: list[str]) -> NoReturn:
    if extra[0].startswith("-") and extra[0] != "-":
        raise UsageError(f"unknown option: {extra[0]}", "see: bpflame --help")
    raise UsageError(
        f"unexpected argument: {extra[0]}",
        f"to record a command, put -- before it: bpflame ... -- {' '.join(extra)}",
    )
