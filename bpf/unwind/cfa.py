"""Runs call frame programs one by one: DWARF 5, section 6.4.2, as far as a walk needs it.

:mod:`bpflame.bpf.unwind.lockstep` runs the bulk; here are the state that both share, the CIEs, and
the programs with rare instructions. 0.5 us an instruction.
"""

from __future__ import annotations

from bpflame.bpf.unwind import expressions
from bpflame.bpf.unwind.cie import Cie, Reader, Unsound
from bpflame.bpf.unwind.rules import Bp, Cfa

# The state of a program is one signed 64-bit number, so that to remember, restore and emit it are
# single operations. From its low end: Cfa (8 bits), Bp (2), where the return address is (2),
# signal frame (1), foreign (1), nothing (2), offset of rbp (s16), offset of the CFA (s32).
SIGNAL, FOREIGN = 1 << 12, 1 << 13
RA_BELOW_CFA, RA_UNDEFINED, RA_ELSEWHERE, RA_IN_RDI = 0 << 10, 1 << 10, 2 << 10, 3 << 10
NOT_CFA = 0xFFFFFF00
KIND, BP, RA = 0xFF, 0xFFFF0300, 0xC00
START = Cfa.UNSUPPORTED | RA_ELSEWHERE
TOO_FAR = -(1 << 31)
"""Stands for an offset that does not fit."""

RDI, RBP, RSP, R10, RETURN = 5, 6, 7, 10, 16
KIND_OF_REGISTER = bytes(
    {RBP: Cfa.BP, RSP: Cfa.SP, R10: Cfa.R10}.get(number, Cfa.UNSUPPORTED) for number in range(256)
)
"""By register number, capped at 255."""
WITH_OFFSET = bytes(
    kind if kind in (Cfa.SP, Cfa.BP, Cfa.R10) else Cfa.UNSUPPORTED for kind in range(256)
)
"""What a kind becomes when an instruction changes the offset: an expression has none."""

_MAX_DEPTH = 64
_MAX_LOCATION = 1 << 40


def program_start(cie: Cie) -> int:
    """The state in which the programs of a CIE begin. Raises Unsound."""
    state = START | (SIGNAL if cie.signal else 0)
    if cie.return_register != RETURN:
        return state | FOREIGN
    machine = Machine(cie.program, cie, state)
    machine.run()
    return machine.state


