"""Processes and files that come, go and change while their stacks are unwound by tables."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import struct
import time
from pathlib import Path

import pytest
from recording import Running, bpflame
from unwinding import (
    Unwound,
    background,
    compile_c,
    in_order,
    is_truncated,
    promised,
    record,
    together,
)

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="tables are of x86-64"),
]

BURNING = ("main", "descend", "spin_here")
"""What workload ``deep`` shows."""


@pytest.fixture
def nofp(workloads: Path) -> Path:
    """The workloads without frame pointers."""
    return workloads / "nofp"


def burns(unwound: Unwound, comm: str, depth: int) -> None:
    """Hold a ``deep`` of some name to be whole, with as many calls as it made."""
    unwound.is_whole(comm)
    unwound.keeps([BURNING], least=80, comm=comm)
    with_leaf = unwound.weight(lambda stack: "spin_here" in stack, comm)
    right = unwound.weight(
        lambda stack: "spin_here" in stack and stack.count("descend") == depth, comm
    )
    assert right >= 0.995 * with_leaf, unwound.worst(lambda _: True, comm)


@pytest.mark.parametrize(
    "arguments", [("--unwind", "maybe"), ("--unwind",), ("--max-depth", "512")]
)
def test_a_wrong_choice_is_an_error_of_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for command in ("cpu", "offcpu", "chain"):
        result = bpflame(command, "-o", tmp_path / "x.svg", "-d", "1", *arguments)
        assert result.code == 2
        assert arguments[0] in result.stderr
        assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_both_programs_of_one_process_are_whole(nofp: Path, tmp_path: Path) -> None:
    """At the same addresses, with tables of their own."""
    unwound = record("cpu", tmp_path, "--", nofp / "exec_chain_a", "2")
    unwound.is_whole()
    unwound.keeps([("exec_chain_a", "_start", "main", "before_exec")], least=30)
    unwound.keeps([("exec_chain_b", "_start", "main", "after_exec")], least=30)


def test_processes_of_a_few_milliseconds_are_whole(nofp: Path, tmp_path: Path) -> None:
    """Each pid is new, and many are there again soon."""
    unwound = record("cpu", tmp_path, "--", nofp / "fork_storm", "2", "400", "2")
    unwound.is_whole()
    unwound.keeps([("main", "short_lived_work")], least=60)
    unwound.starts_at("_start", "fork_storm")


def test_a_process_that_starts_while_the_system_is_recorded(nofp: Path, tmp_path: Path) -> None:
    path = tmp_path / "system.folded"
    options = ("--unwind", "dwarf", "--json", "-o", path)
    running = Running("cpu", "-F", "999", *options)
    with background(nofp / "deep", "60", "40", "spin"):
        result = running.finish(after=1.5)
    unwound = Unwound.read(result, path)
    burns(unwound, "deep", 40)
    unwound.agrees_with_its_counters()


def test_a_file_that_is_gone_or_replaced_has_the_table_that_it_had(
    nofp: Path, workloads: Path, tmp_path: Path
) -> None:
    for name in ("deleted", "replaced"):
        shutil.copy(nofp / "deep", tmp_path / name)
    shutil.copy(workloads / "fp" / "three_paths", tmp_path / "new")
    with (
        background(tmp_path / "deleted", "60", "30", "spin") as deleted,
        background(tmp_path / "replaced", "60", "50", "spin") as replaced,
    ):
        become(deleted.pid, "deleted")
        become(replaced.pid, "replaced")
        (tmp_path / "deleted").unlink()
        (tmp_path / "new").rename(tmp_path / "replaced")
        pids = f"{deleted.pid},{replaced.pid}"
        unwound = record("cpu", tmp_path, "-p", pids, "-d", "1.5")
    burns(unwound, "deleted", 30)
    burns(unwound, "replaced", 50)


@pytest.mark.parametrize("way", ["pids", "command"])
def test_processes_that_see_other_files(nofp: Path, tmp_path: Path, way: str) -> None:
    """In mount namespaces of their own and in a chroot, programs have paths that are not ours."""
    inside, root = tmp_path / "inside", tmp_path / "root"
    for program in (inside / "bound", inside / "numbered", root / "jailed"):
        program.parent.mkdir(exist_ok=True)
        shutil.copy(nofp / ("deep_static" if program.parent == root else "deep"), program)
    seconds = 60 if way == "pids" else 2
    bind = f"mount --bind {inside} /mnt && exec /mnt/"
    commands = {
        "bound": f"unshare -m sh -c '{bind}bound {seconds} 20 spin'",
        "numbered": f"unshare -mpf --kill-child --mount-proc "
        f"sh -c '{bind}numbered {seconds} 30 spin'",
        "jailed": f"chroot {root} /jailed {seconds} 40 spin",
    }
    if way == "command":
        unwound = record("cpu", tmp_path, "--", *together(*commands.values()))
    else:
        with contextlib.ExitStack() as running:
            pids = []
            for comm, command in commands.items():
                pid = running.enter_context(background("sh", "-c", f"exec {command}")).pid
                pids.append(str(become(pid, comm)))
            unwound = record("cpu", tmp_path, "-p", ",".join(pids), "-d", "1.5")
    for comm, depth in (("bound", 20), ("numbered", 30), ("jailed", 40)):
        burns(unwound, comm, depth)


def become(pid: int, comm: str) -> int:
    """Wait until a process, or its child, runs a program; returns which of them it is."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            if Path(f"/proc/{each}/comm").read_text() == f"{comm}\n":
                return each
        time.sleep(0.01)
    raise AssertionError(f"no {comm}")


