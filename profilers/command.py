"""The command that is recorded: started behind a gate, so that its first instruction is sampled."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
import time
from typing import NoReturn

from bpflame.errors import UsageError
from bpflame.profilers.identity import Identity, act_as
from bpflame.profilers.signals import StopSignals

_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)  # as bpflame was given it
_PATIENCE = 3.0  # seconds between asking a command to end and leaving it alone
_DEFAULT_ACTION = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)


def find_command(argv: tuple[str, ...]) -> str:
    """The file that a command names.

    Raises:
        UsageError: There is none, or it cannot be executed.
    """
    found = shutil.which(argv[0])
    if found is None:
        known = os.path.exists(argv[0]) and "/" in argv[0]
        problem = "is not executable" if known else "not found"
        raise UsageError(f"command {problem}: {argv[0]}")
    return found


class Command:
    """A child process that waits to be let go.

    Args:
        argv: The command and its arguments.
        identity: Run it as this user; None for bpflame's own.
        stdout: Its standard output.
    """

    def __init__(self, argv: tuple[str, ...], identity: Identity | None, stdout: int = 1) -> None:
        self._path = find_command(argv)
        self._status: int | None = None
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        self._failure, failure = os.pipe2(os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # were it ignored, its status would be lost
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _child(self._path, argv, identity, stdout, gate, failure)
        os.close(gate)
        os.close(failure)
        self.pidfd = os.pidfd_open(self.pid)

    def release(self) -> None:
        """Let the command run.

        Raises:
            UsageError: It could not be executed.
        """
        with contextlib.suppress(BrokenPipeError):  # it ended before; the reason comes below
            os.write(self._gate, b"\0")
        os.close(self._gate)
        self._gate = -1
        problem = os.read(self._failure, 16)  # ends when exec closes the other side
        os.close(self._failure)
        self._failure = -1
        if problem:
            self._reap(os.WNOHANG)
            raise UsageError(f"cannot run {self._path}: {os.strerror(int(problem))}")

    def poll(self) -> int | None:
        """Its exit code, 128 + N when signal N killed it; None while it runs."""
        status = self._status if self._status is not None else self._reap(os.WNOHANG)
        if status is None:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def end(self, signals: StopSignals) -> bool:
        """See the command to its end; returns False when it outlives our patience.

        A signal that ended the recording is for the command too. Left alone, it gets some time for
        that; then, or when the time was up, it is asked to end.
        """
        if signals.stopped:
            if not _came_from_terminal(signals.last):
                self._signal(signals.last)
            if self._ended(signals):
                return True
        self._signal(signal.SIGTERM)
        return self._ended(signals)

    def close(self) -> None:
        """Let go of it; a command that was never released ends at its gate."""
        for fd in (self._gate, self._failure, self.pidfd):
            if fd >= 0:
                os.close(fd)
        if self._gate >= 0:
            self._reap(0)
        self._gate = self._failure = self.pidfd = -1

    def _ended(self, signals: StopSignals) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while self.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0 or signals.hurried:
                return False
            signals.wait(left, self.pidfd)
        return True

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _reap(self, flags: int) -> int | None:
        pid, status = os.waitpid(self.pid, flags)
        if pid:
            self._status = status
        return self._status


def _came_from_terminal(number: int) -> bool:
    """Whether the command, in our process group, had the signal from the terminal already."""
    if number not in (signal.SIGINT, signal.SIGQUIT):
        return False
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


def _child(
    path: str,
    argv: tuple[str, ...],
    identity: Identity | None,
    stdout: int,
    gate: int,
    failure: int,
) -> NoReturn:
    number = errno.EIO
    try:
        signal.set_wakeup_fd(-1)
        for each in _DEFAULT_ACTION:
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:  # nohup
                signal.signal(each, signal.SIG_DFL)
        if stdout != 1:
            os.dup2(stdout, 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, _LIMIT)
        environment = dict(os.environ)
        if identity is not None:
            environment.update(identity.environment)
            act_as(identity)
        if os.read(gate, 1):
            os.execve(path, argv, environment)
        os._exit(0)  # the gate was closed: bpflame gave up
    except OSError as error:
        number = error.errno or number
    finally:
        os.write(failure, str(number).encode())
        os._exit(127)
