"""RawProfile -> Profile: every address becomes a frame."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bpflame.profile import Frame, FrameKind, Profile, Reason, Sample
from bpflame.raw import (
    TRUNCATED,
    AbsoluteAddress,
    RawProfile,
    RawSample,
    RawWaker,
    StackEnd,
)
from bpflame.symbolize.composer import Composer
from bpflame.symbolize.images import Images
from bpflame.symbolize.kernel import KernelSymbols, strip_own_glue
from bpflame.symbolize.process import Place, resolve_user

UNNAMED = "unnamed: "
"""Begins the names of the counters of frames without a name, by :class:`Reason`."""

LOST = Frame("[stack lost]", unnamed=Reason.MISSING_STACK)

CUT = {
    end: Frame(f"[truncated: {why}]", unnamed=Reason.TRUNCATED) for end, why in TRUNCATED.items()
}
"""Stand where the outermost frames of a user stack are missing."""


def symbolize(
    raw: RawProfile,
    hurried: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Name the frames of a recording.

    Args:
        raw: The recording; its files must still be open.
        hurried: Once it returns True, the rest is left without names, which is counted.
        progress: Told the number of files done and of all files.
    """
    parts = list(_parts(raw.samples))
    places = {(part.space, each) for part in parts for each in _calls(part.user)}
    with contextlib.closing(Images(raw.files)) as images:
        user = resolve_user(places, images, hurried, progress)
    names = Names(user, _resolve_kernel(raw, parts))
    composer = Composer(raw.kind, names.stack)
    samples = tuple(composer.sample(sample) for sample in raw.samples)
    counters = {**raw.meta.counters, **_account(samples)}
    meta = dataclasses.replace(raw.meta, counters=counters)
    return Profile(raw.kind, raw.unit, samples, meta)


def _parts(samples: Iterable[RawSample]) -> Iterator[RawSample | RawWaker]:
    """Everything that has stacks, each once."""
    wakers: dict[int, RawWaker] = {}
    for sample in samples:
        yield sample
        wakers.update((id(waker), waker) for waker in sample.wakers)
    yield from wakers.values()


def _calls(addresses: tuple[AbsoluteAddress, ...]) -> Iterator[AbsoluteAddress]:
    """The instructions of a stack, leaf first.

    All but the leaf are return addresses, which can lie past the end of the function that made the
    call (when it never returns): the byte before belongs to the call.
    """
    for depth, address in enumerate(addresses):
        yield AbsoluteAddress(address - 1) if depth and address else address


def _resolve_kernel(
    raw: RawProfile, parts: Iterable[RawSample | RawWaker]
) -> dict[AbsoluteAddress, Frame]:
    addresses = sorted({each for part in parts for each in _calls(part.kernel)})
    if not addresses:
        return {}
    # Also when there is hurry: it takes a tenth of a second, and interrupts are told by it.
    symbols = KernelSymbols.from_text(raw.kallsyms, raw.modules)
    reason = Reason.RESTRICTED if symbols.restricted else Reason.NO_SYMBOL
    found = symbols.resolve(np.array(addresses, dtype=np.uint64))
    return {
        address: _bare(address, reason)
        if name is None
        else Frame(name[0], FrameKind.KERNEL, name[1] or "kernel")
        for address, name in zip(addresses, found, strict=True)
    }


def _bare(address: int, reason: Reason) -> Frame:
    if reason is Reason.RESTRICTED:
        return Frame("[kernel]", FrameKind.KERNEL, "kernel", unnamed=reason)
    return Frame(f"[kernel+{address:#x}]", FrameKind.KERNEL, "kernel", unnamed=reason)


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """The frames of all addresses."""

    user: dict[Place, Frame]
    kernel: dict[AbsoluteAddress, Frame]

    def stack(self, part: RawSample | RawWaker) -> tuple[Frame, ...]:
        """The frames of a pair of stacks, root first: user code, then the kernel on its behalf."""
        own = [self.user[part.space, each] for each in _calls(part.user)]
        if part.end in _BY_FRAME_POINTER:
            own = list(_connected(own))
        cut = [CUT[part.end]] if part.end in CUT else []
        inner = strip_own_glue([self.kernel[each] for each in _calls(part.kernel)])
        lost = [LOST] if part.lost else []
        return (*cut, *reversed(own), *lost, *reversed(inner))


_BY_FRAME_POINTER = (StackEnd.UNTOLD, StackEnd.NARROW)


def _connected(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Frames, leaf first, as far as they are a stack.

    A return address in no mapping is where a walk along frame pointers met code that uses the
    register for something else. What it gives from there on is chance, and would scatter one
    stack over many.
    """
    for frame in frames:
        yield frame
        if frame.unnamed is Reason.UNMAPPED:
            return


def _account(samples: Iterable[Sample]) -> dict[str, int]:
    """How many frames there are and how many have no name, by reason; each counts its weight."""
    counts: Counter[str] = Counter()
    for sample in samples:
        counts["frames"] += sample.value * len(sample.stack)
        for frame in sample.stack:
            if frame.unnamed not in (None, Reason.TRUNCATED):
                counts["unnamed_frames"] += sample.value
                counts[UNNAMED + frame.unnamed.value] += sample.value
    return dict(counts)
