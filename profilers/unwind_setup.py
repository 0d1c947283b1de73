"""What a BPF program needs to unwind by tables: its constants, and the programs that walk on."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterable, Iterator

from bpflame.bpf.btf import Btf
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.unwind.copies import RING_PAGES

MAX_CHUNKS = 512
"""Megabytes that tables may take; they are taken as there is need."""

_SPACE_ENTRIES = 1 << 16  # processes; the one that ran least recently goes
_TAIL_CALLS = 32  # MAX_TAIL_CALL_CNT is 33; some kernels allow one less
_FEW_FRAMES = 8  # more cost load time, less cost tail calls


def unwind_defines(depth: int, btf: Btf) -> dict[str, int | str | None]:
    """The compile-time constants of ``unwind.h``.

    Args:
        depth: How many frames a stack may have.
        btf: The kernel's.
    """
    return {
        "CHUNK_ENTRIES": MAX_CHUNKS,
        "COPY_RING_PAGES": RING_PAGES,
        "SPACE_ENTRIES": _SPACE_ENTRIES,
        "TASK_MM": btf.offset("task_struct", "mm"),
        "UNWIND": None,
        "WALK_FRAMES": max(_FEW_FRAMES, -(-depth // _TAIL_CALLS)),
    }


def set_walkers(program: Program, kind: int, functions: Iterable[str]) -> None:
    """Load the programs that walk on, and let them be called.

    Args:
        program: Compiled with :func:`unwind_defines`.
        kind: Their type, that of the programs that call them.
        functions: Their names, by number.
    """
    walkers = BpfMap(program.map_fd("walkers"), 4, 4)
    for number, function in enumerate(functions):
        fd = program.load(function, kind)
        walkers.update(number.to_bytes(4, "little"), fd.to_bytes(4, "little"))


@contextlib.contextmanager
def get_ready(walks: bool) -> Iterator[None]:
    """Load what reads tables, which takes a while, beside something else that does: the compiler.

    Args:
        walks: Whether there will be tables at all.
    """
    if not walks:
        yield
        return
    modules = ("bpf.unwind.walk", "bpf.unwind.cache", "profilers.unwind_spaces")
    thread = threading.Thread(
        target=lambda: [importlib.import_module(f"bpflame.{name}") for name in modules],
        name="get_ready",
        daemon=True,
    )
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # there is no linear algebra here
    thread.start()
    try:
        yield
    finally:
        thread.join()  # neither a thread nor the variable is to be there when a command is forked
        del os.environ["OPENBLAS_NUM_THREADS"]
        if before is not None:
            os.environ["OPENBLAS_NUM_THREADS"] = before
