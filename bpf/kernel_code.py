"""What a function of the running kernel calls, read from its machine code.

Version numbers cannot tell whether a kernel has a fix, since distributions carry fixes back. The
code can.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.errors import BpflameError

_SIZE = 2048  # bytes; the functions asked for are shorter
_CALL, _JUMP = 0xE8, 0xE9  # with a 32-bit displacement: Intel SDM, volume 2, CALL and JMP


def calls(caller: str, callee: str) -> bool | None:
    """Whether one kernel function calls (or tail-calls) another.

    Returns:
        None where that cannot be told: another architecture, hidden symbols, no privileges.
    """
    if platform.machine() != "x86_64":
        return None
    symbols = _text_symbols()
    if caller not in symbols:
        return None
    if callee not in symbols:
        return False
    start = symbols[caller]
    size = min((address - start for address in symbols.values() if address > start), default=_SIZE)
    try:
        code = _read_code(start)[:size]
    except BpflameError:
        return None
    return symbols[callee] in _call_targets(code, start) if any(code) else None


def _text_symbols() -> dict[str, int]:
    text = Path("/proc/kallsyms").read_text(errors="replace")
    found = re.findall(r"^([0-9a-f]+) [tT] (\S+)$", text, re.MULTILINE)
    return {name: int(address, 16) for address, name in found if int(address, 16)}


def _read_code(address: int) -> bytes:
    program = Program(
        "code",
        {"CODE_ADDRESS": f"{address:#x}ULL", "CODE_SIZE": _SIZE, "OWN_PID": os.getpid()},
    )
    try:
        program.attach_raw_tracepoint("bpflame_code", "sys_enter")
        os.getppid()  # any system call
        return BpfMap(program.map_fd("code"), 4, _SIZE).lookup(bytes(4)) or b""
    finally:
        program.close()


def _call_targets(code: bytes, start: int) -> set[int]:
    # Every position, not only where an instruction begins: what is found by chance inside another
    # instruction points to the very function asked for once in four billion times.
    return {
        start + i + 5 + int.from_bytes(code[i + 1 : i + 5], "little", signed=True)
        for i in range(len(code) - 4)
        if code[i] in (_CALL, _JUMP)
    }
