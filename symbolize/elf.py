"""ELF files: from file offsets to function names.

pyelftools checks the file header; numpy reads the tables. Making pyelftools' section and segment
objects takes 3 ms for libc and 20 ms for node, its symbols 2 s for node, against 0.1 s here.

Files are read with pread and never mapped: one that shrinks meanwhile is a :class:`BadElf`, not a
SIGBUS. Nothing in a file is believed before it is compared with the file's size and with a cap.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import stat
import types

import numpy as np
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from bpflame.errors import InputError
from bpflame.symbolize.demangle import demangle
from bpflame.symbolize.symbol_table import GLOBAL, LOCAL, WEAK, Symbols, SymbolTable

# Caps: 40 times the symbols of node, the largest file measured. Four million take up to 9 s.
_MAX_SEGMENTS = 1 << 10
_MAX_SECTIONS = 1 << 16
_MAX_SYMBOLS = 4 << 20
_MAX_STRINGS = 256 << 20
_MAX_NOTES = 64 << 10
_MAX_BUILD_ID = 64

_PT_LOAD, _PT_NOTE = 1, 4
_PF_X = 1
_SHT_SYMTAB, _SHT_NOTE, _SHT_DYNSYM = 2, 7, 11
_SHF_ALLOC, _SHF_EXECINSTR = 0x2, 0x4
_SHN_UNDEF, _SHN_LORESERVE, _SHN_XINDEX = 0, 0xFF00, 0xFFFF
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE = 1, 2, 10
_NT_GNU_BUILD_ID = 3


class BadElf(InputError):  # noqa: N818 - what the file is, like Interrupted
    """A file that is not ELF, or is damaged: the only error that reading one raises."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """The records of one ELF class and byte order, as in elf(5)."""

    segment: np.dtype[np.void]
    section: np.dtype[np.void]
    symbol: np.dtype[np.void]


@functools.cache
def _layout(bits: int, little_endian: bool) -> _Layout:
    def record(fields: str) -> np.dtype[np.void]:
        order = "<" if little_endian else ">"
        pairs = (field.split(":") for field in fields.split())
        word = str(bits // 8)
        return np.dtype([(name, order + "u" + width.replace("w", word)) for name, width in pairs])

    section = "name:4 type:4 flags:w addr:w offset:w size:w link:4 info:4 addralign:w entsize:w"
    if bits == 64:
        segment = "type:4 flags:4 offset:8 vaddr:8 paddr:8 filesz:8 memsz:8 align:8"
        symbol = "name:4 info:1 other:1 shndx:2 value:8 size:8"
    else:
        segment = "type:4 offset:4 vaddr:4 paddr:4 filesz:4 memsz:4 flags:4 align:4"
        symbol = "name:4 value:4 size:4 info:1 other:1 shndx:2"
    return _Layout(record(segment), record(section), record(symbol))


class ElfImage:
    """An open ELF file. Use it in a ``with`` statement, or :meth:`close` it.

    Args:
        fd: Open for reading; owned by the image, which closes it, also when this raises.
        path: For messages.

    Attributes:
        path: As given.

    Raises:
        BadElf: The file is not ELF, or is damaged.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self._fd = fd
        self._names: dict[int, str] = {}
        try:
            self._read_headers()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str) -> ElfImage:
        """Opens a file by path; a FIFO or a device does not block.

        Raises:
            OSError: The file cannot be opened.
            BadElf: As for the constructor.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), path)

    def close(self) -> None:
        """Closes the file; symbols and build ID stay available when they were read before."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ElfImage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    @functools.cached_property
    def build_id(self) -> bytes:
        """The GNU build ID; empty when the file has none. Raises BadElf."""
        segments = self._segments[self._segments["type"] == _PT_NOTE]
        sections = self._sections[self._sections["type"] == _SHT_NOTE]
        for table, size, align in (
            (segments, "filesz", "align"),
            (sections, "size", "addralign"),
        ):
            for row in table[:64]:
                offset, length = int(row["offset"]), min(int(row[size]), _MAX_NOTES)
                if offset + length > self._size:  # normal in a file split off by objcopy
                    continue
                notes = self._read(offset, length, "notes")
                found = _build_id(notes, 8 if row[align] == 8 else 4, self._byte_order)
                if found:
                    return found
        return b""

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

    def to_virtual(
        self, offsets: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The addresses, as symbols and debug information give them, at offsets in the file.

        Each PT_LOAD has its own distance between the two: a file of lld, BOLT or with prelinked
        or fixed addresses has several.

        Args:
            offsets: File offsets: address - mapping start + mapping offset; shape (n,).

        Returns:
            Virtual addresses, and whether the offset lies in a PT_LOAD; both of shape (n,).
        """
        virtual = np.zeros(len(offsets), np.uint64)
        valid = np.zeros(len(offsets), np.bool_)
        loads = self._segments[self._segments["type"] == _PT_LOAD]
        # Executable segments come last and so win where two share a page of the file.
        for row in loads[np.argsort(loads["flags"] & _PF_X, kind="stable")]:
            offset, size, address = int(row["offset"]), int(row["filesz"]), int(row["vaddr"])
            inside = (offsets >= np.uint64(offset)) & (
                offsets - np.uint64(offset) < np.uint64(size)
            )
            virtual[inside] = offsets[inside] + np.uint64((address - offset) % 2**64)
            valid |= inside
        return virtual, valid

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

    def _read_headers(self) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadElf(self.path, "not a regular file")
        self._size = status.st_size
        try:
            # Only the header: pyelftools cannot be led astray by what it cannot see.
            header = ELFFile(io.BytesIO(self._read(0, min(64, self._size), "header")))
            layout = _layout(header.elfclass, header.little_endian)
        except BadElf:
            raise
        except Exception as error:  # of its parser, for which it promises no type
            raise BadElf(self.path, "not a readable ELF file") from error
        self._byte_order = "little" if header.little_endian else "big"
        self._symbol_layout = layout.symbol
        first = self._table(header["e_shoff"], 1 if header["e_shoff"] else 0, layout.section)
        segments, sections = header["e_phnum"], header["e_shnum"]
        if first.size:  # counts too large for the header are kept in section 0
            segments = int(first["info"][0]) if segments == 0xFFFF else segments
            sections = int(first["size"][0]) if sections == 0 else sections
        else:
            sections = 0
        for what, count, cap, width, record in (
            ("program header", segments, _MAX_SEGMENTS, header["e_phentsize"], layout.segment),
            ("section header", sections, _MAX_SECTIONS, header["e_shentsize"], layout.section),
        ):
            if count > cap:
                raise BadElf(self.path, f"{count} {what}s")
            if count and width != record.itemsize:
                raise BadElf(self.path, f"{what}s of {width} bytes")
        self._segments = self._table(header["e_phoff"], segments, layout.segment)
        self._sections = self._table(header["e_shoff"], sections, layout.section)

    def _table(self, offset: int, count: int, record: np.dtype[np.void]) -> NDArray[np.void]:
        return np.frombuffer(self._read(offset, count * record.itemsize, "headers"), record)

    def _read(self, offset: int, length: int, what: str) -> bytes:
        """Bytes of the file, all of them.

        Raises:
            BadElf: The file ends before, or cannot be read.
        """
        if offset + length > self._size:
            raise BadElf(self.path, f"{what} reach past the end of the file")
        parts = []
        while length:
            try:
                part = os.pread(self._fd, length, offset)
            except OSError as error:
                raise BadElf(self.path, f"cannot read {what}: {error.strerror}") from error
            if not part:
                raise BadElf(self.path, f"{what} cut off: the file shrank")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_symbols(self, section_type: int) -> tuple[NDArray[np.void], bytes]:
        """The defined functions and labels of a symbol table, and its strings."""
        found = np.flatnonzero(self._sections["type"] == section_type)
        if not found.size:
            return np.empty(0, self._symbol_layout), b""
        section = self._sections[found[0]]
        width = self._symbol_layout.itemsize
        count, link = int(section["size"]) // width, int(section["link"])
        if count > _MAX_SYMBOLS:
            raise BadElf(self.path, f"{count} symbols")
        if section["entsize"] not in (0, width):
            raise BadElf(self.path, f"symbols of {section['entsize']} bytes")
        if link >= len(self._sections):
            raise BadElf(self.path, "symbol table without strings")
        string_section = self._sections[link]
        if string_section["size"] > _MAX_STRINGS:
            raise BadElf(self.path, f"symbol names of {string_section['size']} bytes")
        data = self._read(int(section["offset"]), count * width, "symbols")
        strings = self._read(
            int(string_section["offset"]), int(string_section["size"]), "symbol names"
        )
        rows = np.frombuffer(data, self._symbol_layout)
        return rows[_is_code_symbol(rows, strings)], strings

    def _code_ends(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The end of the executable section around each address, 0 where there is none.

        By address, as section numbers above 65,279 need one more table; shape (n,).
        """
        wanted = _SHF_ALLOC | _SHF_EXECINSTR
        code = self._sections[(self._sections["flags"] & wanted) == wanted]
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


def _build_id(notes: bytes, align: int, byte_order: str) -> bytes:
    """The first GNU build ID among notes; empty when there is none."""
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = np.frombuffer(
            notes, "<u4" if byte_order == "little" else ">u4", 3, position
        ).tolist()
        name = position + 12
        content = -(-(name + name_size) // align) * align
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[content : content + size] if size <= _MAX_BUILD_ID else b""
        position = -(-(content + size) // align) * align
    return b""
