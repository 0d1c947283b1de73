from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bpflame.symbolize.demangle import demangle
from bpflame.symbolize.elf import ElfImage
from bpflame.symbolize.elf_file import BadElf
from tests.unit import elf_builder as elf
from tests.unit.elf_builder import Section, Segment, Symbol

Open = Callable[..., ElfImage]

ONE = [Symbol("f", 0x1000, 0x10)]


@pytest.fixture
def make(tmp_path: Path) -> Open:
    def write_and_open(data: bytes | None = None, **parts: object) -> ElfImage:
        path = tmp_path / "image"
        path.write_bytes(elf.build(**parts) if data is None else data)  # type: ignore[arg-type]
        return ElfImage.open(str(path))

    return write_and_open


def at(image: ElfImage, *offsets: int) -> list[str | None]:
    with image:
        return image.resolve(np.array(offsets, np.uint64))


# Addresses


def test_each_segment_has_its_own_distance_to_the_file(make: Open) -> None:
    image = make(
        segments=[
            Segment(0x0, 0x400000, 0x1000, elf.R),
            Segment(0x1000, 0x402000, 0x1000),
            Segment(0x2000, 0x700000, 0x800),
            Segment(0x3000, 0x200000, 0x100),
        ]
    )
    offsets = np.array([0x10, 0x1000, 0x1FFF, 0x2010, 0x2800, 0x30FF, 0x3100], np.uint64)
    virtual, valid = image.to_virtual(offsets)
    image.close()
    assert valid.tolist() == [True, True, True, True, False, True, False]
    wanted = [0x400010, 0x402000, 0x402FFF, 0x700010, 0x2000FF]
    assert virtual[valid].tolist() == wanted


def test_executable_segment_wins_where_two_share_a_page(make: Open) -> None:
    for flags in ((elf.R, elf.RX), (elf.RX, elf.R)):
        image = make(
            segments=[
                Segment(0, 0x10000 if flags[0] == elf.RX else 0x90000, 0x1000, flags[0]),
                Segment(0, 0x10000 if flags[1] == elf.RX else 0x90000, 0x1000, flags[1]),
            ]
        )
        virtual, valid = image.to_virtual(np.array([0x10], np.uint64))
        image.close()
        assert (virtual.tolist(), valid.tolist()) == ([0x10010], [True])


def test_addresses_at_the_ends_of_memory_do_not_wrap(make: Open) -> None:
    image = make(segments=[Segment(2**64 - 0x1000, 0x1000, 2**64 - 1)])
    _, valid = image.to_virtual(np.array([0, 2**64 - 0x1001, 2**64 - 1], np.uint64))
    image.close()
    assert valid.tolist() == [False, False, True]


def test_offset_outside_all_segments_has_no_name(make: Open) -> None:
    image = make(symbols=[Symbol("f", 0x1000, 0x1000)], segments=[Segment(0x1000, 0x1000, 0x800)])
    assert at(image, 0x1000, 0x17FF, 0x1800, 0xFFF) == ["f", "f", None, None]


# Which symbols


def test_only_code_in_code_sections_has_a_name(make: Open) -> None:
    image = make(
        code=[Section(0x1000, 0x1000), Section(0x3000, 0x1000, flags=elf.ALLOC)],
        symbols=[
            Symbol("function", 0x1000, 0x10),
            Symbol("resolver", 0x1010, 0x10, elf.IFUNC),
            Symbol("label", 0x1020, 0x10, elf.NOTYPE),
            Symbol("variable", 0x1030, 0x10, elf.OBJECT),
            Symbol("section", 0x1040, 0x10, elf.SECTION),
            Symbol("file", 0x1050, 0x10, elf.FILE),
            Symbol("thread", 0x1060, 0x10, elf.TLS),
            Symbol("import", 0x1070, 0x10, section=elf.UNDEFINED),
            Symbol("constant", 0x1080, 0x10, section=elf.ABSOLUTE),
            Symbol("", 0x1090, 0x10),
            Symbol("$x", 0x10A0, 0x10, elf.NOTYPE),
            Symbol("data", 0x3000, 0x10, elf.NOTYPE),
            Symbol("many_sections", 0x10B0, 0x10, section=0xFFFF),
        ],
    )
    found = at(image, *range(0x1000, 0x10C0, 0x10), 0x3000)
    wanted = ["function", "resolver", "label", *[None] * 8, "many_sections", None]
    assert found == wanted


