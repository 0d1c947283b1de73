from __future__ import annotations

import bisect
import os
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.profile import Frame, FrameKind
from bpflame.symbolize.kernel import KernelSymbols, strip_own_glue

CORE = 0xFFFFFFFF81000000
MODULE = 0xFFFFFFFFC0100000
BPF = 0xFFFFFFFFC0400000

KALLSYMS = f"""\
0000000000000000 A fixed_percpu_data
{CORE:x} T _stext
{CORE:x} T _text
{CORE:x} T startup
{CORE + 0x100:x} t __pfx_read
{CORE + 0x110:x} t read.cold
{CORE + 0x200:x} W weak
{CORE + 0x200:x} t local
{CORE + 0x200:x} T __global
{CORE + 0x300:x} D data
{CORE + 0x1000:x} T _etext
{CORE + 0x2000:x} D sdata
{CORE + 0x3000:x} T _sinittext
{CORE + 0x3010:x} t start_kernel
{CORE + 0x4000:x} T _einittext
{CORE + 0x4800:x} t exit_text
{MODULE:x} t probe\t[nvme]
{MODULE + 0x500:x} T nvme_read\t[nvme]
{MODULE + 0x9010:x} t nvme_init\t[nvme]
{MODULE + 0x20000:x} t xfs_read\t[xfs]
{BPF + 0x800:x} t bpf_prog_0123456789abcdef_second\t[bpf]
{BPF:x} t bpf_prog_fedcba9876543210_first\t[bpf]
{BPF + 0x600000:x} t bpf_trampoline_77\t[bpf]
{BPF + 0x400000:x} t ftrace_trampoline\t[__builtin__ftrace]
"""

MODULES = f"""\
nvme 8192 2 nvme_core,loop, Live 0x{MODULE:x}
gone 4096 0 - Unloading 0x{MODULE + 0x30000:x} (O)
cut off
"""


def resolve(symbols: KernelSymbols, *addresses: int) -> list[tuple[str, str] | None]:
    return symbols.resolve(np.array(addresses, np.uint64))


@pytest.fixture(scope="module")
def symbols() -> KernelSymbols:
    return KernelSymbols.from_text(KALLSYMS.encode(), MODULES.encode())


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        (0, None),
        (CORE - 1, None),
        (CORE, ("startup", "")),
        (CORE + 0xFF, ("startup", "")),
        (CORE + 0x1FF, ("read.cold", "")),
        (CORE + 0x200, ("__global", "")),
        (CORE + 0x300, ("__global", "")),
        (CORE + 0xFFF, ("__global", "")),
        (CORE + 0x1000, None),
        (CORE + 0x2000, None),
        (CORE + 0x300F, ("_sinittext", "")),
        (CORE + 0x3FFF, ("start_kernel", "")),
        (CORE + 0x4000, None),
        (CORE + 0x4800, None),
        (CORE + (1 << 30), None),
        (MODULE - 1, None),
        (MODULE, ("probe", "nvme")),
        (MODULE + 0x1FFF, ("nvme_read", "nvme")),
        (MODULE + 0x2000, None),
        (MODULE + 0x900F, None),
        (MODULE + 0x9FFF, ("nvme_init", "nvme")),
        (MODULE + 0xA000, None),
        (MODULE + 0x20FFF, ("xfs_read", "xfs")),
        (MODULE + 0x21000, None),
        (BPF, ("bpf_prog_fedcba9876543210_first", "bpf")),
        (BPF + 0x7FF, ("bpf_prog_fedcba9876543210_first", "bpf")),
        (BPF + 0xFFF, ("bpf_prog_0123456789abcdef_second", "bpf")),
        (BPF + 0xFFFF, ("bpf_prog_0123456789abcdef_second", "bpf")),
        (BPF + 0x10000, None),
        (BPF + 0x400FFF, ("ftrace_trampoline", "__builtin__ftrace")),
        (BPF + 0x401000, None),
        (BPF + 0x600000, ("bpf_trampoline_77", "bpf")),
        (2**64 - 1, None),
    ],
)
def test_each_region_is_bounded(
    symbols: KernelSymbols, address: int, wanted: tuple[str, str] | None
) -> None:
    assert resolve(symbols, address) == [wanted]


