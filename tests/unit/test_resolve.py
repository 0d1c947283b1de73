"""From addresses to frames: what has a name, and why the rest has none."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from bpflame.profile import FrameKind, Metadata, Profile, Reason, Task
from bpflame.profilers.procfs import executable_mappings
from bpflame.raw import (
    AbsoluteAddress,
    AddressSpace,
    FileKey,
    FileOffset,
    Mapping,
    RawProfile,
    RawSample,
    StackEnd,
)
from bpflame.symbolize.resolve import CUT, LOST, symbolize

TASK = Task(7, 0, "app")
KALLSYMS = b"""\
ffffffff81000000 T _stext
ffffffff81000000 T startup
ffffffff81000100 T do_work
ffffffff81000200 t bpf_overflow_handler
ffffffff81001000 T _etext
ffffffffc0001000 t bpf_prog_0123456789abcdef_bpflame_cpu\t[bpf]
ffffffffc0002000 t bpf_prog_fedcba9876543210_other\t[bpf]
"""


def profile(*samples: RawSample, files: dict[FileKey, int] | None = None) -> Profile:
    return symbolize(raw(*samples, files=files))


def raw(*samples: RawSample, files: dict[FileKey, int] | None = None) -> RawProfile:
    return RawProfile("cpu", "samples", samples, files or {}, KALLSYMS, b"", Metadata())


def sample(
    user: tuple[int, ...] = (),
    kernel: tuple[int, ...] = (),
    mappings: list[Mapping] | None = None,
    lost: bool = False,
    value: int = 1,
    end: StackEnd = StackEnd.UNTOLD,
) -> RawSample:
    space = None if mappings is None else AddressSpace(7, 0, mappings)
    as_addresses = [tuple(map(AbsoluteAddress, stack)) for stack in (user, kernel)]
    return RawSample(TASK, space, as_addresses[0], as_addresses[1], lost, value, end=end)


def mapping(path: str, start: int = 0x1000, build_id: bytes = b"", inode: int = 0) -> Mapping:
    end = AbsoluteAddress(start + 0x1000)
    return Mapping(AbsoluteAddress(start), end, FileOffset(0), FileKey(path, build_id, inode))


def names(result: Profile) -> list[str]:
    return [frame.name for frame in result.samples[0].stack]


def own_function() -> tuple[int, list[Mapping]]:
    """The address of a libc function in this process, and the mappings it is found by."""
    mappings = executable_mappings(os.getpid())
    assert mappings is not None
    address = ctypes.cast(ctypes.CDLL(None).qsort, ctypes.c_void_p).value
    assert address is not None
    return address, mappings


def test_a_function_by_its_first_and_a_caller_by_its_last_byte() -> None:
    address, mappings = own_function()
    assert names(profile(sample((address,), mappings=mappings))) == ["qsort"]
    # As a return address, the first byte belongs to whoever made the call just before it.
    stack = names(profile(sample((address, address), mappings=mappings)))
    assert stack[-1] == "qsort"
    assert stack[0] != "qsort"


def test_user_frames_stand_below_kernel_frames_root_first() -> None:
    address, mappings = own_function()
    user, kernel = (address, address + 4), (0xFFFFFFFF81000120, 0xFFFFFFFF81000010)
    found = profile(sample(user, kernel, mappings)).samples[0].stack
    assert [(frame.name, frame.kind) for frame in found] == [
        ("qsort", FrameKind.USER),
        ("qsort", FrameKind.USER),
        ("startup", FrameKind.KERNEL),
        ("do_work", FrameKind.KERNEL),
    ]


def test_the_vdso_has_names() -> None:
    mappings = executable_mappings(os.getpid()) or []
    vdso = next(m for m in mappings if m.file.path == "[vdso]")
    found = profile(
        *(sample((address,), mappings=mappings) for address in range(vdso.start, vdso.end, 16))
    )
    assert "__vdso_clock_gettime" in {s.stack[0].name for s in found.samples}


@pytest.mark.parametrize(
    ("mappings", "address", "name", "reason"),
    [
        (None, 0x1234, "[unknown]", Reason.NO_MAPS),
        ([], 0x1234, "[unmapped]", Reason.UNMAPPED),
        ([mapping("")], 0x1234, "[anon]", Reason.ANONYMOUS),
        ([mapping("//anon")], 0x1234, "[anon]", Reason.ANONYMOUS),
        ([mapping("[stack]")], 0x1234, "[stack]", Reason.ANONYMOUS),
        ([mapping("/no/such/lib.so")], 0x1234, "[lib.so+0x234]", Reason.FILE_GONE),
        ([mapping("/etc/passwd (deleted)")], 0x1234, "[passwd+0x234]", Reason.FILE_GONE),
        ([mapping("/etc/passwd", inode=1)], 0x1234, "[passwd+0x234]", Reason.FILE_GONE),
        ([mapping("/etc/passwd", build_id=b"x")], 0x1234, "[passwd+0x234]", Reason.BAD_FILE),
        ([mapping("/usr/bin/env", build_id=b"x")], 0x1234, "[env+0x234]", Reason.FILE_GONE),
        ([], 0xFFFFFFFFFF600400, "[vsyscall]", None),
        ([], 0xFFFFFFFFFFFFFFFF, "[unmapped]", Reason.UNMAPPED),
    ],
)
def test_what_has_no_name_says_why(
    mappings: list[Mapping] | None, address: int, name: str, reason: Reason | None
) -> None:
    frame = profile(sample((address,), mappings=mappings)).samples[0].stack[0]
    assert (frame.name, frame.unnamed) == (name, reason)


def test_a_file_that_is_gone_is_read_by_its_descriptor(tmp_path: Path) -> None:
    program = tmp_path / "program"
    (tmp_path / "a.c").write_text("int target(int x) { return x * 3; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", program, tmp_path / "a.c"], check=True)
    symbols = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
    address = next(int(row.split()[0], 16) for row in symbols.splitlines() if "target" in row)
    fd = os.open(program, os.O_RDONLY)
    program.unlink()
    here = mapping(f"{program} (deleted)", start=0)
    here = Mapping(here.start, AbsoluteAddress(0x4000), here.offset, here.file)
    try:
        found = profile(sample((address,), mappings=[here]), files={here.file: fd})
    finally:
        os.close(fd)
    assert names(found) == ["target"]
    assert found.samples[0].stack[0].module == "program"


def test_one_bad_file_costs_its_own_names_only(tmp_path: Path) -> None:
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"\x7fELF" + os.urandom(4096))
    address, mappings = own_function()
    both = [*mappings, mapping(str(bad), start=0x10, inode=bad.stat().st_ino)]
    both.sort(key=lambda m: m.start)
    found = profile(sample((address, 0x20), mappings=both))
    assert names(found) == ["[bad.so+0xf]", "qsort"]


def test_a_stack_ends_where_the_walk_went_astray() -> None:
    address, mappings = own_function()
    astray = sample((address, 0x33, address, 0x44, address), mappings=mappings)
    assert names(profile(astray)) == ["[unmapped]", "qsort"]


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (StackEnd.NO_MAPPING, "[truncated: no mapping]"),
        (StackEnd.NO_TABLE, "[truncated: no table]"),
        (StackEnd.UNREADABLE, "[truncated: unreadable stack]"),
        (StackEnd.NOT_GROWING, "[truncated: CFA not growing]"),
        (StackEnd.TOO_DEEP, "[truncated: too deep]"),
        (StackEnd.UNSUPPORTED, "[truncated: unsupported rule]"),
        (StackEnd.NOT_READY, "[truncated: tables not ready]"),
        (StackEnd.NARROW, "[truncated: 32-bit program]"),
    ],
)
def test_a_stack_that_is_not_whole_says_so_at_its_root(end: StackEnd, name: str) -> None:
    address, mappings = own_function()
    found = profile(sample((address,), (0xFFFFFFFF81000120,), mappings, end=end)).samples[0].stack
    assert [frame.name for frame in found] == [name, "qsort", "do_work"]
    assert (found[0].kind, found[0].unnamed) == (FrameKind.USER, Reason.TRUNCATED)


def test_also_where_nothing_of_it_could_be_taken() -> None:
    found = profile(sample((), (0xFFFFFFFF81000120,), end=StackEnd.NOT_READY))
    assert names(found) == ["[truncated: tables not ready]", "do_work"]


@pytest.mark.parametrize("end", [StackEnd.UNTOLD, StackEnd.COMPLETE])
def test_what_is_whole_or_cannot_tell_is_left_as_it_is(end: StackEnd) -> None:
    address, mappings = own_function()
    assert names(profile(sample((address,), mappings=mappings, end=end))) == ["qsort"]
    assert names(profile(sample((), (0xFFFFFFFF81000120,), end=end))) == ["do_work"]


def test_of_a_walk_by_tables_nothing_is_cut() -> None:
    """Code in no mapping that such a walk went through was unmapped since."""
    address, mappings = own_function()
    stack = (address, 0x33, address + 4)
    whole = sample(stack, mappings=mappings, end=StackEnd.COMPLETE)
    assert names(profile(whole)) == ["qsort", "[unmapped]", "qsort"]
    cut = sample(stack, mappings=mappings, end=StackEnd.NO_TABLE)
    assert names(profile(cut)) == ["[truncated: no table]", "qsort", "[unmapped]", "qsort"]
    narrow = sample(stack, mappings=mappings, end=StackEnd.NARROW)
    assert names(profile(narrow)) == ["[truncated: 32-bit program]", "[unmapped]", "qsort"]


def test_an_interrupted_instruction_is_found_where_it_is() -> None:
    """It comes as its address + 1, like a call: the first of a function belongs to that."""
    address, mappings = own_function()
    handled = sample((address, address + 1), mappings=mappings, end=StackEnd.COMPLETE)
    assert names(profile(handled)) == ["qsort", "qsort"]


def test_a_frame_for_what_is_missing_is_not_one_without_a_name() -> None:
    address, mappings = own_function()
    found = profile(sample((address,), mappings=mappings, value=5, end=StackEnd.TOO_DEEP))
    assert found.samples[0].stack[0] == CUT[StackEnd.TOO_DEEP]
    assert dict(found.meta.counters) == {"frames": 10}


def test_our_own_glue_is_cut_and_that_of_others_is_not() -> None:
    work = 0xFFFFFFFF81000110
    ours = (0xFFFFFFFFC0001010, 0xFFFFFFFF81000210, work)
    assert names(profile(sample(kernel=ours))) == ["do_work"]
    others = (0xFFFFFFFFC0002010, work)
    assert names(profile(sample(kernel=others))) == [
        "do_work",
        "bpf_prog_fedcba9876543210_other",
    ]


def test_kernel_addresses_outside_any_function() -> None:
    frame = profile(sample(kernel=(0xFFFFFFFF90000000,))).samples[0].stack[0]
    assert frame.name == "[kernel+0xffffffff90000000]"
    assert frame.unnamed is Reason.NO_SYMBOL


def test_a_lost_stack_is_a_frame_and_every_unnamed_frame_is_counted() -> None:
    address, mappings = own_function()
    found = profile(
        sample((address,), mappings=mappings, value=5),
        sample((0x10, 0x20), mappings=[], value=2),
        sample(lost=True, value=3),
    )
    assert found.samples[2].stack == (LOST,)
    assert found.total == 10
    assert dict(found.meta.counters) == {
        "frames": 10,
        "unnamed_frames": 5,
        f"unnamed: {Reason.UNMAPPED.value}": 2,
        f"unnamed: {Reason.MISSING_STACK.value}": 3,
    }


def test_in_a_hurry_user_addresses_stay_as_they_are() -> None:
    address, mappings = own_function()
    one = sample((address,), (0xFFFFFFFF81000110,), mappings)
    stack = symbolize(raw(one), hurried=lambda: True).samples[0].stack
    # The kernel's are named all the same: interrupts are told by their names.
    assert [frame.unnamed for frame in stack] == [Reason.NOT_RESOLVED, None]
    assert stack[0].name.startswith("[libc.so.6+0x")