def test_init_ends_with_its_section_and_leaves_the_plt_alone(make: Open) -> None:
    image = make(
        code=[Section(0x1000, 0x1B), Section(0x1020, 0x100), Section(0x1120, 0x100)],
        symbols=[Symbol("_init", 0x1000), Symbol("main", 0x1120, 0x20)],
    )
    found = at(image, 0x1000, 0x101A, 0x101B, 0x1020, 0x111F, 0x1120, 0x1140)
    assert found == ["_init", "_init", None, None, None, "main", None]


def test_dynsym_names_what_symtab_lacks(make: Open) -> None:
    image = make(
        symbols=[Symbol("_internal", 0x1000, 0x10)],
        dynamic=[Symbol("public", 0x1000, 0x10), Symbol("other", 0x1020, 0x10)],
    )
    assert at(image, 0x1000, 0x1020) == ["_internal", "other"]
    image = make(dynamic=[Symbol("public", 0x1000, 0x10)])
    assert at(image, 0x1000) == ["public"]


def test_binding_decides_between_aliases(make: Open) -> None:
    image = make(
        symbols=[
            Symbol("local_longest", 0x1000, 8, binding=elf.LOCAL),
            Symbol("weak_longer", 0x1000, 8, binding=elf.WEAK),
            Symbol("strong", 0x1000, 8),
            Symbol("local_longest", 0x1010, 8, binding=elf.LOCAL),
            Symbol("weak", 0x1010, 8, binding=elf.WEAK),
            Symbol("weak_longer", 0x1020, 8, binding=elf.WEAK),
            Symbol("unique", 0x1020, 8, binding=elf.UNIQUE),
        ]
    )
    assert at(image, 0x1000, 0x1010, 0x1020) == ["strong", "weak", "unique"]


def test_name_past_the_strings_is_no_name(make: Open) -> None:
    data = bytearray(elf.build(symbols=[*ONE, Symbol("g", 0x1010, 0x10)]))
    first = data.index(elf.symbol_data(ONE, [1], 64, "<")[24:])
    data[first : first + 4] = b"\xff" * 4
    assert at(make(bytes(data)), 0x1000, 0x1010) == [None, "g"]


def test_no_section_table_means_no_names(make: Open) -> None:
    data = bytearray(elf.build(symbols=[Symbol("f", 0x1000, 0x10)]))
    data[0x28:0x30] = bytes(8)
    assert at(make(bytes(data)), 0x1000) == [None]


def test_counts_too_large_for_the_header_are_in_section_0(make: Open) -> None:
    data = bytearray(elf.build(symbols=ONE))
    table = int.from_bytes(data[0x28:0x30], "little")
    segments, sections = data[0x38], data[0x3C]
    data[0x38:0x3A], data[0x3C:0x3E] = b"\xff\xff", b"\0\0"
    data[table + 0x2C], data[table + 0x20] = segments, sections
    assert at(make(bytes(data)), 0x1000, 0x1010) == ["f", None]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
def test_every_class_and_byte_order(make: Open, bits: int, order: str) -> None:
    content = elf.note(b"GNU\0", 3, b"\xab" * 20, order=order)
    image = make(
        bits=bits,
        order=order,
        segments=[Segment(0x1000, 0x81000, 0x1000)],
        code=[Section(0x81000, 0x1000)],
        symbols=[Symbol("outer", 0x81000, 0x100), Symbol("inner", 0x81010, 0x10)],
        more=[Section(kind=elf.NOTE, data=content)],
    )
    assert image.build_id == b"\xab" * 20
    assert at(image, 0x1000, 0x1010, 0x1020, 0x1100) == ["outer", "inner", "outer", None]


