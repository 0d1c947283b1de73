"""What stops a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")
_TRIES = 3


class BenchmarkError(Exception):
    """Something is missing, or a profiler failed; the message says what."""


def retried(measure: Callable[[], _Found]) -> _Found:
    """Measure again if a profiler failed, and say so: one crash must not cost the whole run.

    Raises:
        BenchmarkError: It fails every time.
    """
    for _ in range(_TRIES - 1):
        try:
            return measure()
        except BenchmarkError as error:
            print(f"again, since it failed: {error}", file=sys.stderr, flush=True)
    return measure()
