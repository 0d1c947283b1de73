"""How user stacks are unwound: what was asked for, and what this kernel can do."""

from __future__ import annotations

import enum
import platform

from bpflame.bpf.btf import Btf
from bpflame.bpf.freeze import MENDED, can_freeze
from bpflame.errors import BpflameError, UsageError

AUTO = "auto"
MAX_DEPTH, DEFAULT_DEPTH = 511, 127
"""Frames of a user stack: at most, and if nothing else is asked for."""


class Unwind(enum.Enum):
    """How user stacks are unwound. The value is that of ``--unwind``."""

    DWARF = "dwarf"
    """By tables of call frame information, which need no frame pointers."""
    FP = "fp"
    """Along frame pointers: whole only in code that is built with them."""


def choose(asked: str, interrupts: bool) -> tuple[Unwind, str]:
    """How to unwind.

    Args:
        asked: ``auto``, ``dwarf`` or ``fp``.
        interrupts: Stacks are taken in interrupts, maskable or not, where reading user memory can
            freeze some kernels; telling them apart needs privileges.

    Returns:
        The choice, and one line for the user why it is frame pointers, if nobody asked for them.

    Raises:
        UsageError: ``dwarf`` cannot be had here.
    """
    if asked == Unwind.FP.value:
        return Unwind.FP, ""
    missing = lacks() or (_freezes() if interrupts else "")
    if not missing:
        return Unwind.DWARF, ""
    if asked == Unwind.DWARF.value:
        raise UsageError(f"--unwind dwarf: {missing}", "--unwind fp walks along frame pointers")
    return Unwind.FP, f"user stacks are walked along frame pointers: {missing}"


def lacks() -> str:
    """Why this system cannot unwind by tables at all; empty if it can."""
    machine = platform.machine()
    if machine != "x86_64":
        return f"unwind tables are known for x86-64 only, not for {machine}"
    try:
        known = Btf.of_kernel().knows("BPF_FUNC_task_pt_regs")
    except BpflameError as error:
        return error.message
    return "" if known else "this kernel has no bpf_task_pt_regs (from Linux 5.15 on)"


def _freezes() -> str:
    if not can_freeze():  # nor where it cannot be told
        return ""
    return f"this kernel can freeze when interrupts read user memory (mended in {MENDED})"
