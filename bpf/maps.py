"""Raw access to BPF maps: bytes in, bytes out, in batches."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Any

from bpflame.bpf.cpus import possible_cpus
from bpflame.bpf.load import libbcc
from bpflame.errors import BpflameError

_BATCH = 1024
_NOEXIST = 1  # BPF_NOEXIST


class BpfMap:
    """A map by its file descriptor.

    Args:
        fd: File descriptor, owned by the program it belongs to.
        key_size: Bytes of a key.
        value_size: Bytes of a value.
    """

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size
        self._lib = libbcc()

    def update(self, key: bytes, value: bytes) -> None:
        """Set one entry.

        Raises:
            BpflameError: The map is full, or refuses the value.
        """
        ctypes.set_errno(0)
        if self._lib.bpf_update_elem(self.fd, key, value, 0) < 0:
            raise BpflameError(f"cannot write to a BPF map: {os.strerror(ctypes.get_errno())}")

    def lookup(self, key: bytes) -> bytes | None:
        """One value, or None."""
        value = ctypes.create_string_buffer(self.value_size)
        if self._lib.bpf_lookup_elem(self.fd, key, value) < 0:
            return None
        return value.raw

    def insert(self, key: bytes, value: bytes) -> bool:
        """Make an entry; False where there is one already, or no room."""
        return bool(self._lib.bpf_update_elem(self.fd, key, value, _NOEXIST) == 0)

    def delete(self, key: bytes) -> None:
        """Take an entry out, if it is there."""
        self._lib.bpf_delete_elem(self.fd, key)

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        """Take entries out, a batch at a time (BPF_MAP_LOOKUP_AND_DELETE_BATCH, Linux 5.6).

        Yields:
            Keys and values of a batch, concatenated: n * key_size and n * value_size bytes.
        """
        return self._batches(self._lib.bpf_lookup_and_delete_batch)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, as :meth:`drain` gives them; they stay."""
        return self._batches(self._lib.bpf_lookup_batch)

    def _batches(self, call: Any) -> Iterator[tuple[bytes, bytes]]:
        room = _BATCH
        position = ctypes.create_string_buffer(max(self.key_size, 8))
        first = True
        while True:
            keys = ctypes.create_string_buffer(room * self.key_size)
            values = ctypes.create_string_buffer(room * self.value_size)
            count = ctypes.c_uint32(room)
            ctypes.set_errno(0)
            result = call(
                self.fd,
                None if first else ctypes.cast(position, ctypes.POINTER(ctypes.c_uint32)),
                ctypes.cast(position, ctypes.POINTER(ctypes.c_uint32)),
                keys,
                values,
                ctypes.byref(count),
            )
            error = ctypes.get_errno() if result < 0 else 0
            if error == errno.ENOSPC and count.value == 0:
                room *= 2  # one bucket holds more than a batch
                continue
            if error not in (0, errno.ENOENT, errno.ENOSPC):
                raise BpflameError(f"cannot read a BPF map: {os.strerror(error)}")
            if count.value:
                yield (
                    keys.raw[: count.value * self.key_size],
                    values.raw[: count.value * self.value_size],
                )
            if error == errno.ENOENT:
                return
            first = False


class PerCpuCounters:
    """A per-CPU array of u64 counters, named in order."""

    def __init__(self, fd: int, names: tuple[str, ...]) -> None:
        self._cpus = possible_cpus()
        self._map = BpfMap(fd, 4, 8 * len(self._cpus))
        self._names = names

    def by_cpu(self, name: str) -> dict[int, int]:
        """The counter's value on each possible CPU."""
        key = self._names.index(name).to_bytes(4, "little")
        raw = self._map.lookup(key) or bytes(self._map.value_size)
        return {
            cpu: int.from_bytes(raw[8 * i : 8 * i + 8], "little")
            for i, cpu in enumerate(self._cpus)
        }

    def total(self, name: str) -> int:
        """The counter's sum over all CPUs."""
        return sum(self.by_cpu(name).values())
