"""Compile and load BPF programs: the only importer of bcc.

bcc is the BPF Compiler Collection of the distribution (Debian, Ubuntu: ``python3-bpfcc``). It is
loaded from the distribution's folder by path, so any virtual environment and any CPython 3.10+
can use it, and the unrelated project that PyPI calls ``bcc`` is never met.

No kernel headers are needed: ``bpf/include`` holds the few that bcc's own helpers ask for.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bpflame.errors import BpflameError

_HERE = Path(__file__).resolve().parent
PROGRAMS = _HERE / "programs"
STUB_KERNEL = _HERE / "include"

_BCC_FOLDERS = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python3*/site-packages",
    "/usr/lib/python3*/dist-packages",
)
INSTALL_HINT = (
    "install the BPF Compiler Collection: apt install python3-bpfcc (Debian, Ubuntu), "
    "dnf install python3-bcc (Fedora), pacman -S python-bcc (Arch)"
)

# The numbers of enum bpf_prog_type, include/uapi/linux/bpf.h.
PERF_EVENT = 7
RAW_TRACEPOINT = 17
TRACING = 26


@functools.cache
def load_bcc() -> ModuleType:
    """Return the distribution's ``bcc`` module.

    Raises:
        BpflameError: It is not installed, or only the unrelated project of that name is.
    """
    for pattern in _BCC_FOLDERS:
        for folder in sorted(glob.glob(pattern), reverse=True):
            init = Path(folder, "bcc", "__init__.py")
            if init.is_file() and Path(folder, "bcc", "libbcc.py").is_file():
                return _import_from(init)
    spec = None
    try:
        spec = importlib.util.find_spec("bcc")
        module = importlib.import_module("bcc") if spec else None
    except Exception:  # the other project of that name fails in ways of its own
        module = None
    if module is not None and hasattr(module, "BPF"):
        return module
    if spec is not None:
        raise BpflameError(f"the bcc at {spec.origin} is another project", INSTALL_HINT)
    raise BpflameError("bcc is not installed", INSTALL_HINT)


def _import_from(init: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bcc", init, submodule_search_locations=[str(init.parent)]
    )
    if spec is None or spec.loader is None:
        raise BpflameError(f"{init}: not a Python module", INSTALL_HINT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # also AttributeError, of a libbcc of another version
        del sys.modules["bcc"]
        raise BpflameError(f"bcc does not load: {error}", INSTALL_HINT) from error
    return module


def libbcc() -> Any:
    """The ctypes handle of libbcc, with its functions' types declared."""
    return sys.modules[load_bcc().__name__ + ".libbcc"].lib


def source(path: Path) -> str:
    """The text of a program with its own headers (``#include "x.h"``) in place, each once.

    bcc rewrites map accesses in the main file only, so a header that touches a map has to be
    part of it. ``#line`` keeps the compiler's messages true. Nothing else is changed.
    """
    return "\n".join(_lines(path, set())) + "\n"


def _lines(path: Path, seen: set[Path]) -> Iterator[str]:
    yield f'#line 1 "{path.name}"'
    for number, line in enumerate(path.read_text().splitlines(), 1):
        include = re.fullmatch(r'#include "([\w.]+)"', line)
        if include is None:
            yield line
            continue
        header = path.parent / include[1]
        if header not in seen:
            seen.add(header)
            yield from _lines(header, seen)
        yield f'#line {number + 1} "{path.name}"'


class Program:
    """A compiled ``.bpf.c`` file: its maps, its functions and what they are attached to.

    Args:
        name: File name below ``bpf/programs``, without ``.bpf.c``.
        defines: Compile-time constants (``-D``); a value of None defines the bare name.

    Raises:
        BpflameError: The compiler or the verifier refused it; its message is part of the error.
    """

    def __init__(self, name: str, defines: Mapping[str, int | str | None]) -> None:
        bcc = load_bcc()
        flags = [
            "-D" + (key if value is None else f"{key}={value}")
            for key, value in sorted(defines.items())
        ]
        self.name = name
        self._fds: list[int] = []
        with _said("compile", name), _stub_kernel():
            self._bpf = bcc.BPF(text=source(PROGRAMS / f"{name}.bpf.c").encode(), cflags=flags)

    def load(self, function: str, kind: int) -> int:
        """Load one function as a program of type ``kind``; returns its file descriptor."""
        with _said("load", function):
            return int(self._bpf.load_func(function.encode(), kind).fd)

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map."""
        fd = int(libbcc().bpf_table_fd(self._bpf.module, name.encode()))
        if fd < 0:
            raise KeyError(name)
        return fd

    def attach_raw_tracepoint(self, function: str, tracepoint: str) -> None:
        """Load ``function`` and run it at ``tracepoint`` until :meth:`close`."""
        program = self.load(function, RAW_TRACEPOINT)
        fd = libbcc().bpf_attach_raw_tracepoint(program, tracepoint.encode())
        if fd < 0:
            raise BpflameError(
                f"cannot attach to the raw tracepoint {tracepoint}: {os.strerror(-fd)}",
                "bpflame needs a kernel with CONFIG_BPF_EVENTS and CONFIG_TRACEPOINTS that has it",
            )
        self._fds.append(fd)

    def detach(self) -> None:
        """Take it from the tracepoints; the maps stay."""
        while self._fds:  # the last first: what a program relies on is to be there as long as it is
            os.close(self._fds.pop())

    def close(self) -> None:
        """Detach everything and free the maps."""
        self.detach()
        self._bpf.cleanup()


@contextlib.contextmanager
def _stub_kernel() -> Iterator[None]:
    """Point bcc at our headers; not for longer, since a recorded command inherits the variable."""
    before = os.environ.get("BCC_KERNEL_SOURCE")
    os.environ["BCC_KERNEL_SOURCE"] = str(STUB_KERNEL)
    try:
        yield
    finally:
        del os.environ["BCC_KERNEL_SOURCE"]
        if before is not None:
            os.environ["BCC_KERNEL_SOURCE"] = before


@contextlib.contextmanager
def _said(doing: str, what: str) -> Iterator[None]:
    """Keep what libbcc prints to file descriptor 2, and make it part of the error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception as error:  # bcc raises bare Exception
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
            raise BpflameError(
                f"cannot {doing} the BPF program {what}: {error}", text or "see: bpflame doctor"
            ) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
