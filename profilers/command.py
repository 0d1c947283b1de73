"""The command that is recorded: started behind a gate, so that its first instruction is sampled."""

from __future__ import annotations

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
        self._argv = argv
        self._status: int | None = None
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        self._failure, failure = os.pipe2(os.O_CLOEXEC)
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

    def pass_on(self, number: int) -> None:
        """Give the command a signal that ended the recording.

        A terminal has given SIGINT and SIGQUIT to its whole foreground group: a second one would
        be one too many.
        """
        from_terminal = number in (signal.SIGINT, signal.SIGQUIT) and os.isatty(0)
        if not from_terminal:
            self._signal(number)

    def end(self, signals: StopSignals) -> bool:
        """Ask it to end (SIGTERM) if it still runs; returns False when it does not."""
        if self.poll() is not None:
            return True
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while self.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0 or signals.hurried:
                return False
            signals.wait(left, self.pidfd)
        return True

    def close(self) -> None:
        """Let go of it; a command that was never released ends at its gate."""
        for fd in (self._gate, self._failure, self.pidfd):
            if fd >= 0:
                os.close(fd)
        if self._gate >= 0:
            self._reap(0)
        self._gate = self._failure = self.pidfd = -1

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _reap(self, flags: int) -> int | None:
        pid, status = os.waitpid(self.pid, flags)
        if pid:
            self._status = status
        return self._status


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
