"""The functions of GCC's and glibc's start files, which no FDE covers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bpflame.bpf.unwind.build import build_table
from bpflame.bpf.unwind.rules import Bp, Cfa, pack
from bpflame.symbolize.elf_file import ElfFile
from tests.unit.eh_frame_builder import lookup

OUTSIDE = pack(Cfa.SP, 8)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of one function, with symbols."""
    folder = tmp_path_factory.mktemp("start_files")
    (folder / "one.c").write_text("int one(void) { return 1; }\n")
    path = folder / "libone.so"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", path, folder / "one.c"], check=True, timeout=60
    )
    return path


def code(library: Path, name: str) -> list[tuple[int, str]]:
    """The addresses and instructions of a function."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={name}", library],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = [line.strip().split(":\t") for line in text.splitlines() if ":\t" in line]
    return [(int(address, 16), " ".join(what.split())) for address, what in lines]


@pytest.mark.parametrize(
    ("name", "entry", "exit_", "inside"),
    [
        ("__do_global_dtors_aux", "push %rbp", "pop %rbp", pack(Cfa.SP, 16, Bp.AT_CFA, -16)),
        ("_init", "sub $0x8,%rsp", "add $0x8,%rsp", pack(Cfa.SP, 16)),
        ("deregister_tm_clones", "", "", 0),
        ("frame_dummy", "", "", 0),
    ],
)
def test_each_instruction_has_its_rule(
    library: Path, name: str, entry: str, exit_: str, inside: int
) -> None:
    with ElfFile.open(str(library)) as elf:
        table = build_table(elf)
    table.check()
    expected = OUTSIDE
    instructions = code(library, name)
    assert len(instructions) > 1
    for address, what in instructions:
        if what.startswith("nop"):  # beyond its end
            break
        assert lookup(table, address) == expected, f"{address:#x} {what}"
        expected = inside if what == entry else OUTSIDE if what == exit_ else expected
