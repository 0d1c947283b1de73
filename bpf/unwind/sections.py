"""Where a file's .eh_frame is."""

from __future__ import annotations

import dataclasses

from bpflame.bpf.unwind.cie import Reader, Unsound
from bpflame.symbolize.elf_file import PT_GNU_EH_FRAME, BadElf, ElfFile

_MAX_BYTES = 64 << 20
"""Twelve times that of libLLVM-15, the largest that was found. The worst content takes 10 s."""
_MAX_ADDRESS = 1 << 62
_SHT_X86_64_UNWIND = 0x70000001


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """An .eh_frame.

    Attributes:
        data: Its content.
        address: Its virtual address.
        header: That of .eh_frame_hdr; None when the file has none.
        bounded: Whether its size is known; otherwise it ends with a terminator.
    """

    data: bytes
    address: int
    header: int | None
    bounded: bool


def find(elf: ElfFile) -> Content:
    """Reads .eh_frame: by its section, or in a file without sections by .eh_frame_hdr.

    Returns:
        Empty content when the file has none.

    Raises:
        BadElf: It is damaged, or too large.
    """
    headers = elf.segments[elf.segments["type"] == PT_GNU_EH_FRAME]
    header = int(headers[0]["vaddr"]) if headers.size else None
    if header is not None and header >= _MAX_ADDRESS:
        raise BadElf(elf.path, f".eh_frame_hdr at {header:#x}")
    section = elf.section(b".eh_frame")
    if section is None:
        unwind = elf.sections[elf.sections["type"] == _SHT_X86_64_UNWIND]
        unwind = unwind[unwind["addr"] != (0 if header is None else header)]
        section = unwind[0] if unwind.size else None
    if section is not None:
        offset, size, address = (int(section[name]) for name in ("offset", "size", "addr"))
    elif header is not None:
        address = _behind_header(elf, header)
        offset, size = elf.file_range(address)
        size = min(size, _MAX_BYTES)
        if not size:
            raise BadElf(elf.path, ".eh_frame_hdr leads nowhere")
    else:
        return Content(b"", 0, None, True)
    if size > _MAX_BYTES:
        raise BadElf(elf.path, f".eh_frame of {size} bytes")
    if address >= _MAX_ADDRESS:
        raise BadElf(elf.path, f".eh_frame at {address:#x}")
    data = elf.read(offset, size, ".eh_frame")
    return Content(data, address, header, section is not None)


def _behind_header(elf: ElfFile, header: int) -> int:
    """The address of .eh_frame that .eh_frame_hdr holds."""
    offset, size = elf.file_range(header)
    data = elf.read(offset, min(size, 4 + 10), ".eh_frame_hdr")
    if data[:1] != b"\1" or len(data) < 8:
        raise BadElf(elf.path, "damaged .eh_frame_hdr")
    try:
        return Reader(data, 4).pointer(data[1], header + 4)
    except Unsound as error:
        raise BadElf(elf.path, f".eh_frame_hdr: {error}") from error
