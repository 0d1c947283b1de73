"""The kernel's own names: /proc/kallsyms, bounded by what /proc/modules tells.

kallsyms gives starts and no sizes. A symbol ends at the next one, and at the end of its region: a
lookup without that second bound names every address up to the end of memory after the last symbol.

* Core kernel: [_stext, _etext) and [_sinittext, _einittext), as core_kernel_text() in the kernel.
* Modules: [address, address + size) of /proc/modules.
* Anything else: up to the next symbol of the same owner within 2 MiB (BPF programs are packed into
  pages of that size), else to the end of the symbol's page, of 16 pages for a BPF program. That is
  BPF programs, trampolines of ftrace, and module text outside the range (since Linux 6.4 there are
  several) or without a range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bpflame.profile import Frame
from bpflame.symbolize.symbol_table import GLOBAL, LOCAL, WEAK, Symbols, SymbolTable

_PAGE = np.uint64(4096)
_PACK = np.uint64(2 << 20)
_PROGRAM = np.uint64(16 * 4096)
_PROGRAMS = "bpf"
_CORE = 0
"""Number of the core kernel among the owners of symbols."""

_OWN_PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}_bpflame_")
_GLUE = re.compile(
    r"bpf_trace_run\d+|__bpf_trace_\w+|__traceiter_\w+"
    r"|bpf_overflow_handler|__perf_event_overflow|perf_event_overflow|perf_swevent_\w+"
    r"|bpf_get_stack\w*|__bpf_get_stack\w*|get_perf_callchain"
    r"|__hrtimer_run_queues|hrtimer_interrupt|\w*sysvec_apic_timer_interrupt"
    r"|trace_call_bpf|perf_trace_\w+|perf_tp_event|bpf_trampoline_\w+|bpf_dispatcher_\w+"
)
# How deep our program may lie under the helpers it calls: bpf_get_stack and its callees, or a
# map update and the allocator. Deeper, something else runs on top of it, such as an interrupt.
_HELPER_DEPTH = 8


class KernelSymbols:
    """Names of kernel addresses.

    Attributes:
        table: Address ranges of the text symbols.
        restricted: Whether the kernel hides its addresses (kptr_restrict, no CAP_SYSLOG); the table
            is empty then.
    """

    def __init__(self, kallsyms: bytes, modules: bytes = b"") -> None:
        """As :meth:`from_text`."""
        self._text = kallsyms if kallsyms.endswith(b"\n") or not kallsyms else kallsyms + b"\n"
        address, kind, name_start = _parse(self._text)
        self.restricted = bool(address.size) and not address.any()
        wanted = np.isin(kind, np.frombuffer(b"tTwW", np.uint8)) & (address != 0)
        address, kind, name_start = address[wanted], kind[wanted], name_start[wanted]
        self._owners, owner = _owners(self._text, name_start)
        self._owner, self._name_start = owner, name_start
        binding = np.where(kind == ord("T"), GLOBAL, np.where(kind == ord("t"), LOCAL, WEAK))
        self.table = SymbolTable(
            Symbols(
                start=address,
                size=np.zeros(len(address), np.uint64),
                limit=_limits(address, owner, self._regions(modules), self._programs()),
                function=np.ones(len(address), np.bool_),
                binding=binding.astype(np.uint8),
                key=np.arange(len(address), dtype=np.int64),
            ),
            self._name_of,
        )
        self._resolved: dict[int, tuple[str, str]] = {}

    @classmethod
    def from_text(cls, kallsyms: bytes, modules: bytes = b"") -> KernelSymbols:
        """Makes the table from the text of two files of /proc.

        Args:
            kallsyms: /proc/kallsyms: ``address type name [module]``, in any order. Lines that are
                not like that are skipped.
            modules: /proc/modules: ``name size users dependencies state address``; may be empty.
        """
        return cls(kallsyms, modules)

    @classmethod
    def from_proc(cls) -> KernelSymbols:
        """Makes the table for the running kernel. Raises OSError without /proc/kallsyms."""
        with open("/proc/kallsyms", "rb") as file:
            kallsyms = file.read()
        try:
            with open("/proc/modules", "rb") as file:
                modules = file.read()
        except FileNotFoundError:  # a kernel without loadable modules
            modules = b""
        return cls(kallsyms, modules)

    def resolve(self, addresses: NDArray[np.uint64]) -> list[tuple[str, str] | None]:
        """The name and module of each address.

        Args:
            addresses: Shape (n,).

        Returns:
            Names as the kernel has them, with suffixes (``.cold``, ``.isra.0``). The module is
            empty for the core kernel and ``bpf`` for BPF programs. None where no symbol covers the
            address.
        """
        index = self.table.lookup(addresses).tolist()
        return [None if i < 0 else self._resolve(i) for i in index]

    def _resolve(self, index: int) -> tuple[str, str]:
        if index not in self._resolved:
            module = self._owners[self._owner[self.table.key[index]]]
            self._resolved[index] = (self.table.name(index), module)
        return self._resolved[index]

    def _name_of(self, key: int, limit: int) -> bytes:
        start = int(self._name_start[key])
        end = self._text.find(b"\n", start, start + limit)
        name = self._text[start : start + limit if end < 0 else end]
        return name.partition(b"\t")[0]

    def _programs(self) -> int:
        return self._owners.index(_PROGRAMS) if _PROGRAMS in self._owners else -1

    def _regions(self, modules: bytes) -> dict[int, list[tuple[int, int]]]:
        """The known address ranges of each owner, by its number."""
        regions = {}
        numbers = {name: number for number, name in enumerate(self._owners)}
        for line in modules.decode("utf-8", "replace").splitlines():
            fields = line.split()
            try:
                number, size, address = numbers[fields[0]], int(fields[1]), int(fields[5], 16)
            except (IndexError, KeyError, ValueError):  # no text, or cut off
                continue
            if 0 < address < address + size < 2**64:
                regions[number] = [(address, address + size)]
        core = [
            (_address_of(self._text, low), _address_of(self._text, high))
            for low, high in ((b"_stext", b"_etext"), (b"_sinittext", b"_einittext"))
        ]
        core = [(low, high) for low, high in core if 0 < low < high]
        if core:
            regions[_CORE] = core
        return regions


def strip_own_glue(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The frames without those at the leaf that are there only because bpflame took the stack.

    That is our BPF program, what it called, and the tracepoint or perf glue that called it. The
    program of anyone else at the leaf is time really spent, and so is the glue that called it.

    Args:
        frames: Kernel frames, leaf first.
    """
    own = (
        depth
        for depth, frame in enumerate(frames[:_HELPER_DEPTH])
        if _OWN_PROGRAM.match(frame.name)
    )
    depth = next(own, -1) + 1
    if not depth:
        return frames
    while depth < len(frames) and _GLUE.fullmatch(frames[depth].name):
        depth += 1
    return frames[depth:]


