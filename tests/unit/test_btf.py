import re
import struct
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


def blob(strings: tuple[str, ...], types: bytes) -> bytes:
    """BTF with these strings, the first at 1, and these types."""
    text = b"\0" + b"".join(each.encode() + b"\0" for each in strings)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(text)) + (
        types + text
    )


NAMES = ("preempt", "prev", "next", "prev_state", "FIRST_HELPER")
AT = {name: sum(len(each) + 1 for each in NAMES[:i]) + 1 for i, name in enumerate(NAMES)}


def prototype(*parameters: str) -> bytes:
    """A struct btf_type of kind FUNC_PROTO, with its parameters."""
    head = struct.pack("<III", 0, 13 << 24 | len(parameters), 0)
    return head + b"".join(struct.pack("<II", AT[name], 3) for name in parameters)


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        (NAMES[:4], True),
        (("prev", *NAMES[:4]), True),
        (NAMES[:3], False),
        (("preempt", "next", "prev", "prev_state"), False),
        (("preempt", "prev", "prev_state"), False),
        ((), False),
    ],
)
def test_parameters_count_in_their_order(parameters: tuple[str, ...], found: bool) -> None:
    """As sched_switch has them since Linux 5.18: before, it does not tell the state."""
    btf = Btf(blob(NAMES, prototype("next", "prev") + prototype(*parameters)))
    assert btf.has_parameters("preempt", "prev", "next", "prev_state") == found


def test_parameters_of_two_functions_are_not_those_of_one() -> None:
    btf = Btf(blob(NAMES, prototype("preempt", "prev") + prototype("next", "prev_state")))
    assert not btf.has_parameters("preempt", "prev", "next", "prev_state")
    assert btf.has_parameters("next", "prev_state")


def test_a_parameter_that_no_string_names_is_not_there() -> None:
    btf = Btf(blob(NAMES, prototype(*NAMES[:4])))
    assert not btf.has_parameters("preempt", "nobody")


def test_a_name_is_known_as_a_whole() -> None:
    btf = Btf(blob(NAMES, b""))
    assert btf.knows("FIRST_HELPER")
    assert btf.knows("preempt")
    for name in ("FIRST", "HELPER", "FIRST_HELPER_", "emp", "unheard_of"):
        assert not btf.knows(name)


def test_this_kernel_knows_what_the_programs_call() -> None:
    btf = Btf.of_kernel()
    assert btf.knows("BPF_FUNC_get_stack")
    assert not btf.knows("BPF_FUNC_no_such_helper")
    assert not btf.has_parameters("preempt", "prev", "no_such_parameter")


def test_the_state_is_a_parameter_of_sched_switch_if_bpftool_says_so() -> None:
    dump = subprocess.run(
        ["bpftool", "btf", "dump", "file", str(VMLINUX), "format", "raw"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    told = re.search(r"'preempt' .*\n\t'prev' .*\n\t'next' .*\n\t'prev_state' ", dump) is not None
    assert Btf.of_kernel().has_parameters("preempt", "prev", "next", "prev_state") == told
