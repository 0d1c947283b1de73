"""Where functions of the kernel lie, for programs that look at return addresses."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Sequence
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")

Range = tuple[int, int]

# Entries for interrupts: DECLARE_IDTENTRY_SYSVEC and IRQ in arch/x86/include/asm/idtentry.h,
# arch/arm64/kernel/entry.S.
_INTERRUPTS = {
    "x86_64": rb"asm_(?:sysvec_\w+|common_interrupt|spurious_interrupt|exc_xen_hypervisor_callback)"
    rb"|common_interrupt|fred_extint",
    "aarch64": rb"el(?:1h|0t)_(?:64|32)_(?:irq|fiq)|el[01]_irq(?:_compat)?",
}
_EXCEPTIONS = rb"asm_(?:exc|int)\w+|asm_fred_entrypoint_kernel"
# kernel/entry/common.c; arm64: do_notify_resume
_USER_EXITS = rb"(?:irqentry_)?exit_to_user_mode\w*|do_notify_resume|arch_do_signal_or_restart"
# DEFINE_BPF_TRACE in kernel/trace/bpf_trace.c
_CALLERS = rb"bpf_trace_run\d+"


def ranges(text: bytes, pattern: bytes) -> tuple[Range, ...]:
    """Where the functions lie whose whole name matches, those next to each other as one.

    Args:
        text: /proc/kallsyms.
        pattern: A regular expression.

    Returns:
        Start and end of each range, by address; empty where the kernel hides its addresses.
    """
    found: list[Range] = []
    for match in re.finditer(rb"^([0-9a-f]+) [tTwW] (?:%b)$" % pattern, text, re.MULTILINE):
        start = int(match[1], 16)
        if start:
            found.append((start, _end(text, start, match.end())))
    merged: list[Range] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def _end(text: bytes, start: int, position: int) -> int:
    """The next symbol's address; kallsyms lists the core kernel by address."""
    for line in re.finditer(rb"^([0-9a-f]+) ", text[position : position + 4096], re.MULTILINE):
        address = int(line[1], 16)
        if address > start:
            return address
    return start + 1


def macro(found: Sequence[Range]) -> str:
    """As ``RANGE(from, to)`` of ``programs/stack.h``, one after the other."""
    return "".join(f"RANGE({start:#x}ULL,{end:#x}ULL)" for start, end in found)


class KernelEntries:
    """What the programs and the recorder want to know of the kernel's code.

    Attributes:
        interrupts: Entries for interrupts; return addresses there say that one began.
        exceptions: Entries for exceptions.
        callers: What calls programs at raw tracepoints.
        user_exits: The way back to user code, where a task does work of its own.
    """

    def __init__(self, text: bytes) -> None:
        machine = platform.machine()
        self.interrupts = ranges(text, _INTERRUPTS[machine]) if machine in _INTERRUPTS else ()
        self.exceptions = ranges(text, _EXCEPTIONS)
        self.callers = ranges(text, _CALLERS)
        self.user_exits = ranges(text, _USER_EXITS)


@functools.cache
def kernel_entries() -> KernelEntries:
    """The running kernel's."""
    try:
        return KernelEntries(KALLSYMS.read_bytes())
    except OSError:
        return KernelEntries(b"")
