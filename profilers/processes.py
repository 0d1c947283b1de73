"""Which program image each process was running, and when.

Built from a snapshot of /proc and then from the kernel's own records of fork, exec and mmap, so
that a process that lived for a millisecond has its mappings too.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpflame.bpf.mapping_ring import Event, Executed, Exited, Forked, Mapped
from bpflame.profilers.files import FileKeeper, is_file
from bpflame.profilers.procfs import executable_mappings, exists
from bpflame.raw import AbsoluteAddress, AddressSpace, FileKey, FileOffset, Mapping


class ProcessTracker:
    """The address spaces of processes, over time.

    Args:
        files: Keeps mapped files open for the symbolizer.
        only: Pids to follow, with ``children`` also what they start; None for all.
        children: Follow processes that a followed one starts.
    """

    def __init__(
        self, files: FileKeeper, only: Iterable[int] | None = None, children: bool = False
    ) -> None:
        self._files = files
        self._only = None if only is None else set(only)
        self._children = children
        self._spaces: dict[int, list[AddressSpace]] = {}
        self._exited: set[int] = set()
        self._renewed: list[tuple[int, int, int]] = []
        self._sampled: set[int] = set()

    def follow(self, pid: int) -> None:
        """Follow one more process."""
        if self._only is not None:
            self._only.add(pid)

    def snapshot(self, pids: Iterable[int]) -> None:
        """Read the mappings that processes have now."""
        for pid in pids:
            mappings = executable_mappings(pid)
            if mappings is not None:
                self._spaces.setdefault(pid, []).insert(0, AddressSpace(pid, 0, mappings))

    def adopt(self, pid: int) -> None:
        """Follow one more process, from its mappings of now on, if nothing is known of it."""
        self.follow(pid)
        if pid not in self._spaces:
            self.snapshot([pid])

    def look_again(self, pid: int, born: int) -> bool:
        """Read the mappings of a process anew, if it still runs that image.

        Returns:
            Whether there are some that nobody told of: those that mremap moved, or whose record
            was lost.
        """
        space = self.find(pid, born)
        if space is None or space is not self._spaces[pid][-1]:
            return False
        before = space.version
        for mapping in executable_mappings(pid) or ():
            if mapping not in space.mappings:
                space.add(mapping)
        return space.version != before

    def apply(self, events: Iterable[Event]) -> None:
        """Take in what happened, in the order of time."""
        for event in events:
            if self._wanted(event):
                self._apply(event)

    def sampled(self, pids: Iterable[int]) -> None:
        """Processes that have samples: keep their files while they live."""
        for pid in set(pids) - self._sampled:
            self._sampled.add(pid)
            for space in self._spaces.get(pid, ()):
                for mapping in space.mappings:
                    self._files.keep(pid, mapping)

    def renewed(self) -> list[tuple[int, int, int]]:
        """Images of which a part was replaced since the last call, as by dlclose() and dlopen().

        From then on it counts as another image, or the addresses there would have two meanings.

        Returns:
            Pid, when the image began, and when it was replaced, CLOCK_MONOTONIC ns.
        """
        renewed, self._renewed = self._renewed, []
        return renewed

    def forget(self) -> None:
        """Drop processes that have ended and were never sampled. Call after :meth:`sampled`."""
        for pid in self._exited - self._sampled:
            if not exists(pid):  # else only its first thread has ended
                self._spaces.pop(pid, None)
        self._exited.clear()

    def find(self, pid: int, born: int) -> AddressSpace | None:
        """The image that ``pid`` ran since ``born`` (0: since before the recording)."""
        spaces = self._spaces.get(pid)
        if not spaces:
            return None
        # BPF notes the time at a tracepoint that comes just after the record that began the image.
        older = [space for space in spaces if space.born <= born]
        if older:
            return older[-1]
        # The program's note of an old process can have made room for others: the last image is
        # the best guess. Else the records began after the image did.
        return spaces[0] if born else spaces[-1]

    def _wanted(self, event: Event) -> bool:
        if self._only is None or event.pid in self._only:
            return True
        if self._children and isinstance(event, Forked) and event.parent in self._only:
            self._only.add(event.pid)
            return True
        return False

    def _apply(self, event: Event) -> None:
        if isinstance(event, Mapped):
            self._map(event)
        elif isinstance(event, Forked):
            parent = self._spaces.get(event.parent)
            inherited = list(parent[-1].mappings) if parent else []
            self._begin(event.pid, event.time, inherited)
        elif isinstance(event, Executed):
            self._begin(event.pid, event.time, [])
        elif isinstance(event, Exited):
            self._exited.add(event.pid)

    def _begin(self, pid: int, born: int, mappings: list[Mapping]) -> None:
        self._exited.discard(pid)
        self._spaces.setdefault(pid, []).append(AddressSpace(pid, born, mappings))

    def _map(self, event: Mapped) -> None:
        mapping = Mapping(
            AbsoluteAddress(event.start),
            AbsoluteAddress(event.end),
            FileOffset(event.offset),
            FileKey(event.path, event.build_id, event.inode),
        )
        spaces = self._spaces.setdefault(event.pid, [])
        if not spaces:
            spaces.append(AddressSpace(event.pid, 0, []))
        if is_file(event.path) and spaces[-1].replaces(mapping):
            self._renewed.append((event.pid, spaces[-1].born, event.time))
            self._begin(event.pid, event.time, list(spaces[-1].mappings))
        spaces[-1].add(mapping)
        self._files.keep(event.pid, mapping)