def test_names_are_demangled_and_hostile_ones_kept(make: Open) -> None:
    hostile = "<script>;\x1b[31m\n"
    image = make(
        symbols=[
            Symbol("_ZN2ns5outerEv", 0x1000, 0x10),
            Symbol(hostile, 0x1010, 0x10),
            Symbol(b"bad\xff", 0x1020, 0x10),
            Symbol("x" * 1_000_000, 0x1030, 0x10),
        ]
    )
    found = at(image, 0x1000, 0x1010, 0x1020, 0x1030)
    assert found[:3] == ["ns::outer()", hostile, "bad\\xff"]
    assert found[3] == "x" * 16384


# Build IDs


def test_build_id_from_a_segment_past_other_notes(make: Open) -> None:
    notes = elf.note(b"stapsdt\0", 3, b"x" * 7) + elf.note(b"GNU\0", 1, b"y" * 16)
    notes += elf.note(b"GNU\0", 3, b"\x01\x02\x03")
    bare = elf.build(segments=[Segment(0, 0, 0), Segment(0, 0, 0)])
    segments = [Segment(0, 0, 0x1000), Segment(len(bare), 0, len(notes), elf.R, 4, 4)]
    with make(elf.build(segments=segments) + notes) as image:
        assert image.build_id == b"\x01\x02\x03"


def test_build_id_after_a_note_aligned_to_8(make: Open) -> None:
    notes = elf.note(b"GNU\0", 5, b"p" * 12, 8) + elf.note(b"GNU\0", 3, b"id", 8)
    bare = elf.build(segments=[Segment(0, 0, 0)])
    segments = [Segment(len(bare), 0, len(notes), elf.R, 4, 8)]
    with make(elf.build(segments=segments) + notes) as image:
        assert image.build_id == b"id"


@pytest.mark.parametrize(
    "notes",
    [b"", b"\x04", elf.note(b"GNU\0", 1, b"x"), b"\xff" * 64, elf.note(b"GNU\0", 3, b"z" * 4096)],
)
def test_no_build_id(make: Open, notes: bytes) -> None:
    with make(more=[Section(kind=elf.NOTE, data=notes)]) as image:
        assert image.build_id == b""


# Code and sections


def test_code_is_in_order_and_apart(make: Open) -> None:
    segments = [
        Segment(0, 0x9000, 0x100),
        Segment(0, 0x1000, 0x800),
        Segment(0, 0x1800, 0x100),
        Segment(0, 0x1100, 0x10),
        Segment(0, 0x5000, 0),
        Segment(0, 0x7000, 0x100, elf.R),
        Segment(0, 0x8000, 0x100, elf.RX, 4),
    ]
    with make(segments=segments) as image:
        assert image.code == [(0x1000, 0x1900), (0x9000, 0x9100)]


def test_sections_are_found_by_name(make: Open) -> None:
    named = [
        Section(0x10, kind=elf.NOBITS, name=b".eh_frame"),
        Section(0x20, name=b".eh_frame_hdr"),
        Section(0x30, name=b".eh_frame"),
    ]
    with make(more=named) as image:
        found = image.section(b".eh_frame")
        assert found is not None
        assert found["addr"] == 0x30
        assert image.section(b".eh_fram") is None
    with make() as image:  # without names
        assert image.section(b".eh_frame") is None