def test_modules_without_a_list_end_with_their_page() -> None:
    symbols = KernelSymbols.from_text(KALLSYMS.encode())
    found = resolve(symbols, MODULE, MODULE + 0x500, MODULE + 0x9FFF, MODULE + 0xA000)
    assert found == [("probe", "nvme"), ("nvme_read", "nvme"), ("nvme_init", "nvme"), None]


def test_last_page_of_memory_does_not_wrap() -> None:
    text = f"{2**64 - 0x800:x} t last\t[bpf]\n{2**64 - 0x2000:x} t before\t[bpf]"
    found = resolve(KernelSymbols.from_text(text.encode()), 0, 2**64 - 0x2000, 2**64 - 0x801)
    assert found == [None, ("before", "bpf"), ("before", "bpf")]


def test_hidden_addresses_are_told_apart_from_no_symbols() -> None:
    hidden = KernelSymbols.from_text(b"0000000000000000 T _stext\n0000000000000000 t f\t[m]\n")
    assert hidden.restricted
    assert resolve(hidden, 0, CORE) == [None, None]
    for text in (b"", b"\n", b"garbage\n" * 9, KALLSYMS.encode()):
        assert not KernelSymbols.from_text(text, b"x 0 0 - Live 0x0").restricted


def test_kernel_of_32_bits_and_last_line_without_end() -> None:
    text = b"c0008000 T _stext\nc0008100 t run\nc0009000 T _etext\nbf000000 t f\t[m]"
    found = resolve(KernelSymbols.from_text(text), 0xC0008FFF, 0xC0009000, 0xBF000FFF)
    assert found == [("run", ""), None, ("f", "m")]


def test_malformed_lines_are_skipped() -> None:
    text = f"{CORE:x} T good\nxyz\n{'g' * 16} T bad\n{CORE + 16:x}\n{CORE + 32:x}-T-bad\n\n"
    symbols = KernelSymbols.from_text(text.encode())
    assert resolve(symbols, CORE, CORE + 16, CORE + 32) == [("good", "")] * 3


@given(st.binary() | st.text(alphabet="0f \t\n[]tT_").map(str.encode), st.binary())
def test_any_text_gives_a_table(kallsyms: bytes, modules: bytes) -> None:
    symbols = KernelSymbols.from_text(kallsyms, modules)
    assert len(resolve(symbols, 0, CORE)) == 2


def test_order_of_lines_does_not_matter(symbols: KernelSymbols) -> None:
    lines = KALLSYMS.splitlines(keepends=True)
    addresses = np.array([CORE + 8 * i for i in range(0x900)] + [MODULE, BPF], np.uint64)
    wanted = symbols.resolve(addresses)
    rng = random.Random(7)  # noqa: S311
    for _ in range(20):
        rng.shuffle(lines)
        shuffled = KernelSymbols.from_text("".join(lines).encode(), MODULES.encode())
        assert shuffled.resolve(addresses) == wanted


def frames(names: str) -> list[Frame]:
    return [Frame(name, FrameKind.KERNEL) for name in names.split()]


OWN = "bpf_prog_0123456789abcdef_bpflame_sched_s"
OTHER = "bpf_prog_0123456789abcdef_tcp_monitor"