MAPPINGS = """
#include "workload.h"

#include <fcntl.h>
#include <sys/mman.h>

VISIBLE void burn(double until);
VISIBLE void work(double seconds);

VISIBLE void burn(double until)
{
    while (wall_seconds() < until)
        SPIN(QUANTUM);
}

VISIBLE void work(double seconds)
{
    burn(wall_seconds() + seconds);
    NOT_A_TAIL_CALL();
}

/* Arguments: seconds, how many mappings, and the file of executable ones, else of no file. */
int main(int argc, char **argv)
{
    long count = atol(argv[2]);
    int file = argc > 3 ? open(argv[3], O_RDONLY) : -1;
    int flags = MAP_PRIVATE | (file < 0 ? MAP_ANONYMOUS : 0);
    char *memory = mmap(NULL, (size_t)count << 12, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (long i = 0; i < count; i += 2) {
        if (mmap(memory + (i << 12), 4096, PROT_READ | PROT_EXEC, flags | MAP_FIXED, file, 0)
            == MAP_FAILED)
            return 1;
    }
    puts("ready");
    fflush(stdout);
    work(atof(argv[1]));
    return 0;
}
"""
WORKING = ("main", "work", "burn")


@pytest.mark.parametrize("kind", ["no file", "an empty file", "a program"])
def test_a_process_with_as_many_mappings_as_there_can_be(
    nofp: Path, tmp_path: Path, kind: str
) -> None:
    """Every other one is executable. What does not fit is counted, and nothing is made up."""
    program = compile_c(MAPPINGS, tmp_path / "many_maps")
    (tmp_path / "empty").touch()
    file = {"no file": (), "an empty file": (tmp_path / "empty",), "a program": (nofp / "deep",)}
    most = min(65536, int(Path("/proc/sys/vm/max_map_count").read_text()) - 100)
    with background(program, "60", str(most), *file[kind]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        unwound = record("cpu", tmp_path, "-p", str(process.pid), "-d", "1.5")
    if not unwound.counters["crowded_processes"]:
        unwound.is_whole("many_maps")
    wrong = unwound.weight(
        lambda stack: "burn" in stack and not is_truncated(stack) and not in_order(stack, WORKING)
    )
    assert wrong == 0, unwound.worst(lambda _: True)
    assert unwound.weight(lambda stack: "burn" in stack) > 100


def test_mappings_that_come_by_the_thousand(tmp_path: Path) -> None:
    program = compile_c(MAPPINGS, tmp_path / "many_maps")
    path = tmp_path / "cpu.folded"
    options = ("-F", "999", "--unwind", "dwarf", "-o", path)
    result = bpflame("cpu", *options, "--", program, "1", "20000")
    assert result.code == 0
    assert "Traceback" not in result.stderr
    assert result.audit
    assert "burn" in path.read_text()


def absurd_sections(data: bytearray) -> None:
    """Give every section a place and a size that no file has."""
    table, size, number = section_headers(data)
    for at in range(table, table + size * number, size):
        struct.pack_into("<QQ", data, at + 24, 1 << 62, (1 << 63) + 12345)


def absurd_number(data: bytearray) -> None:
    """Say that there are as many sections as can be."""
    struct.pack_into("<H", data, 60, 0xFFFF)


def absurd_records(data: bytearray) -> None:
    """Make .eh_frame one record of the greatest length."""
    start, _ = eh_frame(data)
    struct.pack_into("<I", data, start, 0xFFFFFFF0)


def absurd_bytes(data: bytearray) -> None:
    """Fill .eh_frame, after its first length, with instructions of no meaning."""
    start, end = eh_frame(data)
    data[start + 16 : end] = b"\xff" * (end - start - 16)


def section_headers(data: bytearray) -> tuple[int, int, int]:
    """Where they are, the size of one, and how many: elf(5)."""
    table: int = struct.unpack_from("<Q", data, 40)[0]
    size, number = struct.unpack_from("<HH", data, 58)
    return table, size, number


def eh_frame(data: bytearray) -> tuple[int, int]:
    """Where the section .eh_frame begins and ends in the file."""
    table, size, number = section_headers(data)
    (of_names,) = struct.unpack_from("<H", data, 62)
    names = struct.unpack_from("<Q", data, table + size * of_names + 24)[0]
    for at in range(table, table + size * number, size):
        name = struct.unpack_from("<I", data, at)[0] + names
        if data[name : name + 10] == b".eh_frame\0":
            start, length = struct.unpack_from("<QQ", data, at + 24)
            return start, start + length
    raise AssertionError("no .eh_frame")


def test_absurd_files_cost_their_own_stacks_only(nofp: Path, tmp_path: Path) -> None:
    """A library that cannot be read right is called all the same; all other stacks are whole."""
    commands = []
    for spoil in (absurd_sections, absurd_number, absurd_records, absurd_bytes):
        folder = tmp_path / spoil.__name__
        folder.mkdir()
        shutil.copy(nofp / "late_library", folder / spoil.__name__[:15])
        shutil.copy(nofp / "liblate_second.so", folder)
        data = bytearray((nofp / "liblate_first.so").read_bytes())
        spoil(data)
        (folder / "liblate_first.so").write_bytes(data)
        commands.append(f"{folder / spoil.__name__[:15]} 2")
    unwound = record("cpu", tmp_path, "--", *together(*commands))
    first, *others = promised("late_library.c")
    spoiled = tuple(name for name in first if name != "enter_first")  # its name may be gone
    for command in commands:
        comm = os.path.basename(command.split()[0])
        for path in others:
            here = lambda stack, path=path: path[1] in stack  # noqa: E731
            assert unwound.weight(here, comm) > 20
        wrong = unwound.weight(
            lambda stack: (
                "burn_called_back" in stack
                and not is_truncated(stack)
                and not any(in_order(stack, path) for path in (spoiled, *others))
            ),
            comm,
        )
        # Some at each of the changes, until the recorder is woken and has a CPU.
        every = unwound.weight(lambda stack: "burn_called_back" in stack, comm)
        assert wrong <= 0.2 * every, unwound.worst(lambda _: True, comm)
        found = unwound.weight(lambda stack: "call_back" in stack, comm)
        cut = unwound.truncated(comm).total()
        assert cut < 0.5 * found, unwound.worst(is_truncated, comm)
