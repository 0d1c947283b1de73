"""Errors that reach the user: each has an exit code, and a hint when there is something to do.

::

    BpflameError            exit 1: cannot record, cannot write
     +-- UsageError         exit 2: wrong usage or bad input
          +-- InputError    exit 2: a file that cannot be understood, named
     +-- Interrupted        exit 130: stopped before anything was recorded

Only :func:`bpflame.cli.main` prints them.
"""

from __future__ import annotations


class BpflameError(Exception):
    """A failure that the user can understand: one line, and what to do about it.

    Args:
        message: What failed, naming the thing (file, pid, setting). One line, no full stop.
        hint: The command or setting that mends it; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BpflameError):
    """Wrong usage: an option, a pid or a command that cannot be taken."""

    exit_code = 2


class InputError(UsageError):
    """A file that cannot be read as what it should be.

    Args:
        path: The file, named in the message.
        problem: What is wrong with it, with the line or field where that is known.
    """

    def __init__(self, path: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{path}: {problem}", hint)
        self.path = path


class Interrupted(BpflameError):  # noqa: N818 - a signal, not a defect
    """Stopped by a signal before anything was recorded."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted before anything was recorded")