@pytest.mark.parametrize(
    ("leaf_first", "left"),
    [
        ("schedule do_nanosleep", "schedule do_nanosleep"),
        ("", ""),
        (f"{OWN} bpf_trace_run4 __schedule schedule", "__schedule schedule"),
        (f"{OWN} bpf_trace_run4 __traceiter_sched_switch __schedule", "__schedule"),
        (f"bpf_get_stack {OWN} __bpf_trace_sched_switch __schedule", "__schedule"),
        (f"__bpf_get_stack bpf_get_stack_raw_tp {OWN} bpf_trace_run4 f", "f"),
        (
            f"{OWN} bpf_overflow_handler __perf_event_overflow perf_swevent_hrtimer"
            " __hrtimer_run_queues hrtimer_interrupt __sysvec_apic_timer_interrupt"
            " asm_sysvec_apic_timer_interrupt copy_page",
            "copy_page",
        ),
        (OWN, ""),
        (f"{OTHER} bpf_trace_run4 __schedule", f"{OTHER} bpf_trace_run4 __schedule"),
        ("bpf_get_stack bpf_trace_run4 f", "bpf_get_stack bpf_trace_run4 f"),
        (f"{OTHER} f {OWN} bpf_trace_run4 g", "g"),
        (f"{OWN} f bpf_trace_run4 {OTHER}", f"f bpf_trace_run4 {OTHER}"),
        ("bpf_prog_0123_bpflame_x f", "bpf_prog_0123_bpflame_x f"),
        (
            f"i i i softirq i i i asm_common_interrupt {OWN} bpf_trace_run4 f",
            f"i i i softirq i i i asm_common_interrupt {OWN} bpf_trace_run4 f",
        ),
    ],
)
def test_only_our_own_frames_are_cut(leaf_first: str, left: str) -> None:
    assert list(strip_own_glue(frames(leaf_first))) == frames(left)


# Against the running kernel


@pytest.fixture(scope="module")
def running() -> KernelSymbols:
    found = KernelSymbols.from_proc()
    if found.restricted:
        if os.environ.get("CI"):
            pytest.fail("kernel addresses are hidden")
        pytest.skip("kernel addresses are hidden: run as root")
    return found


def kallsyms() -> list[tuple[int, str, str, str]]:
    """Address, type, name and owner of each line, parsed the plain way."""
    rows = []
    with open("/proc/kallsyms") as file:
        for line in file:
            address, kind, name, *owner = line.split()
            rows.append((int(address, 16), kind, name, owner[0][1:-1] if owner else ""))
    return rows


def test_running_kernel_names_each_of_its_functions(running: KernelSymbols) -> None:
    rows = kallsyms()
    place = {name: address for address, _, name, owner in rows if not owner}
    core = [
        range(place["_stext"], place["_etext"]),
        range(place["_sinittext"], place["_einittext"]),
    ]
    aliases: dict[int, set[tuple[str, str]]] = {}
    for address, kind, name, owner in rows:
        if kind in "tTwW" and (owner or any(address in each for each in core)):
            aliases.setdefault(address, set()).add((name, owner))
    assert len(aliases) > 10_000
    bounds = sorted({*aliases, place["_etext"], place["_einittext"], 2**64})
    rng = random.Random(1)  # noqa: S311
    addresses, expected = [], []
    for start in aliases:
        following = bounds[bisect.bisect_right(bounds, start)]
        page_end = (start | 0xFFF) + 1
        addresses += [start, rng.randrange(start, min(following, page_end))]
        expected += [start, start]
    found = resolve(running, *addresses)
    wrong = [
        (hex(address), name, aliases[start])
        for address, start, name in zip(addresses, expected, found, strict=True)
        if name not in aliases[start]
    ]
    assert wrong == []


def test_running_kernel_has_no_name_outside_its_text(running: KernelSymbols) -> None:
    rows = kallsyms()
    place = {name: address for address, _, name, owner in rows if not owner}
    last = max(address for address, _, _, owner in rows if not owner)
    outside = [
        0,
        0x1000,
        0x7FFF_FFFF_F000,
        place["_stext"] - 1,
        place["_etext"],
        place["_etext"] + 0x1000,
        place["_einittext"],
        last + (1 << 30),
        2**64 - 1,
    ]
    assert resolve(running, *outside) == [None] * len(outside)


def test_running_kernel_is_read_in_time(running: KernelSymbols) -> None:
    with open("/proc/kallsyms", "rb") as file:
        text = file.read()
    began = time.process_time()
    again = KernelSymbols.from_text(text)
    assert time.process_time() - began < 1
    # BPF programs come and go between two reads.
    assert abs(len(again.table) - len(running.table)) < 1000