class Machine(Reader):
    """A call frame program in the middle of its run.

    Args:
        program: Without the nops at its end.
        cie: Its CIE.
        initial: State to begin in, and to restore registers from.
        address: Virtual address of the program's first byte, and
        begin: of the code, both for DW_CFA_set_loc.

    Attributes:
        state: At present.
        location: At present, in bytes from the begin of the code.
        rows: Location and state of each row that is complete.
        stack: The states remembered.
    """

    __slots__ = ("_address", "_begin", "_cie", "_initial", "location", "rows", "stack", "state")

    def __init__(
        self, program: bytes, cie: Cie, initial: int, address: int = 0, begin: int = -1
    ) -> None:
        super().__init__(program)
        self._cie, self._initial, self._address, self._begin = cie, initial, address, begin
        self.state, self.location = initial, 0
        self.rows: list[tuple[int, int]] = []
        self.stack: list[int] = []

    def run(self) -> list[tuple[int, int]]:
        """Runs to the end.

        Returns:
            All rows; locations rise.

        Raises:
            Unsound: The program is not what a compiler writes.
            NeedsAddress: It has a DW_CFA_set_loc, and no ``begin`` was given.
        """
        data, end = self.data, len(self.data)
        while self.position < end:
            operation = data[self.position]
            self.position += 1
            if operation < 0x40:
                self._extended(operation)
            elif operation < 0x80:
                self._advance((operation & 0x3F) * self._cie.code_align)
            elif operation < 0xC0:
                self._saved(operation & 0x3F, self.uleb() * self._cie.data_align)
            else:
                self._restore(operation & 0x3F)
        self.rows.append((self.location, self.state))
        return self.rows

    def _extended(self, operation: int) -> None:
        align = self._cie.data_align
        if operation in (0x00, 0x2D):  # nop, GNU_window_save
            pass
        elif operation == 0x01:  # set_loc
            self._set_location()
        elif operation in (0x02, 0x03, 0x04):  # advance_loc1, 2, 4
            self._advance(self.unsigned(1 << (operation - 2)) * self._cie.code_align)
        elif operation == 0x05:  # offset_extended
            self._saved(self.uleb(), self.uleb() * align)
        elif operation == 0x06:  # restore_extended
            self._restore(self.uleb())
        elif operation in (0x07, 0x08):  # undefined, same_value
            self._plain(self.uleb(), undefined=operation == 0x07)
        elif operation in (0x09, 0x14, 0x15):  # register, val_offset, val_offset_sf
            register, place = self.uleb(), self.uleb()
            self._elsewhere(register)
            if (operation, register, place) == (0x09, RETURN, RDI):
                self.state = self.state & ~RA | RA_IN_RDI
        elif operation == 0x0A:  # remember_state
            if len(self.stack) == _MAX_DEPTH:
                raise Unsound("too many states remembered")
            self.stack.append(self.state)
        elif operation == 0x0B:  # restore_state
            if not self.stack:
                raise Unsound("no state remembered")
            self.state = self.stack.pop()
        elif operation in (0x0C, 0x0D, 0x0E, 0x0F, 0x12, 0x13):
            self._define_cfa(operation)
        elif operation == 0x10:  # expression
            register = self.uleb()
            offset = expressions.saved_at_bp(self.block())
            if register == RBP and offset is not None:
                self.state = self.state & ~BP | Bp.AT_BP << 8 | (offset & 0xFFFF) << 16
            else:
                self._elsewhere(register)
        elif operation == 0x11:  # offset_extended_sf
            self._saved(self.uleb(), self.sleb() * align)
        elif operation == 0x16:  # val_expression
            register = self.uleb()
            self.block()
            self._elsewhere(register)
        elif operation == 0x2E:  # GNU_args_size
            self.uleb()
        elif operation == 0x2F:  # GNU_negative_offset_extended
            self._saved(self.uleb(), -self.uleb() * align)
        else:
            raise Unsound(f"instruction {operation:#x}")

    def _define_cfa(self, operation: int) -> None:
        if operation == 0x0F:  # def_cfa_expression
            what, offset = expressions.cfa(self.block())
            self.state = self.state & NOT_CFA | what | offset << 32
            return
        state = self.state
        kind = WITH_OFFSET[state & KIND]
        if operation in (0x0C, 0x0D, 0x12):  # def_cfa, def_cfa_register, def_cfa_sf
            kind = KIND_OF_REGISTER[min(self.uleb(), 255)]
        offset = state >> 32
        if operation in (0x0C, 0x0E):  # def_cfa, def_cfa_offset
            offset = self.uleb()
        elif operation in (0x12, 0x13):  # def_cfa_sf, def_cfa_offset_sf
            offset = self.sleb() * self._cie.data_align
        if not -(1 << 31) <= offset < 1 << 31:
            offset = TOO_FAR
        self.state = state & NOT_CFA | kind | offset << 32

    def _saved(self, register: int, offset: int) -> None:
        """The register is in memory, at CFA + offset."""
        if register == RBP and -(1 << 15) <= offset < 1 << 15:
            self.state = self.state & ~BP | Bp.AT_CFA << 8 | (offset & 0xFFFF) << 16
        elif register == RETURN and offset == -8:
            self.state = self.state & ~RA | RA_BELOW_CFA
        else:
            self._elsewhere(register)

    def _elsewhere(self, register: int) -> None:
        if register == RBP:
            self.state = self.state & ~BP | Bp.LOST << 8
        elif register == RETURN:
            self.state = self.state & ~RA | RA_ELSEWHERE

    def _plain(self, register: int, undefined: bool) -> None:
        if register == RBP:
            self.state = self.state & ~BP | (Bp.LOST if undefined else Bp.SAME) << 8
        elif register == RETURN:
            self.state = self.state & ~RA | (RA_UNDEFINED if undefined else RA_ELSEWHERE)

    def _restore(self, register: int) -> None:
        mask = BP if register == RBP else RA if register == RETURN else 0
        self.state = self.state & ~mask | self._initial & mask

    def _advance(self, distance: int) -> None:
        if distance:
            self.rows.append((self.location, self.state))
            self.location = min(self.location + distance, _MAX_LOCATION)

    def _set_location(self) -> None:
        if self._begin < 0:
            raise NeedsAddress
        target = self.pointer(self._cie.encoding, self._address + self.position) - self._begin
        if target < self.location:
            raise Unsound("locations run backwards")
        self._advance(target - self.location)


class NeedsAddress(Exception):  # noqa: N818 - a condition, not a failure
    """A program says where its rows begin by address: it differs for each FDE."""