def test_absurd_section_names_are_refused(make: Open) -> None:
    data = bytearray(elf.build(more=[Section(name=b".text")]))
    table, count = int.from_bytes(data[0x28:0x30], "little"), data[0x3C]
    size = table + 64 * (count - 1) + 0x20
    data[size : size + 8] = (1 << 40).to_bytes(8, "little")
    with make(bytes(data)) as image, pytest.raises(BadElf, match="section names"):
        image.section(b".text")


def test_addresses_lead_to_the_file(make: Open) -> None:
    with make(segments=[Segment(0x100, 0x5000, 0x80), Segment(0x300, 0x6000, 0x40)]) as image:
        assert image.file_range(0x5010) == (0x110, 0x70)
        assert image.file_range(0x603F) == (0x33F, 1)
        assert image.file_range(0x6040) == image.file_range(0x10) == (0, 0)


def test_files_that_others_can_write_are_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(elf.build())
    for mode, trusted in ((0o755, True), (0o775, False), (0o757, False)):
        path.chmod(mode)
        with ElfImage.open(str(path)) as image:
            assert image.trusted == trusted
    if os.geteuid() == 0:
        path.chmod(0o755)
        os.chown(path, 65534, 65534)
        with ElfImage.open(str(path)) as image:
            assert not image.trusted


# Damage


def with_field(offset: int, value: bytes) -> bytes:
    data = bytearray(elf.build(symbols=ONE))
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" * 100,
        b"\x7fELF" + b"\xff" * 100,
        elf.build(symbols=ONE)[:-1],
        elf.build(symbols=ONE)[:64],
        with_field(0x28, b"\xff" * 8),  # section table at 2^64 - 1
        with_field(0x20, b"\xff" * 8),  # program headers at 2^64 - 1
        with_field(0x38, b"\xfe\xff"),  # 65,534 program headers
        with_field(0x3C, b"\xff\xff"),  # 65,535 section headers
        with_field(0x3A, b"\x41\x00"),  # section headers of 65 bytes
        elf.build(more=[Section(kind=elf.SYMTAB, size=2**63)]),
        elf.build(more=[Section(kind=elf.SYMTAB, size=24 * 100, link=1)]),
        elf.build(more=[Section(kind=elf.SYMTAB, size=24, offset=2**64 - 8, link=1)]),
        elf.build(more=[Section(kind=elf.SYMTAB, data=bytes(48), link=9999)]),
        elf.build(more=[Section(kind=elf.SYMTAB, data=bytes(48), link=1, entry=16)]),
        elf.build(code=[Section(0, 2**64 - 1)], more=[Section(kind=elf.DYNSYM, link=1)]),
    ],
)
def test_damage_is_one_error_that_names_the_file(make: Open, data: bytes) -> None:
    with pytest.raises(BadElf, match="image: ") as caught:
        at(make(data), 0x1000)
    assert "\n" not in caught.value.message


def test_sparse_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for section in (
        Section(kind=elf.SYMTAB, size=2**33, link=1, offset=0),
        Section(kind=elf.SYMTAB, data=bytes(48), link=3),
    ):
        giant = Section(flags=0, kind=elf.STRTAB, size=2**33, offset=0)
        path = tmp_path / "giant"
        path.write_bytes(elf.build(more=[section, giant]))
        os.truncate(path, 2**34)
        began = time.process_time()
        with ElfImage.open(str(path)) as image, pytest.raises(BadElf, match="giant: "):
            len(image.symbols)
        assert time.process_time() - began < 0.5


def test_file_that_shrinks_while_open_is_an_error_not_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(elf.build(symbols=ONE))
    with ElfImage.open(str(path)) as image:
        os.truncate(path, 100)
        with pytest.raises(BadElf, match="shrank"):
            len(image.symbols)


def test_what_is_not_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadElf, match="not a regular file"):
            ElfImage.open(str(path))
    with pytest.raises(FileNotFoundError):
        ElfImage.open(str(tmp_path / "none"))


def test_failed_opens_leave_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("not an ELF file")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(BadElf):
            ElfImage.open(str(path))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(scope="module")
