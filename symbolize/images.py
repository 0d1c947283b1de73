"""The ELF files behind mappings, each read once, and never one file for another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping as Dict

from bpflame.profile import Reason
from bpflame.raw import FileKey
from bpflame.symbolize.elf import ElfImage
from bpflame.symbolize.elf_file import BadElf

_DELETED = " (deleted)"
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Images:
    """Opens the file of a mapping, or says why that cannot be done.

    Args:
        files: Descriptors that the recorder kept; they stay its own.
    """

    def __init__(self, files: Dict[FileKey, int]) -> None:
        self._files = files
        self._by_key: dict[FileKey, ElfImage | Reason] = {}
        self._by_inode: dict[tuple[int, int, int], ElfImage | Reason] = {}

    def get(self, key: FileKey) -> ElfImage | Reason:
        """The file, or the reason why there is none to read."""
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = self._find(key)
        return found

    def close(self) -> None:
        """Close what was opened here."""
        for image in {id(image): image for image in self._by_inode.values()}.values():
            if isinstance(image, ElfImage):
                image.close()

    def _find(self, key: FileKey) -> ElfImage | Reason:
        if key.path == "[vdso]":
            return self._image(_vdso(), key.path)
        if not key.path.startswith("/") or key.path.startswith("//"):
            return Reason.ANONYMOUS
        kept = self._files.get(key)
        if kept is not None:
            try:
                image = self._image(os.dup(kept), key.path)
            except OSError:
                return Reason.FILE_GONE
            strict = False  # opened through the mapping itself
        else:
            try:
                fd = os.open(key.path, _OPEN)
            except OSError:
                return Reason.FILE_GONE
            if not key.build_id and os.fstat(fd).st_ino != key.inode:
                os.close(fd)
                return Reason.FILE_GONE
            image = self._image(fd, key.path)
            strict = True
        if image is Reason.BAD_FILE and key.path.startswith(("/memfd:", "/dev/zero")):
            return Reason.ANONYMOUS
        try:
            if isinstance(image, ElfImage) and not _same(image, key, strict):
                return Reason.FILE_GONE
        except BadElf:
            return Reason.BAD_FILE
        return image

    def _image(self, fd: int, path: str) -> ElfImage | Reason:
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if identity in self._by_inode:
            os.close(fd)
            return self._by_inode[identity]
        image: ElfImage | Reason
        try:
            image = ElfImage(fd, path)
        except BadElf:
            image = Reason.BAD_FILE
        self._by_inode[identity] = image
        return image


def _same(image: ElfImage, key: FileKey, strict: bool) -> bool:
    """Whether the file is the one that was mapped, by the build id the kernel saw."""
    if not key.build_id or image.build_id == key.build_id:
        return True
    return not strict and not image.build_id


def module_name(path: str) -> str:
    """What to call the file of a mapping: its base name, or the kernel's name for memory."""
    if path.startswith(("[", "//")) or not path:
        return path.strip("/") or "anon"
    return os.path.basename(path.removesuffix(_DELETED))


def _vdso() -> int:
    """A copy of bpflame's own vDSO: one image serves all 64-bit processes of a kernel."""
    fd = os.memfd_create("vdso", os.MFD_CLOEXEC)
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        match = re.search(r"^(\w+)-(\w+) .*\[vdso\]$", maps.read(), re.MULTILINE)
        if match is not None:
            start, end = int(match[1], 16), int(match[2], 16)
            memory.seek(start)
            os.write(fd, memory.read(end - start))
    return fd
