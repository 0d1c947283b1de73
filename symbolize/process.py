"""Names for user addresses: address -> mapping -> offset in a file -> symbol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

from bpflame.profile import Frame, Reason
from bpflame.raw import AbsoluteAddress, AddressSpace, FileKey, FileOffset
from bpflame.symbolize.elf import ElfImage
from bpflame.symbolize.elf_file import BadElf
from bpflame.symbolize.images import Images, module_name

_VSYSCALL = 0xFFFFFFFFFF600000  # arch/x86/include/uapi/asm/vsyscall.h

Place: TypeAlias = tuple[AddressSpace | None, AbsoluteAddress]
"""Where an instruction was: an address means nothing without its address space."""


def resolve_user(
    places: Iterable[Place],
    images: Images,
    hurried: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> dict[Place, Frame]:
    """Name every place, or give the reason why it has no name.

    Args:
        places: Addresses of instructions; for a caller, of its call, not of its return.
        images: Where files come from.
        hurried: Asked before each file; once true, the rest stays without names.
        progress: Told the number of files done and of all files.
    """
    frames: dict[Place, Frame] = {}
    by_file: defaultdict[FileKey, defaultdict[FileOffset, list[Place]]]
    by_file = defaultdict(lambda: defaultdict(list))
    for place in places:
        space, address = place
        mapping = space.find(address) if space is not None else None
        if mapping is None:
            frames[place] = _nowhere(space, address)
        else:
            offset = FileOffset(address - mapping.start + mapping.offset)
            by_file[mapping.file][offset].append(place)
    for done, (key, offsets) in enumerate(by_file.items()):
        progress(done, len(by_file))
        image = Reason.NOT_RESOLVED if hurried() else images.get(key)
        named = zip(offsets.values(), _name(key, image, list(offsets)), strict=True)
        frames.update((place, frame) for same, frame in named for place in same)
    return frames


def _nowhere(space: AddressSpace | None, address: AbsoluteAddress) -> Frame:
    if _VSYSCALL <= address < _VSYSCALL + 4096:
        return Frame("[vsyscall]", module="[vsyscall]")
    if space is None:
        return Frame("[unknown]", unnamed=Reason.NO_MAPS)
    return Frame("[unmapped]", unnamed=Reason.UNMAPPED)


def _name(key: FileKey, image: ElfImage | Reason, offsets: list[FileOffset]) -> list[Frame]:
    module = module_name(key.path)
    if image is Reason.ANONYMOUS:
        # One name for all of it: without a map, JIT code has no bounds to tell functions apart.
        return [Frame(f"[{module.strip('[]')}]", module=module, unnamed=image)] * len(offsets)
    if isinstance(image, Reason):
        return [_bare(module, offset, image) for offset in offsets]
    wanted = np.array(offsets, dtype=np.uint64)
    try:
        names = image.resolve(wanted)
        addresses, _ = image.to_virtual(wanted)
    except BadElf:  # found on closer reading
        return _name(key, Reason.BAD_FILE, offsets)
    return [
        _bare(module, address, Reason.NO_SYMBOL) if name is None else Frame(name, module=module)
        for name, address in zip(names, addresses.tolist(), strict=True)
    ]


def _bare(module: str, address: int, reason: Reason) -> Frame:
    return Frame(f"[{module.strip('[]')}+{address:#x}]", module=module, unnamed=reason)
