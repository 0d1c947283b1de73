"""CIEs: what the FDEs of .eh_frame have in common, and how its pointers are encoded.

After the Linux Standard Base, "Exception Frames", and DWARF 5, section 6.4.1.
"""

from __future__ import annotations

import dataclasses

# Pointer encodings: the low four bits say how a value is stored, the next three what to add.
OMIT = 0xFF
ABSOLUTE, PC_RELATIVE, DATA_RELATIVE = 0x00, 0x10, 0x30
ULEB, SLEB = 0x1, 0x9
FORMATS = {0: "<i8", 2: "<u2", 3: "<u4", 4: "<i8", 8: "<i8", 10: "<i2", 11: "<i4", 12: "<i8"}
"""Of fixed width; addresses are below 2^63, so 8 bytes are read as signed."""

_MAX_ALIGNMENT = 1 << 16
"""Of the factors: offsets times them, and sums of locations, stay within 64 bits."""
_MAX_AUGMENTATION = 16
_MAX_BLOCK = 1 << 10


class Unsound(ValueError):  # noqa: N818 - what the data is
    """A CIE or a program that cannot be what a compiler wrote."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cie:
    """A CIE.

    Attributes:
        code_align: What locations are multiples of.
        data_align: What offsets are multiples of.
        return_register: The number of the column that stands for the return address.
        encoding: Of the pointers in its FDEs.
        augmented: Whether its FDEs hold a length and data of the augmentation.
        signal: Whether its FDEs are of signal frames.
        program: The initial instructions.
    """

    code_align: int
    data_align: int
    return_register: int
    encoding: int
    augmented: bool
    signal: bool
    program: bytes


class Reader:
    """Reads numbers one after the other; past the end are zeros.

    Args:
        data: Up to the end of the CIE or program.
        position: Of the next byte.
    """

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def unsigned(self, width: int) -> int:
        """A number of ``width`` bytes."""
        start = self.position
        self.position += width
        return int.from_bytes(self.data[start : self.position], "little")

    def signed(self, width: int) -> int:
        """As :meth:`unsigned`, in two's complement."""
        value = self.unsigned(width)
        return value - (1 << 8 * width) if value >> (8 * width - 1) else value

    def uleb(self) -> int:
        """An unsigned LEB128 of at most ten bytes. Raises Unsound for a longer one."""
        return self._leb()[0]

    def sleb(self) -> int:
        """A signed LEB128; as :meth:`uleb`."""
        value, bits = self._leb()
        return value - (1 << bits) if value >> (bits - 1) else value

    def block(self) -> bytes:
        """A length and as many bytes, with zeros past the end. Raises Unsound for a long one."""
        length = self.uleb()
        if length > _MAX_BLOCK:
            raise Unsound(f"a block of {length} bytes")
        start = self.position
        self.position += length
        return self.data[start : self.position].ljust(length, b"\0")

    def _leb(self) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[self.position] if self.position < len(self.data) else 0
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, shift + 7
        raise Unsound("a number of more than ten bytes")

    def pointer(self, encoding: int, address: int) -> int:
        """A pointer, when its place is at a virtual ``address``.

        Raises:
            Unsound: For an encoding that is unknown, or needs more than the address.
        """
        form, base = encoding & 0x0F, encoding & 0xF0
        if form == ULEB:
            value = self.uleb()
        elif form == SLEB:
            value = self.sleb()
        elif form in FORMATS:
            width = int(FORMATS[form][2])
            value = self.signed(width) if FORMATS[form][1] == "i" else self.unsigned(width)
        else:
            raise Unsound(f"pointer encoding {encoding:#x}")
        if base not in (ABSOLUTE, PC_RELATIVE):
            raise Unsound(f"pointer encoding {encoding:#x}")
        return (value + (address if base == PC_RELATIVE else 0)) % 2**64


def parse(data: bytes) -> Cie:
    """Reads a CIE.

    Args:
        data: From after its id up to its end.

    Raises:
        Unsound: It is damaged, or of a form that x86-64 does not have.
    """
    version = data[:1]
    end = data.find(b"\0", 1, 2 + _MAX_AUGMENTATION)
    if version not in (b"\1", b"\3", b"\4") or end < 0:
        raise Unsound("CIE version or augmentation")
    augmentation = data[1:end]
    reader = Reader(data, end + 1)
    if augmentation[:2] == b"eh":  # of GCC 2: a pointer follows
        reader.position += 8
        augmentation = augmentation[2:]
    if version == b"\4" and reader.unsigned(2) != 8:  # size of an address, of a segment selector
        raise Unsound("CIE for other addresses")
    code_align, data_align = reader.uleb(), reader.sleb()
    return_register = reader.unsigned(1) if version == b"\1" else reader.uleb()
    encoding, signal, rest = ABSOLUTE, b"S" in augmentation, -1
    if augmentation[:1] == b"z":
        rest = reader.uleb() + reader.position
        for letter in augmentation[1:].decode("latin-1"):
            if letter == "R":
                encoding = reader.unsigned(1)
            elif letter == "P":
                _skip_pointer(reader)
            elif letter == "L":
                reader.position += 1
            elif letter not in "SBG":
                break  # what follows is unknown, but its length is not
    elif augmentation:
        raise Unsound("CIE augmentation of unknown length")
    position = reader.position if rest < 0 else rest
    if position > len(data) or not 0 < code_align <= _MAX_ALIGNMENT:
        raise Unsound("CIE cut off")
    if abs(data_align) > _MAX_ALIGNMENT:
        raise Unsound("CIE alignment")
    return Cie(
        code_align, data_align, return_register, encoding, rest >= 0, signal, data[position:]
    )


def _skip_pointer(reader: Reader) -> None:
    encoding = reader.unsigned(1)
    if encoding & 0x70 == 0x50:
        raise Unsound("an aligned pointer")
    if encoding != OMIT:
        reader.pointer(encoding & 0x0F, 0)
