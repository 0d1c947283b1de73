"""The rows of all FDEs: from which address on which rule holds."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from bpflame.bpf.unwind import lockstep
from bpflame.bpf.unwind.cfa import (
    FOREIGN,
    KIND,
    RA,
    RA_BELOW_CFA,
    RA_IN_RDI,
    RA_UNDEFINED,
    SIGNAL,
    START,
    TOO_FAR,
    Machine,
    NeedsAddress,
    program_start,
)
from bpflame.bpf.unwind.cie import Unsound
from bpflame.bpf.unwind.columns import MAX_ROWS, TooManyRows
from bpflame.bpf.unwind.eh_frame import Fdes
from bpflame.bpf.unwind.rules import Bp, Cfa
from bpflame.bpf.unwind.vectors import distinct
from bpflame.symbolize.elf_file import BadElf, ElfFile

Ints = NDArray[np.int64]

_MAX_PROGRAM = 1 << 16
"""Three times the longest that was found. The numpy loop takes a step for each byte at worst."""
_MAX_SINGLY = 4 << 20
"""Bytes of programs to run one by one, 0.5 us each. Real files need some thousand."""

_NOT_UNDERSTOOD = [(0, START | FOREIGN)]


@dataclasses.dataclass(frozen=True, slots=True)
class FrameRows:
    """Rows of FDEs, sorted by address.

    Attributes:
        address: Virtual; shape (rows,).
        rule: Index into ``rules``; shape (rows,).
        rules: u64, distinct.
        begin: Of each FDE; shape (FDEs,).
        end: Likewise.
    """

    address: Ints
    rule: Ints
    rules: NDArray[np.uint64]
    begin: Ints
    end: Ints


def frame_rows(elf: ElfFile, fdes: Fdes) -> FrameRows:
    """Runs the programs of all FDEs; for those of an unsound one the rule is UNSUPPORTED.

    Raises:
        BadElf: There are too many rows or odd programs.
    """
    programs = _Programs(elf, fdes)
    runs = programs.run()
    number, rules = _rules(runs.state)
    count = runs.count[programs.of_fde]
    if count.sum() > MAX_ROWS:
        raise BadElf(elf.path, f"{count.sum()} rows of call frame information")
    # Where each FDE's rows are among those of the programs, less where they come here.
    shift = runs.first[programs.of_fde] - (np.cumsum(count) - count)
    place = np.repeat(shift, count)
    place += np.arange(len(place))
    address = np.repeat(fdes.begin, count) + runs.location[place]
    inside = address < np.repeat(fdes.end, count)
    return FrameRows(address[inside], number[place[inside]], rules, fdes.begin, fdes.end)


@dataclasses.dataclass(frozen=True, slots=True)
class _Runs:
    """What the programs came to: rows ``first[p]`` to ``first[p] + count[p]`` are program p's."""

    first: Ints
    count: Ints
    location: Ints
    state: Ints


