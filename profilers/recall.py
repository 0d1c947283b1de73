"""Teaches the program to recognise kernel stacks: the other half of ``bpf/programs/recall.h``.

The program hands over the words of a stack that it has unwound; here the places of the return
addresses are looked for. An address that is there twice has a stale copy, and which one that is
must not be guessed: it is known from the distance to the address before, which is the same on every
stack, once it was seen on one without copies.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence

from bpflame.bpf.kallsyms import KernelEntries, Range
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.raw import AbsoluteAddress

RECALL_ENTRIES = 1 << 14  # with CONFIG_RANDOMIZE_KSTACK_OFFSET each stack has 64 places
LESSON_ENTRIES = 1 << 8

_TRIES = 8
_FRAMES = 32
_WORDS = 256
_LESSON = struct.Struct(f"<QQ{_WORDS}Q")
_RECALL = struct.Struct(f"<QII{_FRAMES}Q{_FRAMES}H")

Stack = Sequence[AbsoluteAddress]


class Recall:
    """Finds the places for the stacks that a program met.

    Args:
        program: A loaded program that includes ``recall.h``.
        entries: Where certain functions of the kernel lie.
        stack: The addresses of a stack by its id, leaf first; empty if not to be had.
    """

    def __init__(
        self, program: Program, entries: KernelEntries, stack: Callable[[int], Stack]
    ) -> None:
        self._lessons = BpfMap(program.map_fd("lessons"), 8, _LESSON.size)
        self._recalls = BpfMap(program.map_fd("recalls"), 8, _RECALL.size)
        self._entries = entries
        self._stack = stack
        self._distances = Distances()
        self._tries: Counter[bytes] = Counter()

    def learn(self) -> None:
        """Work off what the program has handed over."""
        for keys, lessons in self._lessons.drain():
            for i, (stack_id, count, *words) in enumerate(_LESSON.iter_unpack(lessons)):
                self._note(keys[8 * i : 8 * i + 8], stack_id, words[:count])

    def _note(self, key: bytes, stack_id: int, words: list[int]) -> None:
        outer = above_program(self._stack(stack_id), self._entries)
        places = self._distances.find(outer, words)
        if places:
            ips = [*outer, *[0] * (_FRAMES - len(outer))]
            at = [*places, *[0] * (_FRAMES - len(places))]
            record = _RECALL.pack(stack_id, len(outer), places[-1] + 1, *ips, *at)
        else:
            self._tries[key] += 1
            if outer and self._tries[key] < _TRIES:
                return
            record = bytes(_RECALL.size)  # not to be tried again
        self._recalls.update(key, record)


class Distances:
    """How far apart on the stack, in words, the return addresses of caller and callee lie."""

    def __init__(self) -> None:
        self._after: dict[AbsoluteAddress, int] = {}  # 0: not fixed

    def find(self, ips: Stack, words: Sequence[int]) -> list[int] | None:
        """Where the addresses lie among the words; None where it is not certain.

        Args:
            ips: Return addresses, leaf first.
            words: The stack, from its lower end.
        """
        if not 0 < len(ips) <= _FRAMES:
            return None
        places: list[int] = []
        for i, ip in enumerate(ips):
            place = None
            if places and self._after.get(ips[i - 1]):
                place = places[-1] + self._after[ips[i - 1]]
                if place >= len(words) or words[place] != ip:
                    self._after[ips[i - 1]] = 0
                    place = None
            if place is None:
                place = _only(ip, words, places[-1] + 1 if places else 0)
            if place is None:
                return None
            places.append(place)
        # Not of the last: where the entry calls lies a frame of variable size.
        for ip, here, above in zip(ips[:-2], places, places[1:], strict=False):
            self._after.setdefault(ip, above - here)
        return places


def _only(ip: int, words: Sequence[int], start: int) -> int | None:
    """The place of a word that is there once."""
    found = [place for place in range(start, len(words)) if words[place] == ip]
    return found[0] if len(found) == 1 else None


def above_program(stack: Stack, entries: KernelEntries) -> Stack:
    """The part of a stack that lies above a raw tracepoint's context, in memory.

    Args:
        stack: Leaf first.
        entries: To tell the function in whose frame the context lies.

    Returns:
        Empty where that function is not there, or where the places of frames are not fixed: the
        kernel was interrupted, or took an exception. (As the last frame it is of user code.)
    """
    callers = [i for i, ip in enumerate(stack[:8]) if _within(ip, entries.callers)]
    outer = stack[callers[-1] + 1 :] if callers else ()
    if any(_within(ip, (*entries.interrupts, *entries.exceptions)) for ip in outer[:-1]):
        return ()
    return outer


def _within(ip: int, ranges: Sequence[Range]) -> bool:
    return any(start <= ip < end for start, end in ranges)
