"""What a user sees on the terminal: plain lines on stderr, data on stdout."""

from __future__ import annotations

import os
import sys
import time

from bpflame.errors import BpflameError
from bpflame.flamegraph.text import printable

_INTERVAL = 0.25  # seconds between two pictures of the progress line


def shorten(text: str, width: int = 60) -> str:
    """Text on one line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def put(text: str) -> None:
    """Data for standard output, a line or more.

    Raises:
        BpflameError: It cannot be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise BpflameError(f"cannot write standard output: {error.strerror}") from error


def drop_stdout() -> None:
    """Let go of a standard output that cannot be written, or Python tries again at exit."""
    _drop(1)


def _drop(fd: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


class Console:
    """Messages and one line of progress.

    Args:
        quiet: Say nothing but errors.
        progress: Show progress; None to do so when stderr is a terminal.
        color: ``auto``, ``always`` or ``never``.
    """

    def __init__(self, quiet: bool = False, progress: bool | None = None, color: str = "auto"):
        terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._progress = (terminal if progress is None else progress) and not quiet
        wanted = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        wanted = wanted or bool(os.environ.get("FORCE_COLOR"))
        self._color = color == "always" or (color == "auto" and wanted)
        self._shown = False
        self._last = 0.0

    def say(self, text: str) -> None:
        """One line for the user."""
        if not self._quiet:
            self._clear()
            self._write(f"bpflame: {printable(text)}\n")

    def warn(self, text: str) -> None:
        """One line that must not be missed."""
        self._clear()
        self._write(f"bpflame: {self._paint('33', 'warning:')} {printable(text)}\n")

    def error(self, text: str, hint: str = "") -> None:
        """What failed, and what to do about it."""
        self._clear()
        lines = [f"bpflame: {self._paint('31', 'error:')} {printable(text)}"]
        lines += [f"  {printable(line)}" for line in hint.splitlines()]
        self._write("\n".join(lines) + "\n")

    def progress(self, text: str, force: bool = False) -> None:
        """Replace the line of progress, at most a few times a second."""
        now = time.monotonic()
        if not self._progress or (now - self._last < _INTERVAL and not force):
            return
        self._last = now
        width = _columns() - 1
        self._write(f"\r{printable(text)[:width]:<{width}}")
        self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._shown = False
            self._write("\r" + " " * (_columns() - 1) + "\r")

    def _write(self, text: str) -> None:
        """Write to stderr if it is still there: a closed terminal must not cost the recording."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self._progress = False
            _drop(2)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


def _columns() -> int:
    try:
        return max(os.get_terminal_size(2).columns, 20)
    except OSError:
        return 80
