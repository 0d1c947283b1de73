"""Signals that end a recording, and the wait for them.

The first ends the recording, which is then saved; a second cuts symbolization short. SIGTERM,
SIGHUP and SIGQUIT count as SIGINT does. Handlers are installed even where the signal was ignored
on entry (a shell ignores SIGINT for background jobs), except for SIGHUP: that is what nohup asks.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from types import FrameType, TracebackType

_ONE_EVENT = 0.5  # seconds in which a repeated signal, other than Ctrl-C, is the same one
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class StopSignals:
    """A context in which signals are counted and wake the waiting recorder.

    Attributes:
        count: How many came.
        last: The number of the last one; 0 when none came.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = 0
        self._when = 0.0
        self._saved: dict[signal.Signals, object] = {}
        self._read = self._write = -1
        self._saved_fd = -1

    def __enter__(self) -> StopSignals:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._saved_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._saved[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._saved_fd)
        os.close(self._read)
        os.close(self._write)

    @property
    def stopped(self) -> bool:
        """Whether the recording is to end."""
        return self.count >= 1

    @property
    def hurried(self) -> bool:
        """Whether what follows the recording is to be cut short, too."""
        return self.count >= 2

    def wait(self, seconds: float, *others: int | None) -> None:
        """Sleep until a signal comes, one of the other descriptors is readable, or time is up."""
        poll = select.poll()
        for fd in (self._read, *others):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        with contextlib.suppress(InterruptedError):
            poll.poll(max(seconds, 0.0) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 512)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = number == self.last and now - self._when < _ONE_EVENT
        self._when = now
        if again and number != signal.SIGINT:
            return  # a terminal that hangs up tells its jobs by way of the shell and of the kernel
        self.count += 1
        self.last = number
