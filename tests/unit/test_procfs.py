import os
import re
import subprocess
from pathlib import Path

from bpflame.profilers.procfs import executable_mappings, parse_maps, process_of


def test_maps_as_the_kernel_prints_them() -> None:
    text = (
        b"00400000-00401000 r-xp 00001000 fe:00 1234                 /opt/a b\\012c\n"
        b"00500000-00501000 rw-p 00000000 00:00 0 \n"
        b"7f0000000000-7f0000001000 r-xp 00000000 00:00 0 \n"
        b"7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0              [vdso]\n"
        b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0      [vsyscall]\n"
        b"7f1-7f2 r-xp 00000000 00:2a 99       /gone \xff (deleted)\n"
        b"not a line\n"
    )
    found = [(m.start, m.end, m.offset, m.file.path, m.file.inode) for m in parse_maps(text)]
    assert found == [
        (0x400000, 0x401000, 0x1000, "/opt/a b\nc", 1234),
        (0x7F0000000000, 0x7F0000001000, 0, "", 0),
        (0x7FFC00000000, 0x7FFC00002000, 0, "[vdso]", 0),
        (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, 0, "[vsyscall]", 0),
        (0x7F1, 0x7F2, 0, "/gone \udcff (deleted)", 99),
    ]


def test_the_ioctl_and_the_text_tell_the_same() -> None:
    text = Path("/proc/self/maps").read_bytes()
    asked = executable_mappings(os.getpid())
    assert asked is not None
    printed = [m for m in parse_maps(text) if m.file.path != "[vsyscall]"]
    assert [(m.start, m.end, m.offset, m.file.path) for m in asked] == [
        (m.start, m.end, m.offset, m.file.path) for m in printed
    ]


def test_the_kernels_build_id_is_the_files() -> None:
    libc = next(m for m in executable_mappings(os.getpid()) or () if "/libc.so.6" in m.file.path)
    notes = subprocess.run(["readelf", "-n", libc.file.path], capture_output=True, check=True)
    match = re.search(rb"Build ID: ([0-9a-f]+)", notes.stdout)
    assert match is not None
    assert libc.file.build_id.hex() in ("", match[1].decode())  # before Linux 6.11 it is not told


def test_what_is_gone_or_a_thread() -> None:
    assert executable_mappings(1 << 30) is None
    assert process_of(1 << 30) is None
    assert process_of(os.getpid()) == os.getpid()
