"""What it takes to make unwind tables, to keep them, and to put them where BPF sees them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks.report import Result, note
from benchmarks.table_processes import mappers, record
from benchmarks.table_report import LIBRARIES, Found, Loaded, Single, result
from bpflame.bpf.unwind import eh_frame
from bpflame.bpf.unwind.build import build_table
from bpflame.bpf.unwind.cache import TableCache
from bpflame.bpf.unwind.frame_rows import frame_rows
from bpflame.profilers import cpu
from bpflame.profilers.unwind_choice import Unwind
from bpflame.profilers.unwind_tables import UnwindTables
from bpflame.profilers.unwinding import MAX_CHUNKS
from bpflame.raw import FileKey
from bpflame.symbolize.elf_file import BadElf, ElfFile

ROUNDS = 3
COLD, WARM = "cold", "from the cache"

_LIBRARY_FOLDER, _PROGRAM_FOLDER = Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/bin")
_SINGLE = {
    "libc": "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "libstdc++": "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "libcrypto": "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "python3": "/usr/bin/python3",
    "perl": "/usr/bin/perl",
    "node": "/usr/bin/node",
    "libLLVM-14": "/usr/lib/x86_64-linux-gnu/libLLVM-14.so.1",
    "libLLVM-15": "/usr/lib/x86_64-linux-gnu/libLLVM-15.so.1",
}


def measure(rounds: int, folder: Path) -> Result:
    """All three parts in each round."""
    libraries = distinct([_LIBRARY_FOLDER])
    chosen = dict(sorted(libraries.items())[:LIBRARIES])  # by build id: as good as at random
    sets = {
        f"{len(chosen)} libraries": chosen,
        "all libraries and programs": {**libraries, **distinct([_PROGRAM_FOLDER])},
    }
    found = Found()
    for number in range(1, rounds + 1):
        note(f"tables: round {number} of {rounds}")
        for name, path in _SINGLE.items():
            if os.path.exists(path):
                found.single.setdefault(name, []).append(_single(path))
        for name, files in sets.items():
            with _folder(folder / "cache") as cache:
                for state in (COLD, WARM):
                    found.loaded.setdefault((name, state), []).append(_load(files, cache))
        with _folder(folder / "xdg") as cache, mappers(list(chosen.values()), folder) as pids:
            for state in (COLD, WARM):
                found.recorded.setdefault(state, []).append(record(pids, cache, folder))
    return result(found, rounds)


def distinct(folders: Iterable[Path]) -> dict[bytes, Path]:
    """ELF files in folders and below them, one for each build id."""
    found: dict[bytes, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.suffix in (".o", ".debug"):
                continue
            with (
                contextlib.suppress(OSError, BadElf),
                contextlib.closing(ElfFile.open(str(path))) as elf,
            ):
                if elf.x86_64 and elf.build_id:
                    found.setdefault(elf.build_id, path)
    return found


def _single(path: str) -> Single:
    seconds = []
    for _ in range(3):
        with contextlib.closing(ElfFile.open(path)) as elf:
            began = time.process_time()
            table = build_table(elf)
            seconds.append(time.process_time() - began)
            rows = len(frame_rows(elf, eh_frame.read(elf)).address)
    return Single(rows, len(table.rows), min(seconds))


def _load(files: Mapping[bytes, Path], cache: Path) -> Loaded:
    """Put the tables of files into BPF maps."""
    program = cpu.compile_program(cpu.CpuOptions(unwind=Unwind.DWARF))
    opened: dict[FileKey, int] = {}
    tables = UnwindTables(program, MAX_CHUNKS, opened, TableCache(str(cache)))
    try:
        for build_id, path in files.items():
            key = FileKey(str(path), build_id)
            opened[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                tables.load(key)
            finally:
                os.close(opened.pop(key))
        return Loaded(
            len(files),
            sum(tables.missing.values()),
            tables.seconds,
            len(tables.rules),
            tables.arena.size,
            size_of(cache),
        )
    finally:
        tables.close()
        program.close()


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder and below it."""
    return sum(
        path.lstat().st_size for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)
    )


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder of root's own, which is empty at first and gone afterwards."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)
