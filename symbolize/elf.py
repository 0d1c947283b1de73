"""The functions in ELF files: from file offsets to names, looked up by numpy.

pyelftools' symbols take 2 s for node, against 0.1 s here.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from bpflame.symbolize.demangle import demangle
from bpflame.symbolize.elf_file import BadElf, ElfFile
from bpflame.symbolize.symbol_table import GLOBAL, LOCAL, WEAK, Symbols, SymbolTable

# Caps: 40 times the symbols of node, the largest file measured. Four million take up to 9 s.
_MAX_SYMBOLS = 4 << 20
_MAX_STRINGS = 256 << 20

_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_SHF_ALLOC, _SHF_EXECINSTR = 0x2, 0x4
_SHN_UNDEF, _SHN_LORESERVE, _SHN_XINDEX = 0, 0xFF00, 0xFFFF
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE = 1, 2, 10


class ElfImage(ElfFile):
    """An open ELF file and its functions. Arguments and errors as for :class:`ElfFile`."""

    def __init__(self, fd: int, path: str) -> None:
        self._names: dict[int, str] = {}
        super().__init__(fd, path)

    @functools.cached_property
    def symbols(self) -> SymbolTable:
        """The functions, from .symtab and, for addresses it lacks, .dynsym. Raises BadElf."""
        rows, strings = self._read_symbols(_SHT_SYMTAB)
        dynamic_rows, dynamic_strings = self._read_symbols(_SHT_DYNSYM)
        dynamic_rows = dynamic_rows[~np.isin(dynamic_rows["value"], rows["value"])]
        tables = (strings, dynamic_strings)
        # A key is the offset of the name, with the number of the string table above it.
        key = np.concatenate(
            (rows["name"].astype(np.int64), dynamic_rows["name"].astype(np.int64) | 1 << 32)
        )
        rows = np.concatenate((rows, dynamic_rows))
        kind, binding = rows["info"] & 15, rows["info"] >> 4
        strong = (binding == _STB_GLOBAL) | (binding == _STB_GNU_UNIQUE)
        start = rows["value"].astype(np.uint64)

        def name_of(key: int, limit: int) -> bytes:
            return _string(tables[key >> 32], key & 0xFFFFFFFF, limit)

        return SymbolTable(
            Symbols(
                start=start,
                size=rows["size"].astype(np.uint64),
                limit=self._code_ends(start),
                function=kind != _STT_NOTYPE,
                binding=np.where(
                    strong, GLOBAL, np.where(binding == _STB_WEAK, WEAK, LOCAL)
                ).astype(np.uint8),
                key=key,
            ),
            name_of,
        )

    def resolve(self, offsets: NDArray[np.uint64]) -> list[str | None]:
        """The demangled function name at each file offset; None where no symbol covers it.

        Raises:
            BadElf: The symbols are damaged.
        """
        virtual, valid = self.to_virtual(offsets)
        index = self.symbols.lookup(virtual)
        index[~valid] = -1
        return [None if i < 0 else self._name(i) for i in index.tolist()]

    def _name(self, index: int) -> str:
        name = self._names.get(index)
        if name is None:
            name = self._names[index] = demangle(self.symbols.raw_name(index))
        return name

    def _read_symbols(self, section_type: int) -> tuple[NDArray[np.void], bytes]:
        """The defined functions and labels of a symbol table, and its strings."""
        found = np.flatnonzero(self.sections["type"] == section_type)
        if not found.size:
            return np.empty(0, self.symbol_layout), b""
        section = self.sections[found[0]]
        width = self.symbol_layout.itemsize
        count, link = int(section["size"]) // width, int(section["link"])
        if count > _MAX_SYMBOLS:
            raise BadElf(self.path, f"{count} symbols")
        if section["entsize"] not in (0, width):
            raise BadElf(self.path, f"symbols of {section['entsize']} bytes")
        if link >= len(self.sections):
            raise BadElf(self.path, "symbol table without strings")
        string_section = self.sections[link]
        if string_section["size"] > _MAX_STRINGS:
            raise BadElf(self.path, f"symbol names of {string_section['size']} bytes")
        data = self.read(int(section["offset"]), count * width, "symbols")
        strings = self.read(
            int(string_section["offset"]), int(string_section["size"]), "symbol names"
        )
        rows = np.frombuffer(data, self.symbol_layout)
        return rows[_is_code_symbol(rows, strings)], strings

    def _code_ends(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The end of the executable section around each address, 0 where there is none.

        By address, as section numbers above 65,279 need one more table; shape (n,).
        """
        wanted = _SHF_ALLOC | _SHF_EXECINSTR
        code = self.sections[(self.sections["flags"] & wanted) == wanted]
        if not code.size:
            return np.zeros(len(addresses), np.uint64)
        code = code[np.argsort(code["addr"], kind="stable")]
        start = code["addr"].astype(np.uint64)
        end = start + np.minimum(code["size"].astype(np.uint64), ~start)
        section = np.searchsorted(start, addresses, side="right") - 1
        inside = (section >= 0) & (addresses < end[section])
        ends: NDArray[np.uint64] = np.where(inside, end[section], np.uint64(0))
        return ends


def _is_code_symbol(rows: NDArray[np.void], strings: bytes) -> NDArray[np.bool_]:
    """Marks defined functions and labels that have a name; shape (n,)."""
    kind, section = rows["info"] & 15, rows["shndx"]
    wanted = (kind == _STT_FUNC) | (kind == _STT_GNU_IFUNC) | (kind == _STT_NOTYPE)
    wanted &= (section != _SHN_UNDEF) & ((section < _SHN_LORESERVE) | (section == _SHN_XINDEX))
    wanted &= (rows["value"] != 0) & (rows["name"] < len(strings))
    initial = np.zeros(len(rows), np.uint8)
    initial[wanted] = np.frombuffer(strings, np.uint8)[rows["name"][wanted]]
    # Labels such as $x and $d tell code from data on Arm and RISC-V; they name nothing.
    wanted &= (initial != 0) & ~((kind == _STT_NOTYPE) & (initial == ord("$")))
    code_symbol: NDArray[np.bool_] = wanted
    return code_symbol


def _string(strings: bytes, offset: int, limit: int) -> bytes:
    end = strings.find(b"\0", offset, offset + limit)
    return strings[offset : offset + limit if end < 0 else end]
