"""ELF files: headers, segments, sections and build ids.

pyelftools checks the file header; numpy reads the tables. Making pyelftools' section and segment
objects takes 3 ms for libc and 20 ms for node.

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
from typing import Any, TypeVar

import numpy as np
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs
from numpy.typing import NDArray

from bpflame.errors import InputError

_MAX_SEGMENTS = 1 << 10
_MAX_SECTIONS = 1 << 16
_MAX_NOTES = 64 << 10
_MAX_NAMES = 4 << 20
_MAX_BUILD_ID = 64

PT_LOAD, PT_NOTE, PT_GNU_EH_FRAME = 1, 4, 0x6474E550
PF_X = 1
SHT_NOTE, SHT_NOBITS = 7, 8
_NT_GNU_BUILD_ID = 3

_Self = TypeVar("_Self", bound="ElfFile")


class BadElf(InputError):  # noqa: N818 - what the file is, like Interrupted
    """A file that is not ELF, or is damaged: the only error that reading one raises."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """The records of one ELF class and byte order, as in elf(5)."""

    segment: np.dtype[np.void]
    section: np.dtype[np.void]
    symbol: np.dtype[np.void]


_MAGIC = b"\x7fELF"
_CLASSES, _ORDERS = {b"\1": 32, b"\2": 64}, {b"\1": True, b"\2": False}


@functools.cache
def _header(bits: int, little_endian: bool) -> Any:
    """What pyelftools parses a header with, made once: that takes half a millisecond."""
    structs = ELFStructs(little_endian=little_endian, elfclass=bits)
    structs.create_basic_structs()
    return structs.Elf_Ehdr


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


class ElfFile:
    """An open ELF file. Use it in a ``with`` statement, or :meth:`close` it.

    Args:
        fd: Open for reading; owned by the image, which closes it, also when this raises.
        path: For messages.

    Attributes:
        path: As given.
        size: Of the file, in bytes.
        segments: The program headers, as in elf(5) without the prefixes of the names.
        sections: The section headers, likewise; empty when the file has none.
        symbol_layout: The dtype of a symbol.
        trusted: Whether only root and bpflame's own user can have written it, so that its build
            id may stand for its content.
        identity: Device, inode, time of the last change and size: of the file, not its content.
        x86_64: Whether the code is of 64-bit x86 (x32 is not).

    Raises:
        BadElf: The file is not ELF, or is damaged.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self._fd = fd
        try:
            self._read_headers()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls: type[_Self], path: str) -> _Self:
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

    def __enter__(self: _Self) -> _Self:
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
        segments = self.segments[self.segments["type"] == PT_NOTE]
        sections = self.sections[self.sections["type"] == SHT_NOTE]
        for table, size, align in (
            (segments, "filesz", "align"),
            (sections, "size", "addralign"),
        ):
            for row in table[:64]:
                offset, length = int(row["offset"]), min(int(row[size]), _MAX_NOTES)
                if offset + length > self.size:  # normal in a file split off by objcopy
                    continue
                notes = self.read(offset, length, "notes")
                found = _build_id(notes, 8 if row[align] == 8 else 4, self._byte_order)
                if found:
                    return found
        return b""

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
        loads = self.segments[self.segments["type"] == PT_LOAD]
        # Executable segments come last and so win where two share a page of the file.
        for row in loads[np.argsort(loads["flags"] & PF_X, kind="stable")]:
            offset, size, address = int(row["offset"]), int(row["filesz"]), int(row["vaddr"])
            inside = (offsets >= np.uint64(offset)) & (
                offsets - np.uint64(offset) < np.uint64(size)
            )
            virtual[inside] = offsets[inside] + np.uint64((address - offset) % 2**64)
            valid |= inside
        return virtual, valid

    @functools.cached_property
    def code(self) -> list[tuple[int, int]]:
        """Virtual addresses (from, to) of the executable PT_LOADs: sorted, apart, not empty.

        Only what comes from the file counts. Raises BadElf.
        """
        merged: list[tuple[int, int]] = []
        loads = self.segments[self.segments["type"] == PT_LOAD]
        loads = loads[(loads["flags"] & PF_X != 0) & (loads["filesz"] > 0)]
        for start, size in sorted((int(row["vaddr"]), int(row["filesz"])) for row in loads):
            if start + size > 2**62:
                raise BadElf(self.path, f"a segment at {start:#x}")
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], start + size))
            else:
                merged.append((start, start + size))
        return merged

    def section(self, name: bytes) -> np.void | None:
        """The header of the first section of this name that has content; None without one.

        Raises:
            BadElf: The names are damaged.
        """
        if self._names_section >= len(self.sections):
            return None
        table = self.sections[self._names_section]
        if table["size"] > _MAX_NAMES:
            raise BadElf(self.path, f"section names of {table['size']} bytes")
        names = self.read(int(table["offset"]), int(table["size"]), "section names")
        for row in self.sections[self.sections["type"] != SHT_NOBITS]:
            start = int(row["name"])
            if names[start : start + len(name) + 1] == name + b"\0":
                found: np.void = row
                return found
        return None

    def file_range(self, address: int) -> tuple[int, int]:
        """Where in the file the content at a virtual address is.

        Returns:
            The offset, and how many bytes follow it in the same segment; (0, 0) outside of all.
        """
        for row in self.segments[self.segments["type"] == PT_LOAD]:
            into = address - int(row["vaddr"])
            if 0 <= into < int(row["filesz"]):
                return int(row["offset"]) + into, int(row["filesz"]) - into
        return 0, 0

    def _read_headers(self) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadElf(self.path, "not a regular file")
        self.size = status.st_size
        self.trusted = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022
        self.identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        # Only the header: pyelftools cannot be led astray by what it cannot see.
        start = self.read(0, min(64, self.size), "header")
        bits, little_endian = _CLASSES.get(start[4:5], 0), _ORDERS.get(start[5:6])
        if start[:4] != _MAGIC or not bits or little_endian is None:
            raise BadElf(self.path, "not a readable ELF file")
        try:
            header = struct_parse(_header(bits, little_endian), io.BytesIO(start))
        except Exception as error:  # of its parser, for which it promises no type
            raise BadElf(self.path, "not a readable ELF file") from error
        layout = _layout(bits, little_endian)
        self._byte_order = "little" if little_endian else "big"
        self.symbol_layout = layout.symbol
        self._names_section = header["e_shstrndx"]
        self.x86_64 = header["e_machine"] == "EM_X86_64" and (bits == 64 and little_endian)
        first = self._table(header["e_shoff"], 1 if header["e_shoff"] else 0, layout.section)
        segments, sections = header["e_phnum"], header["e_shnum"]
        if first.size:  # counts too large for the header are kept in section 0
            segments = int(first["info"][0]) if segments == 0xFFFF else segments
            sections = int(first["size"][0]) if sections == 0 else sections
            if self._names_section == 0xFFFF:
                self._names_section = int(first["link"][0])
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
        self.segments = self._table(header["e_phoff"], segments, layout.segment)
        self.sections = self._table(header["e_shoff"], sections, layout.section)

    def _table(self, offset: int, count: int, record: np.dtype[np.void]) -> NDArray[np.void]:
        return np.frombuffer(self.read(offset, count * record.itemsize, "headers"), record)

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Bytes of the file, all of them.

        Raises:
            BadElf: The file ends before, or cannot be read.
        """
        if offset + length > self.size:
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