class _Programs:
    """The distinct programs of a file, by CIE and bytes."""

    def __init__(self, elf: ElfFile, fdes: Fdes) -> None:
        self._elf, self._fdes = elf, fdes
        self._budget = _MAX_SINGLY
        self._initial: list[int | None] = []
        for cie in fdes.cies:
            self._spend(1 + len(cie.program))
            try:
                self._initial.append(program_start(cie))
            except (Unsound, NeedsAddress):
                self._initial.append(None)
        self._bytes: list[bytes] = []
        self._cie: list[int] = []
        self.of_fde: Ints = np.zeros(len(fdes), np.int64)
        by_cie = np.argsort(fdes.cie, kind="stable")
        for which in np.split(by_cie, np.flatnonzero(np.diff(fdes.cie[by_cie])) + 1):
            if which.size:
                self._number(which)

    def _number(self, which: Ints) -> None:
        """Gives the programs of FDEs, all of one CIE, their numbers."""
        data, first, last = self._fdes.data, self._fdes.first[which], self._fdes.last[which]
        # Zeros at the end are nops, or operands, for which the padding stands in.
        programs = [
            data[start:end].rstrip(b"\0")
            for start, end in zip(first.tolist(), last.tolist(), strict=True)
        ]
        distinct_programs = dict.fromkeys(programs)
        numbers = dict(zip(distinct_programs, range(len(self._bytes), 1 << 62), strict=False))
        self.of_fde[which] = [numbers[program] for program in programs]
        self._bytes.extend(distinct_programs)
        self._cie.extend([int(self._fdes.cie[which[0]])] * len(distinct_programs))

    def run(self) -> _Runs:
        """The rows of all programs; raises BadElf."""
        cie = np.array(self._cie, np.int64)
        short = np.fromiter(map(len, self._bytes), np.int64, len(cie)) <= _MAX_PROGRAM
        sound = short & np.array([each is not None for each in self._initial], np.bool_)[cie]
        plain = np.array([lockstep.plain(each) for each in self._fdes.cies], np.bool_)[cie]
        together = np.flatnonzero(sound & plain).tolist()
        singly = np.flatnonzero(sound & ~plain).tolist()
        initial = np.array([self._initial[self._cie[each]] for each in together], np.int64)
        try:
            rows, rare = lockstep.run([self._bytes[each] for each in together], initial)
        except TooManyRows as error:
            raise BadElf(self._elf.path, "too many rows of call frame information") from error
        found = self._run_singly(singly + [together[index] for index in rare])
        found.update(dict.fromkeys(np.flatnonzero(~sound).tolist(), _NOT_UNDERSTOOD))
        single = np.array([row for each in found.values() for row in each], np.int64)
        single = single.reshape(-1, 2)
        first, count = np.zeros((2, len(self._bytes)), np.int64)
        first[together], count[together] = np.cumsum(rows.count) - rows.count, rows.count
        alone = list(found)
        count[alone] = [len(each) for each in found.values()]
        first[alone] = len(rows.state) + np.cumsum(count[alone]) - count[alone]
        return _Runs(
            first,
            count,
            np.concatenate((rows.location, single[:, 0])),
            np.concatenate((rows.state, single[:, 1])),
        )

    def _run_singly(self, programs: list[int]) -> dict[int, list[tuple[int, int]]]:
        """Rows by number of the program; new numbers for those that depend on their FDE."""
        found = dict.fromkeys(programs, _NOT_UNDERSTOOD)
        for number in programs:
            try:
                found[number] = self._machine(number, self._bytes[number]).run()
            except Unsound:
                continue
            except NeedsAddress:
                self._spend(len(self.of_fde) >> 8)
                for fde in np.flatnonzero(self.of_fde == number).tolist():
                    self._run_in_place(number, fde, found)
        return found

    def _run_in_place(self, number: int, fde: int, found: dict[int, list[tuple[int, int]]]) -> None:
        fdes = self._fdes
        program, own = self._bytes[number], len(self._bytes)
        address = fdes.address + int(fdes.first[fde])
        machine = self._machine(number, program, address, int(fdes.begin[fde]))
        try:
            found[own] = machine.run()
        except Unsound:
            return
        self._bytes.append(program)
        self._cie.append(self._cie[number])
        self.of_fde[fde] = own

    def _machine(self, number: int, program: bytes, address: int = 0, begin: int = -1) -> Machine:
        self._spend(1 + len(program))
        cie = self._cie[number]
        initial = self._initial[cie]
        if initial is None:
            raise Unsound("a program of an unsound CIE")
        return Machine(program, self._fdes.cies[cie], initial, address, begin)

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise BadElf(self._elf.path, "too many odd programs in .eh_frame")


def _rules(state: Ints) -> tuple[Ints, NDArray[np.uint64]]:
    """The rule of each state: its number, and the rules, which are distinct."""
    state_number, states = distinct(state)
    rules, rule_number = np.unique(_to_rules(states), return_inverse=True)
    return rule_number.reshape(-1)[state_number], rules


def _to_rules(state: Ints) -> NDArray[np.uint64]:
    """Rules as :func:`bpflame.bpf.unwind.rules.pack` makes them; shape (n,)."""
    kind, bp_kind = state & KIND, state >> 8 & 3
    bp_offset, cfa_offset = state << 32 >> 48, state >> 32
    # A slot below rsp was popped: rbp is the caller's again, though compilers do not say so.
    popped = (kind == Cfa.SP) & (bp_kind == Bp.AT_CFA) & (bp_offset < -cfa_offset)
    with_offset = (bp_kind == Bp.AT_CFA) | (bp_kind == Bp.AT_BP)
    slot = np.where(with_offset, bp_kind << 8 | (bp_offset & 0xFFFF) << 16, bp_kind << 8)
    slot[popped] = Bp.SAME << 8
    rule = kind | slot | cfa_offset << 32
    register = (kind == Cfa.SP) | (kind == Cfa.BP) | (kind == Cfa.R10)
    rule[(kind == Cfa.UNSUPPORTED) | (register & (cfa_offset == TOO_FAR))] = Cfa.UNSUPPORTED
    rule[state & RA != RA_BELOW_CFA] = Cfa.UNSUPPORTED
    rule[state & FOREIGN != 0] = Cfa.UNSUPPORTED
    in_rdi = (state & (RA | FOREIGN) == RA_IN_RDI) & (kind == Cfa.SP) & (cfa_offset != TOO_FAR)
    rule[in_rdi] = (Cfa.RDI | cfa_offset << 32)[in_rdi]
    rule[state & RA == RA_UNDEFINED] = Cfa.END
    rule[state & SIGNAL != 0] = Cfa.SIGNAL
    return rule.view(np.uint64)
