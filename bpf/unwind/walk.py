"""Stacks unwound in user space, by the same tables and in the same way as in BPF.

Mirrors ``bpf/programs/unwind.h`` and ``tables.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpflame.bpf.unwind.arena import MAPPING, MAPPING_WORDS, Arena
from bpflame.bpf.unwind.copies import Place
from bpflame.bpf.unwind.rules import Bp, Cfa
from bpflame.raw import AbsoluteAddress, StackEnd

WHY_NO_TABLE, WHY_FRAMES, WHY_LATER = range(3)
"""``enum why``: what a mapping without pages is."""

_VSYSCALL = 0xFFFFFFFFFF600000
_SIGNAL_BP, _SIGNAL_SP, _SIGNAL_IP = 120, 160, 168
_MANY_ARGUMENTS = 1 << 16
_MASK = (1 << 64) - 1
_CALLED = Cfa.SP | 8 << 32


class Walked(NamedTuple):
    """A user stack.

    Attributes:
        ips: As in :class:`bpflame.raw.RawSample`.
        end: Why it ends where it does.
        guessed: Some frames are by frame pointer.
    """

    ips: tuple[AbsoluteAddress, ...]
    end: StackEnd
    guessed: bool


class Walker:
    """Walks stacks of one address space.

    Args:
        arena: Holds the tables.
        block: Where the mappings of the address space lie.
        count: How many they are.
        rules: The rules by number.
        depth: How many frames to take.
    """

    def __init__(self, arena: Arena, block: int, count: int, rules: list[int], depth: int) -> None:
        self._arena = arena
        self._mappings = arena.read(block, count * MAPPING_WORDS).view(MAPPING)
        self._starts = self._mappings["start"].copy()
        self._rules = rules
        self._depth = depth

    def walk(self, leaf: Place, word: Callable[[int], int | None]) -> Walked:
        """The stack from its innermost frame on.

        Args:
            leaf: The registers there.
            word: Gives the word at an address; None where there is none.
        """
        ips: list[AbsoluteAddress] = []
        place, guessed = leaf, False
        while True:
            rule = self._rule(place)
            if rule is StackEnd.NO_MAPPING and ips:
                return Walked(tuple(ips), rule, guessed)
            if len(ips) >= self._depth:
                return Walked(tuple(ips), StackEnd.TOO_DEEP, guessed)
            ips.append(AbsoluteAddress(place.ip + bool(ips and place.exact)))
            if isinstance(rule, StackEnd):
                return Walked(tuple(ips), rule, guessed)
            guessed |= rule & 255 == Cfa.FRAME and place.bp != 0
            following = _apply(rule, place, len(ips) == 1, word)
            if isinstance(following, StackEnd):
                return Walked(tuple(ips), following, guessed)
            place = following

    def _rule(self, place: Place) -> int | StackEnd:
        pc = place.ip - (not place.exact)
        if _VSYSCALL <= pc < _VSYSCALL + 4096:
            return _CALLED
        if not 0 <= pc < 1 << 63:
            return StackEnd.NO_MAPPING
        index = int(np.searchsorted(self._starts, np.uint64(pc), "right")) - 1
        if index < 0 or pc >= self._mappings["end"][index]:
            return StackEnd.NO_MAPPING
        _, _, delta, pages, count = self._mappings[index].tolist()
        if not pages:
            if count == WHY_FRAMES:
                return int(Cfa.FRAME)
            return StackEnd.NOT_READY if count == WHY_LATER else StackEnd.NO_TABLE
        offset = pc + delta & _MASK
        if offset // 4096 >= count:
            return StackEnd.NO_TABLE
        return self._rules[self._row(pages + 2 * (offset // 4096), offset & 4095)]

    def _row(self, page: int, low: int) -> int:
        start, rest = self._arena.read(page, 2).tolist()
        if not rest & 0xFFFF:
            return int(rest >> 16)
        rows = self._arena.read(start, rest & 0xFFFF)
        index = int(np.searchsorted(rows, (low + 1) << 16))
        return int(rows[index - 1]) & 0xFFFF if index else rest >> 16


def _apply(
    rule: int, place: Place, is_leaf: bool, word: Callable[[int], int | None]
) -> Place | StackEnd:
    """The caller's registers."""
    kind, bp_kind = rule & 255, rule >> 8 & 255
    bp_offset, offset = _signed(rule >> 16, 16), _signed(rule >> 32, 32)
    ip, sp, bp, r10, di, _ = place
    cfa: int | None
    if kind == Cfa.SP:
        cfa = sp + offset
    elif kind == Cfa.BP:
        cfa = bp + offset
    elif kind == Cfa.FRAME:
        if not bp:
            return StackEnd.COMPLETE
        cfa, bp_kind, bp_offset = bp + 16, Bp.AT_CFA, -16
    elif kind == Cfa.PLT:
        cfa = sp + 8 + (8 if ip & 15 >= offset else 0)
    elif kind in (Cfa.AT_SP, Cfa.AT_BP):
        cfa = word((sp if kind == Cfa.AT_SP else bp) + (offset >> 8) & _MASK)
        if cfa is None:
            return StackEnd.UNREADABLE
        cfa += offset & 255
    elif kind == Cfa.R10 and is_leaf:
        cfa = r10 + offset
    elif kind == Cfa.RDI and is_leaf:
        return Place(di, sp + offset & _MASK, bp)
    elif kind == Cfa.SIGNAL:
        return _interrupted(sp, word)
    else:
        return _ending(kind, is_leaf, place, word)
    cfa &= _MASK
    if cfa <= sp and kind != Cfa.FRAME:
        return StackEnd.NOT_GROWING
    saved: int | None = bp
    if bp_kind == Bp.LOST:
        saved = 0
    elif bp_kind != Bp.SAME:
        saved = word((cfa if bp_kind == Bp.AT_CFA else bp) + bp_offset & _MASK)
    caller = word(cfa - 8)
    if saved is None or caller is None:
        return StackEnd.UNREADABLE
    return Place(caller, cfa, saved) if caller else StackEnd.COMPLETE


def _interrupted(sp: int, word: Callable[[int], int | None]) -> Place | StackEnd:
    """What a signal interrupted, from the frame of its handler's return."""
    values = [word(sp + offset) for offset in (_SIGNAL_IP, _SIGNAL_SP, _SIGNAL_BP)]
    ip, stack, bp = values
    if ip is None or stack is None or bp is None:
        return StackEnd.UNREADABLE
    return Place(ip, stack, bp, exact=True) if ip else StackEnd.COMPLETE


def _ending(kind: int, is_leaf: bool, place: Place, word: Callable[[int], int | None]) -> StackEnd:
    if kind == Cfa.END:
        return StackEnd.COMPLETE
    if kind != Cfa.GAP:
        return StackEnd.UNSUPPORTED
    if place.bp:
        return StackEnd.NO_TABLE
    top = word(place.sp) if is_leaf else 0
    begins = top is not None and top < _MANY_ARGUMENTS
    return StackEnd.COMPLETE if begins else StackEnd.NO_TABLE


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value
