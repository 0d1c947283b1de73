import re
import subprocess
from pathlib import Path

import pytest

from bpflame.bpf.btf import VMLINUX, Btf
from bpflame.errors import BpflameError


@pytest.mark.parametrize(
    ("struct", "member"),
    [("task_struct", "pid"), ("task_struct", "tgid"), ("task_struct", "signal"),
     ("signal_struct", "live"), ("mm_struct", "owner"), ("list_head", "prev")],
)  # fmt: skip
def test_offsets_are_those_that_bpftool_finds(struct: str, member: str) -> None:
    dump = subprocess.run(
        ["bpftool", "btf", "dump", "file", str(VMLINUX), "format", "raw"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    block = re.search(rf"^\[\d+\] STRUCT '{struct}' .*\n(?:\t.*\n)*", dump, re.MULTILINE)
    assert block is not None
    found = re.search(rf"\t'{member}' type_id=\d+ bits_offset=(\d+)", block[0])
    if found is None:  # a member of an anonymous union, which we do not look into
        with pytest.raises(BpflameError, match=f"no {struct}.{member}"):
            Btf.of_kernel().offset(struct, member)
        return
    assert Btf.of_kernel().offset(struct, member) == int(found[1]) // 8


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    btf = Btf.of_kernel()
    with pytest.raises(BpflameError, match=r"no task_struct\.no_such_member"):
        btf.offset("task_struct", "no_such_member")
    with pytest.raises(BpflameError, match=r"no no_such_struct\.pid"):
        btf.offset("no_such_struct", "pid")
    with pytest.raises(BpflameError, match="no kernel type information"):
        Btf.of_kernel(tmp_path / "vmlinux")
    with pytest.raises(BpflameError, match="bad magic"):
        Btf(b"\x7fELF" + bytes(100))
