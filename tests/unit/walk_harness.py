"""The headers of the BPF programs, compiled with gcc: their walk as a library, their constants."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bpflame.bpf.load import PROGRAMS
from bpflame.bpf.unwind.copies import Place
from bpflame.bpf.unwind.walk import Walked
from bpflame.raw import AbsoluteAddress, StackEnd

_HERE = Path(__file__).resolve().parent
_FLAGS = ("-O1", "-D_GNU_SOURCE", "-fno-strict-aliasing", f"-I{PROGRAMS}", f"-I{_HERE}")
MOST = 127


class _Asked(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("ip", "sp", "bp", "r10", "di")),
        *((name, ctypes.c_uint32) for name in ("exact", "block", "mappings", "most")),
    )


class Memory(ctypes.Structure):
    _fields_ = (("at", ctypes.c_uint64), ("size", ctypes.c_uint64), ("bytes", ctypes.c_char_p))


class _Told(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("depth", "end", "guessed")),
        ("ip", ctypes.c_uint64 * MOST),
    )


@functools.cache
def compiled(name: str) -> ctypes.CDLL:
    """A C file of this folder as a library, built once."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}.so"
        command = ["gcc", "-shared", "-fPIC", *_FLAGS, "-o", path, str(_HERE / name)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(path)


def memory_of(parts: Sequence[tuple[int, bytes]]) -> ctypes.Array[Memory]:
    """Addresses and what lies there, for C."""
    return (Memory * len(parts))(*((at, len(data), data) for at, data in parts))


@functools.cache
def library() -> ctypes.CDLL:
    """``walk_harness.c``."""
    lib = compiled("walk_harness.c")
    lib.find_row.argtypes = (ctypes.c_uint32, ctypes.c_uint64)
    lib.find_row.restype = ctypes.c_int32
    lib.find_mapping.argtypes = (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64)
    lib.find_mapping.restype = ctypes.c_uint64
    lib.set_chunk.argtypes = (ctypes.c_uint32, ctypes.c_void_p)
    return lib


def walk(
    leaf: Place,
    rules: Sequence[int],
    block: int,
    mappings: int,
    memory: Sequence[tuple[int, bytes]],
    most: int = MOST,
) -> Walked:
    """A walk by the C code; the chunks of tables are what :func:`fakes.arena` made last.

    Args:
        leaf: The registers.
        rules: By number.
        block: Where the mappings lie.
        mappings: How many they are.
        memory: Addresses and what lies there.
        most: How many frames to take.
    """
    lib = library()
    lib.set_rules((ctypes.c_uint64 * len(rules))(*rules), len(rules))
    parts = memory_of(memory)
    asked = _Asked(*leaf[:5], leaf.exact, block, mappings, most)
    told = _Told()
    lib.run_walk(ctypes.byref(asked), parts, len(parts), ctypes.byref(told))
    ips = tuple(AbsoluteAddress(ip) for ip in told.ip[: told.depth])
    return Walked(ips, StackEnd(told.end), bool(told.guessed))


def values(headers: Sequence[str], expressions: Sequence[str]) -> list[int]:
    """What constant expressions are in C, where these headers are included."""
    lines = ['#include "bpf_shims.h"', *(f'#include "{name}"' for name in headers)]
    lines.append("int main(void) {")
    lines += [f'printf("%lld\\n", (long long)({each}));' for each in expressions]
    lines.append("}")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/values"
        command = ["gcc", *_FLAGS, "-x", "c", "-", "-o", path]
        subprocess.run(command, input="\n".join(lines), text=True, check=True)
        output = subprocess.run([path], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]
