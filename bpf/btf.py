"""Offsets of kernel structures, from the running kernel's own BTF.

Headers of another kernel compile and then read garbage in silence; BTF is the kernel's own word.
Format: Documentation/bpf/btf.rst. Only what is needed: find a struct, find its members.
"""

from __future__ import annotations

import struct
from pathlib import Path

from bpflame.errors import BpflameError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_KIND_STRUCT = 4
_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F


class Btf:
    """The type information of one kernel image.

    Args:
        data: The whole of a BTF blob.

    Raises:
        BpflameError: It is not BTF.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
            raise BpflameError("the kernel's BTF cannot be read: bad magic")
        _, _, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
        self._types = data[header + types : header + types + types_size]
        self._strings = data[header + strings : header + strings + strings_size]
        self._found: dict[str, int] = {}

    @classmethod
    def of_kernel(cls, path: Path = VMLINUX) -> Btf:
        """The running kernel's.

        Raises:
            BpflameError: The kernel has none (it needs CONFIG_DEBUG_INFO_BTF).
        """
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise BpflameError(
                f"no kernel type information: {path}: {error.strerror}",
                "bpflame needs a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are",
            ) from error

    def offset(self, struct_name: str, member: str) -> int:
        """Byte offset of a direct member.

        Raises:
            BpflameError: This kernel has no such struct or member.
        """
        name, wanted = self._string(struct_name), self._string(member)
        pattern = name.to_bytes(4, "little")
        position = self._found.get(struct_name, 0) - 1
        # A scan for the name beats a walk over 100,000 types by a factor of ten; what is found by
        # chance inside another type is told apart by its kind and by having the member.
        while (position := self._types.find(pattern, position + 1)) >= 0:
            if not name:  # of what has none, so of a struct that this kernel does not know
                break
            found = self._member_offset(position, wanted) if position % 4 == 0 else None
            if found is not None:
                self._found[struct_name] = position
                return found
        raise BpflameError(f"this kernel's BTF has no {struct_name}.{member}")

    def task_state(self) -> int:
        """Byte offset of a task's state, which Linux 5.14 renamed (2f064a59a11f)."""
        try:
            return self.offset("task_struct", "__state")
        except BpflameError:
            return self.offset("task_struct", "state")

    def knows(self, name: str) -> bool:
        """Whether the kernel has something of that name: a helper's number, a function, ..."""
        return self._string(name) > 0

    def has_parameters(self, *names: str) -> bool:
        """Whether some function has parameters of these names, one after the other."""
        wanted = [self._string(name) for name in names]
        if not all(wanted):
            return False
        pattern = wanted[-1].to_bytes(4, "little")
        position = -1
        while (position := self._types.find(pattern, position + 1)) >= 0:
            start = position - 8 * (len(names) - 1)  # struct btf_param: name, type
            if start >= 0 and wanted == [
                name for name, _ in struct.iter_unpack("<II", self._types[start : position + 8])
            ]:
                return True
        return False

    def _string(self, text: str) -> int:
        return self._strings.find(b"\0" + text.encode() + b"\0") + 1

    def _member_offset(self, position: int, wanted: int) -> int | None:
        if not wanted or position + 12 > len(self._types):
            return None
        _, info, _ = struct.unpack_from("<III", self._types, position)
        count = info & 0xFFFF
        if (info >> 24) & 0x1F != _KIND_STRUCT or position + 12 + 12 * count > len(self._types):
            return None
        bits_mask = 0xFFFFFF if info >> 31 else 0xFFFFFFFF  # kind_flag: the size of a bit field
        for i in range(count):
            name, _, offset = struct.unpack_from("<III", self._types, position + 12 + 12 * i)
            if name == wanted:
                return int(offset & bits_mask) // 8
        return None