def small_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("program")
    (directory / "a.c").write_text(
        "int f(int x) { return x + 1; }\nint main(void) { return f(2); }"
    )
    program = directory / "a"
    subprocess.run(["gcc", "-Wl,--build-id=sha1", "-o", program, directory / "a.c"], check=True)
    return program.read_bytes()


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(seed=st.randoms(use_true_random=False), edits=st.integers(1, 30), where=st.integers(0, 3))
def test_random_damage_never_escapes(
    small_program: bytes, tmp_path: Path, seed: random.Random, edits: int, where: int
) -> None:
    """Bytes of the headers, of the symbol and section tables, of anywhere; or an end cut off."""
    data = bytearray(small_program)
    size = len(data)
    low, high = [(0, 0x400), (size * 3 // 4, size), (0, size), (0, size)][where]
    for _ in range(edits):
        data[seed.randrange(low, high)] = seed.choice([0, 1, 0x7F, 0xFF, seed.randrange(256)])
    if where == 3:
        del data[seed.randrange(len(data)) :]
    path = tmp_path / "damaged"
    path.write_bytes(data)
    began = time.process_time()
    try:
        with ElfImage.open(str(path)) as image:
            assert len(image.build_id) <= 64
            names = image.resolve(np.arange(0, 0x4000, 7, dtype=np.uint64))
            assert all(name is None or name for name in names)
    except BadElf:
        pass
    assert time.process_time() - began < 2


# Against binutils


CPP = r"""
#include <vector>
#include <string>
namespace shape {
template <class T> struct Box {
  T value;
  __attribute__((noinline)) T get() const { return value; }
};
__attribute__((noinline)) int area(const std::vector<std::string>& names) { return names.size(); }
}
static __attribute__((noinline, cold)) void fail() { throw 1; }
__asm__(".text\n.globl sizeless\n.type sizeless,@function\nsizeless: ret\n nop\n"
        ".globl outer\n.type outer,@function\nouter: nop\n"
        "inner: nop\n nop\n.type inner,@function\n.size inner,2\n"
        "label: nop\n nop\n.size outer,.-outer\n");
int main(int argc, char** argv) {
  shape::Box<int> box{argc};
  if (argc > 9) fail();
  return shape::area({argv, argv + argc}) + box.get();
}
"""


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cpp")
    (directory / "a.cc").write_text(CPP)
    subprocess.run(["g++", "-O1", "-o", directory / "a", directory / "a.cc"], check=True)
    return directory / "a"


def code_sections(path: str) -> list[tuple[int, int]]:
    out = subprocess.run(["readelf", "-SW", path], check=True, capture_output=True, text=True)
    found = []
    for line in out.stdout.splitlines():
        fields = line.partition("]")[2].split()
        if len(fields) > 7 and "X" in fields[6]:
            found.append((int(fields[2], 16), int(fields[2], 16) + int(fields[4], 16)))
    return found


@dataclasses.dataclass
class Listing:
    """The code symbols that readelf shows; start and size of shape (n,)."""

    start: NDArray[np.int64]
    size: NDArray[np.int64]
    names: list[str]
    sections: list[tuple[int, int]]

    def allowed_at(self, address: int) -> set[str]:
        """The names an address may have: those of the innermost symbol and its aliases."""
        rows = np.flatnonzero((self.start <= address) & (address < self.start + self.size))
        if not rows.size:
            (section,) = (low for low, high in self.sections if low <= address < high)
            below = self.start[(section <= self.start) & (self.start <= address)]
            if not below.size:
                return set()
            last = below.max()
            if ((self.start <= last) & (last < self.start + self.size)).any():
                return set()
            rows = np.flatnonzero(self.start == last)
        rows = rows[self.start[rows] == self.start[rows].max()]
        return {demangle(self.names[row]) for row in rows}


def listed(path: str) -> Listing:
    sections = code_sections(path)
    out = subprocess.run(["readelf", "-sW", path], check=True, capture_output=True)
    table, rows = "", []
    for line in out.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("Symbol table"):
            table = line.split("'")[1]
        fields = line.split(maxsplit=7)
        if len(fields) < 8 or fields[3] not in ("FUNC", "IFUNC", "NOTYPE"):
            continue
        address = int(fields[1], 16)
        if fields[6] not in ("UND", "ABS") and any(a <= address < b for a, b in sections):
            name = fields[7].strip()
            name = name.split("@")[0] if table == ".dynsym" else name
            rows.append((address, int(fields[2], 0), table, name))
    in_symtab = {row[0] for row in rows if row[2] == ".symtab"}
    rows = [row for row in rows if row[2] == ".symtab" or row[0] not in in_symtab]
    return Listing(
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        [row[3] for row in rows],
        sections,
    )


def offset_of(path: str) -> Callable[[int], int]:
    out = subprocess.run(["readelf", "-lW", path], check=True, capture_output=True, text=True)
    loads = [
        [int(field, 16) for field in line.split()[1:6]]
        for line in out.stdout.splitlines()
        if line.split()[:1] == ["LOAD"]
    ]

    def convert(address: int) -> int:
        (found,) = {
            address - vaddr + offset
            for offset, vaddr, _, filesz, _ in loads
            if vaddr <= address < vaddr + filesz
        }
        return found

    return convert


@pytest.mark.parametrize("which", ["libc", "python", "libstdc++", "compiled"])
def test_names_agree_with_readelf(which: str, cpp_program: Path) -> None:
    """Each start and random addresses in between, held against the set of aliases allowed there."""
    libraries = Path(f"/usr/lib/{os.uname().machine}-linux-gnu")
    path = {
        "libc": str(libraries / "libc.so.6"),
        "python": os.path.realpath("/usr/bin/python3"),
        "libstdc++": str(libraries / "libstdc++.so.6"),
        "compiled": str(cpp_program),
    }[which]
    listing = listed(path)
    sections = listing.sections
    assert len(listing.names) > 15
    rng = random.Random(which)  # noqa: S311
    symbols = list(zip(listing.start.tolist(), listing.size.tolist(), strict=True))
    addresses = [start for start, _ in symbols]
    addresses += [start + size for start, size in symbols]
    addresses += [start + rng.randrange(size) for start, size in symbols if size]
    addresses += [rng.randrange(*section) for section in sections for _ in range(500)]
    addresses = [each for each in addresses if any(low <= each < high for low, high in sections)]

    convert = offset_of(path)
    with ElfImage.open(path) as image:
        found = image.resolve(np.array([convert(each) for each in addresses], np.uint64))
    for address, name in zip(addresses, found, strict=True):
        wanted = listing.allowed_at(address)
        assert name in wanted if wanted else name is None, f"{address:#x}"
    assert None in found
    assert sum(name is not None for name in found) > len(symbols)


def test_build_id_agrees_with_readelf(cpp_program: Path) -> None:
    for path in (str(cpp_program), os.path.realpath("/usr/bin/python3")):
        out = subprocess.run(["readelf", "-nW", path], check=True, capture_output=True, text=True)
        wanted = next((w for w in out.stdout.split() if len(w) == 40), None)
        with ElfImage.open(path) as image:
            assert image.build_id.hex() == wanted


def test_asm_symbols_nest(cpp_program: Path) -> None:
    path = str(cpp_program)
    listing = listed(path)
    rows = dict(zip(listing.names, listing.start.tolist(), strict=True))
    convert = offset_of(path)
    addresses = [rows["sizeless"] + 1, rows["outer"], rows["inner"], rows["label"]]
    with ElfImage.open(path) as image:
        found = image.resolve(np.array([convert(each) for each in addresses], np.uint64))
    assert found == ["sizeless", "outer", "inner", "outer"]
