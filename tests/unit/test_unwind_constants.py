"""What the BPF programs and Python both know of each other: values and layouts, as gcc has them."""

from __future__ import annotations

import functools
import re
import struct

import numpy as np
import pytest

from bpflame.bpf import counters
from bpflame.bpf.load import PROGRAMS, source
from bpflame.bpf.unwind import arena, copies, table, walk
from bpflame.bpf.unwind.rules import Bp, Cfa
from bpflame.profilers import counting, unwind_spaces, unwind_tables
from bpflame.raw import StackEnd
from tests.unit.walk_harness import values


def c(*expressions: str) -> list[int]:
    """Their values where ``unwind.h`` is included."""
    return values(["unwind.h"], expressions)


@functools.cache
def text() -> str:
    return source(PROGRAMS / "unwind.h")


def enumerators(name: str) -> list[str]:
    """The names of an enum, in order, without comments."""
    found = re.search(rf"enum {name} \{{(.*?)\}}", text(), re.DOTALL)
    assert found is not None
    plain = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    return [each.strip() for each in plain.split(",") if each.strip()]


@pytest.mark.parametrize(
    ("name", "prefix", "members"),
    [
        ("cfa_kind", "CFA_", {kind.name: kind.value for kind in Cfa}),
        ("bp_kind", "BP_", {kind.name: kind.value for kind in Bp}),
        ("stack_end", "END_", {end.name: end.value for end in StackEnd}),
        (
            "why",
            "WHY_",
            {
                "NO_TABLE": walk.WHY_NO_TABLE,
                "FRAMES": walk.WHY_FRAMES,
                "LATER": walk.WHY_LATER,
            },
        ),
    ],
)
def test_an_enum_is_the_same_on_both_sides(name: str, prefix: str, members: dict[str, int]) -> None:
    names = enumerators(name)
    assert names == [prefix + member for member in members]
    assert c(*names) == list(members.values())


def test_counters_are_in_the_same_order() -> None:
    names = enumerators("counter")
    assert names.pop() == "COUNTER_COUNT"
    python = [getattr(counters, name.removeprefix("COUNTER_")) for name in names]
    assert tuple(python) == counters.COUNTERS
    assert c(*names, "COUNTER_COUNT") == list(range(len(counters.COUNTERS) + 1))