def _parse(
    text: bytes,
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.int64]]:
    """Addresses, types and name offsets of all lines; each of shape (n,)."""
    raw = np.frombuffer(text, np.uint8)
    end = np.flatnonzero(raw == ord("\n"))
    start = np.append(0, end[:-1] + 1)[: len(end)]
    width = text.find(b" ", 0, 17)
    if width not in (8, 16):  # %lx of a 32-bit or 64-bit kernel, the same on each line
        empty = np.empty(0, np.int64)
        return empty.astype(np.uint64), empty.astype(np.uint8), empty
    start = start[end - start >= width + 4]
    digits = _HEX[raw[start[:, np.newaxis] + np.arange(width)]]
    valid = (digits < 16).all(axis=1)
    valid &= (raw[start + width] == ord(" ")) & (raw[start + width + 2] == ord(" "))
    start, digits = start[valid], digits[valid]
    address = np.zeros(len(start), np.uint64)
    for column in range(width):
        address = address << np.uint64(4) | digits[:, column]
    return address, raw[start + width + 1], start + width + 3


def _hex_digits() -> NDArray[np.uint8]:
    """The value of each hexadecimal digit, 255 for other bytes; shape (256,)."""
    values = np.full(256, 255, np.uint8)
    for digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
        values[np.frombuffer(digits, np.uint8)] = np.arange(16)
    return values


_HEX = _hex_digits()


def _owners(text: bytes, name_start: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int32]]:
    """Who the symbols belong to.

    Returns:
        The owners, the core kernel (empty) first, and the number of each symbol's; shape (n,).
    """
    names = {"": _CORE}
    owner = np.zeros(len(name_start), np.int32)
    tabs = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\t"))
    rows = np.searchsorted(name_start, tabs, side="right") - 1
    for tab, row in zip(tabs.tolist(), rows.tolist(), strict=True):
        end = text.find(b"\n", tab)
        if row >= 0 and end == text.find(b"\n", int(name_start[row])):
            name = text[tab + 1 : end].strip(b"[]").decode("utf-8", "backslashreplace")
            owner[row] = names.setdefault(name, len(names))
    return list(names), owner


def _limits(
    address: NDArray[np.uint64],
    owner: NDArray[np.int32],
    regions: dict[int, list[tuple[int, int]]],
    programs: int,
) -> NDArray[np.uint64]:
    """Where each symbol's region ends; 0 for core symbols outside the core's; shape (n,).

    ``programs`` is the owner of BPF programs.
    """
    limit = np.zeros(len(address), np.uint64)
    by_owner = np.argsort(owner, kind="stable")
    for mine in np.split(by_owner, np.flatnonzero(np.diff(owner[by_owner])) + 1):
        number = int(owner[mine[0]]) if mine.size else _CORE
        start, ends = address[mine], np.zeros(len(mine), np.uint64)
        if number != _CORE or _CORE not in regions:
            ends = _open_ends(start, _PROGRAM if number == programs else _PAGE)
        for low, high in regions.get(number, []):
            ends[(start >= np.uint64(low)) & (start < np.uint64(high))] = high
        limit[mine] = ends
    return limit


def _open_ends(start: NDArray[np.uint64], most: np.uint64) -> NDArray[np.uint64]:
    """The ends of one owner's symbols when its region is not known; shape (n,)."""
    page_end = (start | (_PAGE - np.uint64(1))) + np.uint64(1) + (most - _PAGE)
    following = np.append(np.unique(start), np.uint64(0))
    following = following[np.searchsorted(following[:-1], start, side="right")]
    near = (following > start) & (following - start <= _PACK)
    ends: NDArray[np.uint64] = np.where(near, following, page_end)
    return ends


def _address_of(text: bytes, symbol: bytes) -> int:
    """The address of a core symbol; 0 when it is not there."""
    name = text.find(b" " + symbol + b"\n")
    line = text.rfind(b"\n", 0, name) + 1
    try:
        return int(text[line : text.index(b" ", line, name)], 16) if name > 0 else 0
    except ValueError:
        return 0
