"""Where functions of the kernel lie, by the text of /proc/kallsyms."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.bpf import kallsyms
from bpflame.bpf.kallsyms import KernelEntries, kernel_entries, macro, ranges

TEXT = b"""\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 t asm_sysvec_reboot
ffffffff81000120 t asm_sysvec_thermal
ffffffff81000120 T its_other_name
ffffffff81000140 d some_table
ffffffff81000200 W asm_common_interrupt
ffffffff81000280 T asm_exc_page_fault
ffffffff810002c0 T asm_int80_emulation
ffffffff81000300 T bpf_trace_run1
ffffffff81000400 T bpf_trace_run12
ffffffff81000500 T schedule
ffffffffc0000100 t asm_sysvec_of_a_module\t[a_module]
ffffffffc0000200 t asm_common_interrupt.cold
"""


def test_a_function_reaches_to_the_next_symbol_of_another_address() -> None:
    assert ranges(TEXT, rb"schedule") == ((0xFFFFFFFF81000500, 0xFFFFFFFFC0000100),)
    assert ranges(TEXT, rb"asm_sysvec_thermal") == ((0xFFFFFFFF81000120, 0xFFFFFFFF81000140),)
    assert ranges(TEXT, rb"asm_exc_\w+") == ((0xFFFFFFFF81000280, 0xFFFFFFFF810002C0),)


def test_neighbours_are_one_range_and_others_are_not() -> None:
    assert ranges(TEXT, rb"asm_sysvec_\w+|asm_common_interrupt") == (
        (0xFFFFFFFF81000100, 0xFFFFFFFF81000140),
        (0xFFFFFFFF81000200, 0xFFFFFFFF81000280),
    )
    assert ranges(TEXT, rb"bpf_trace_run\d+") == ((0xFFFFFFFF81000300, 0xFFFFFFFF81000500),)


@pytest.mark.parametrize("pattern", [rb"sched", rb"chedule", rb"some_table", rb"no_such"])
def test_only_whole_names_of_functions_count(pattern: bytes) -> None:
    assert ranges(TEXT, pattern) == ()


def test_a_kernel_that_hides_its_addresses_has_no_ranges() -> None:
    hidden = re.sub(rb"(?m)^[0-9a-f]{16}", b"0" * 16, TEXT)
    assert ranges(hidden, rb"\w+") == ()
    assert ranges(b"", rb"\w+") == ()


def test_the_last_symbol_of_all_is_one_byte_long() -> None:
    assert ranges(b"ffffffff81000000 T only\n", rb"only") == (
        (0xFFFFFFFF81000000, 0xFFFFFFFF81000001),
    )


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from("ab")), max_size=20))
def test_ranges_hold_the_wanted_functions_and_no_others(symbols: list[tuple[int, str]]) -> None:
    """Byte by byte: each belongs to the last symbol before it."""
    symbols = sorted(dict(symbols).items())
    end = 50
    lines = [f"{address:016x} T {name}\n" for address, name in [*symbols, (end, "end")]]
    found = ranges("".join(lines).encode(), rb"a")
    for byte in range(end):
        owner = next((name for address, name in reversed(symbols) if address <= byte), "")
        assert any(low <= byte < high for low, high in found) == (owner == "a")
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def test_ranges_become_what_the_programs_ask_for() -> None:
    assert macro(()) == ""
    assert macro([(0xFFFFFFFF81000100, 0xFFFFFFFF81000140), (1, 2)]) == (
        "RANGE(0xffffffff81000100ULL,0xffffffff81000140ULL)RANGE(0x1ULL,0x2ULL)"
    )


def test_what_the_recorder_wants_to_know_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kallsyms.platform, "machine", lambda: "x86_64")
    entries = KernelEntries(TEXT)
    assert entries.interrupts == (
        (0xFFFFFFFF81000100, 0xFFFFFFFF81000140),
        (0xFFFFFFFF81000200, 0xFFFFFFFF81000280),
    )
    assert entries.exceptions == ((0xFFFFFFFF81000280, 0xFFFFFFFF81000300),)
    assert entries.callers == ((0xFFFFFFFF81000300, 0xFFFFFFFF81000500),)


def test_an_unknown_machine_has_no_entries_for_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kallsyms.platform, "machine", lambda: "riscv64")
    assert KernelEntries(TEXT).interrupts == ()


def test_without_kallsyms_there_is_nothing_to_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kallsyms, "KALLSYMS", tmp_path / "kallsyms")
    entries = kernel_entries.__wrapped__()
    assert (entries.interrupts, entries.exceptions, entries.callers) == ((), (), ())


@pytest.mark.bpf
def test_this_kernel_has_all_of_them() -> None:
    entries = kernel_entries()
    assert entries.callers
    assert entries.interrupts
    assert all(0 < low < high for low, high in (*entries.interrupts, *entries.callers))