def members(name: str) -> list[str]:
    """The names of a struct's members, in order."""
    found = re.search(rf"^struct {name} \{{\n(.*?)^\}};", text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    plain = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    return re.findall(r"(\w+)(?:\[\w+\])?;", plain)


@pytest.mark.parametrize(("name", "dtype"), [("mapping", arena.MAPPING), ("page", table.PAGE)])
def test_a_record_is_the_same_on_both_sides(name: str, dtype: np.dtype[np.void]) -> None:
    fields = dtype.fields
    assert fields is not None
    assert members(name) == list(fields)
    assert c(f"sizeof(struct {name})") == [dtype.itemsize]
    for field, (kind, offset, *_) in fields.items():
        member = f"((struct {name} *)0)->{field}"
        assert c(f"offsetof(struct {name}, {field})", f"sizeof({member})") == [
            offset,
            kind.itemsize,
        ]


def offsets(record: struct.Struct) -> list[int]:
    """Where the fields of a struct begin, and its size."""
    order, codes = record.format[0], re.findall(r"(\d*)(\w)", record.format[1:])
    plain = [code for count, code in codes for _ in range(int(count or 1))]
    return [struct.calcsize(order + "".join(plain[:n])) for n in range(len(plain) + 1)]


def layout(name: str, *fields: str) -> list[int]:
    """The same of a struct in C."""
    return c(*(f"offsetof(struct {name}, {field})" for field in fields), f"sizeof(struct {name})")


HEAD = ("head.id", "head.kind", "head.size")
LEAF = tuple(f"leaf.{name}" for name in ("ip", "sp", "bp", "r10", "di", "exact", "depth"))


@pytest.mark.parametrize(
    ("record", "name", "fields"),
    [
        (copies._HEAD, "copy_head", ("id", "kind", "size")),
        (copies._END, "copy_end", (*HEAD, *LEAF, "born", "pid", "why")),
        (unwind_spaces._SPACE, "address_space", ("born", "block", "count", "patience", "pid")),
    ],
)
def test_a_struct_is_the_same_on_both_sides(
    record: struct.Struct, name: str, fields: tuple[str, ...]
) -> None:
    assert layout(name, *fields) == offsets(record)
    if not any("." in field for field in fields):
        assert tuple(members(name)) == fields


def test_the_head_of_what_is_copied() -> None:
    fields = (*HEAD, "at", "bytes")
    assert layout("copy_page", *fields)[:-1] == offsets(copies._PAGE)
    assert c("sizeof(((struct copy_page *)0)->bytes)", "PAGE", "COPY_PAGE") == [
        4096,
        4096,
        copies._COPY_PAGE,
    ]
    assert tuple(members("place")) == (*copies.Place._fields, "depth")


def test_the_head_of_a_stack() -> None:
    assert layout("stack", "depth", "end", "guessed", "ip")[:-1] == offsets(counting._STACK)
    assert c("STACK_NONE", "STACK_LOST", "MAX_DEPTH", "sizeof(struct stack)") == [
        counting.STACK_NONE,
        counting.STACK_LOST,
        counting.MAX_DEPTH,
        counting._STACK.size + 8 * counting.MAX_DEPTH,
    ]


def test_limits_and_places() -> None:
    expected = {
        "CHUNK_WORDS": arena.CHUNK_WORDS,
        "sizeof(struct chunk)": 4 * arena.CHUNK_WORDS,
        "MAPPING_WORDS": arena.MAPPING_WORDS,
        "BPF_F_MMAPABLE": arena._MMAPABLE,
        "RULE_ENTRIES": table.MAX_RULES,
        "SIGNAL_BP": walk._SIGNAL_BP,
        "SIGNAL_SP": walk._SIGNAL_SP,
        "SIGNAL_IP": walk._SIGNAL_IP,
        "VSYSCALL - (1ULL << 63)": walk._VSYSCALL - (1 << 63),
        "MANY_ARGUMENTS": walk._MANY_ARGUMENTS,
        "RULE_FRAME": Cfa.FRAME,
        "RULE_CALLED": walk._CALLED,
    }
    assert dict(zip(expected, c(*expected), strict=True)) == expected
    assert unwind_tables._RULES == table.MAX_RULES


def test_binary_searches_have_steps_enough() -> None:
    """Each step leaves the larger half of n, and one is to be left."""
    row_steps, mapping_steps = c("ROW_STEPS", "MAPPING_STEPS")
    for most, steps in (
        (table.MAX_ROWS_OF_PAGE, row_steps),
        (arena.MAX_MAPPINGS, mapping_steps),
    ):
        assert (most - 1).bit_length() <= steps
    assert arena.MAX_MAPPINGS * arena.MAPPING_WORDS <= arena.CHUNK_WORDS


def test_a_signals_frame_is_the_kernels() -> None:
    """From the handler's return address on: struct ucontext, in it struct sigcontext_64, as in
    arch/x86/include/uapi/asm; glibc calls it ucontext_t."""
    registers = ("REG_RBP", "REG_RSP", "REG_RIP")
    expressions = [f"offsetof(ucontext_t, uc_mcontext.gregs[{name}])" for name in registers]
    found = values(["ucontext.h"], expressions)
    assert found == [walk._SIGNAL_BP, walk._SIGNAL_SP, walk._SIGNAL_IP]


def test_registers_are_where_ptrace_has_them() -> None:
    """struct pt_regs is the same as struct user_regs_struct up to rsp."""
    pairs = {"bp": "rbp", "r10": "r10", "di": "rdi", "orig_ax": "orig_rax", "ip": "rip"}
    pairs |= {"cs": "cs", "sp": "rsp"}
    user = values(
        ["sys/user.h"], [f"offsetof(struct user_regs_struct, {n})" for n in pairs.values()]
    )
    own = c(*(f"offsetof(struct entry_regs, {name})" for name in pairs), "ENTRY_REGS_OFFSET")
    first = own.pop()
    assert [first + offset for offset in own] == user
    numbers = ("REGS_BP", "REGS_R10", "REGS_DI", "REGS_IP", "REGS_CS", "REGS_SP")
    by_number = dict(zip(pairs, user, strict=True))
    del by_number["orig_ax"]
    assert [8 * number for number in c(*numbers)] == list(by_number.values())
