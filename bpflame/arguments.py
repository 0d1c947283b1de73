"""Values on the command line: durations, lists of numbers, and options that commands share."""

from __future__ import annotations

import argparse
import re

from bpflame.bpf.cpus import parse_cpus

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of ``30``, ``1.5``, ``10s``, ``2m``, ``500ms``."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(|ms|us|s|m|h)", text)
    if match is None or not 0 < float(match[1]) * _UNITS[match[2]] < 1e9:
        raise argparse.ArgumentTypeError(f"not a duration: {text!r} (try 10, 1.5, 500ms, 2m)")
    return float(match[1]) * _UNITS[match[2]]


def wait_length(text: str) -> int:
    """Nanoseconds of ``100us``, ``1ms``; a bare number is microseconds, as for offcputime."""
    try:
        seconds = duration(text if text[-1:].isalpha() else text + "us")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"not a length of time: {text!r} (try 100us, 1ms, 2s)"
        ) from None
    return round(seconds * 1e9)


def shortest_wait(text: str) -> int:
    """The same, or 0 for no minimum."""
    return 0 if re.fullmatch("0(|us|ms|s|m|h)", text) else wait_length(text)


def one_in(text: str) -> int:
    """N of ``1/N`` or ``N``, from 1 on."""
    match = re.fullmatch(r"(?:1/)?([1-9]\d{0,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"not one in so many: {text!r} (try 1/10)")
    return int(match[1])


def numbers(text: str) -> tuple[int, ...]:
    """Positive numbers of ``1,2,3``."""
    if re.fullmatch(r"\d{1,10}(,\d{1,10})*", text) is None:
        raise argparse.ArgumentTypeError(f"not a list of numbers: {text!r} (try 12 or 12,34)")
    found = tuple(dict.fromkeys(int(number) for number in text.split(",")))
    if any(not 0 < number < 1 << 31 for number in found):
        raise argparse.ArgumentTypeError(f"not a process or thread id: {text!r}")
    return found


def cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of ``0-3,8``."""
    try:
        found = parse_cpus(text)
    except ValueError:
        found = ()
    if not found:
        raise argparse.ArgumentTypeError(f"not a list of CPUs: {text!r} (try 0 or 0-3,8)")
    return found


def frequency(text: str) -> int:
    """A rate in Hz, a whole number from 1 on."""
    if re.fullmatch(r"[1-9]\d{0,6}", text) is None:
        raise argparse.ArgumentTypeError(f"not a rate in Hz: {text!r} (try 99)")
    return int(text)


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {text!r}: {error}") from error
