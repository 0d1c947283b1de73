"""How user stacks are unwound: what is asked for, on systems of all kinds."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import pytest

from bpflame import system
from bpflame.bpf import freeze
from bpflame.bpf.btf import Btf
from bpflame.bpf.unwind import trusted_folder
from bpflame.cli import main, parser
from bpflame.commands import cpu, sched, stacks
from bpflame.errors import BpflameError, UsageError
from bpflame.profilers import unwind_choice
from bpflame.profilers.unwind_choice import Unwind, choose

COMMANDS = ("cpu", "offcpu", "wakeup", "offwake", "chain")


@pytest.fixture(autouse=True)
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that can do everything."""
    pretend(monkeypatch)


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    machine: str = "x86_64",
    helper: bool = True,
    freezes: bool | None = False,
) -> None:
    """Look like a system with or without what unwinding by tables needs."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(
        Btf, "of_kernel", lambda: argparse.Namespace(knows=lambda name: helper and name == HELPER)
    )
    for module in (unwind_choice, system):
        monkeypatch.setattr(module, "can_freeze", lambda: freezes)


HELPER = "BPF_FUNC_task_pt_regs"


@pytest.mark.parametrize("interrupts", [False, True])
@pytest.mark.parametrize(
    ("asked", "unwind"),
    [("auto", Unwind.DWARF), ("dwarf", Unwind.DWARF), ("fp", Unwind.FP)],
)
def test_by_tables_unless_told_otherwise(asked: str, unwind: Unwind, interrupts: bool) -> None:
    assert choose(asked, interrupts) == (unwind, "")


@pytest.mark.parametrize("interrupts", [False, True])
@pytest.mark.parametrize(
    ("machine", "helper", "why"),
    [
        ("aarch64", True, "unwind tables are known for x86-64 only, not for aarch64"),
        ("x86_64", False, "this kernel has no bpf_task_pt_regs (from Linux 5.15 on)"),
    ],
)
def test_where_tables_cannot_be_walked(
    machine: str, helper: bool, why: str, interrupts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, machine, helper)
    assert choose("fp", interrupts) == (Unwind.FP, "")
    assert choose("auto", interrupts) == (
        Unwind.FP,
        f"user stacks are walked along frame pointers: {why}",
    )
    with pytest.raises(UsageError) as caught:
        choose("dwarf", interrupts)
    assert caught.value.message == f"--unwind dwarf: {why}"
    assert caught.value.exit_code == 2
    assert "--unwind fp" in caught.value.hint


def test_a_kernel_without_type_information(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Btf:
        raise BpflameError("no kernel type information: x")

    monkeypatch.setattr(Btf, "of_kernel", none)
    assert choose("auto", False) == (
        Unwind.FP,
        "user stacks are walked along frame pointers: no kernel type information: x",
    )


def test_a_kernel_that_freezes_is_not_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, freezes=True)
    unwind, reason = choose("auto", True)
    assert unwind is Unwind.FP
    assert "can freeze" in reason
    with pytest.raises(UsageError, match="--unwind dwarf: this kernel can freeze"):
        choose("dwarf", True)
    assert choose("fp", True) == (Unwind.FP, "")


@pytest.mark.parametrize("asked", ["auto", "dwarf"])
def test_in_the_context_of_a_task_no_kernel_freezes(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, freezes=True)
    assert choose(asked, False) == (Unwind.DWARF, "")


@pytest.mark.parametrize("asked", ["auto", "dwarf"])
def test_where_a_freeze_cannot_be_told_nothing_is_refused(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, freezes=None)
    assert choose(asked, True) == (Unwind.DWARF, "")


FIX = ("copy_from_user_nofault", "nmi_uaccess_okay")


@pytest.mark.parametrize(
    ("found", "freezes"),
    [
        ({FIX: None}, None),
        ({FIX: True, ("__check_object_size", "find_vmap_area"): True}, False),
        ({FIX: False, ("__check_object_size", "find_vmap_area"): True}, True),
        ({FIX: False, ("check_heap_object", "find_vmap_area"): True}, True),
        ({FIX: False, ("check_heap_object", "find_vmap_area"): None}, False),
        ({FIX: False}, False),
    ],
)
def test_the_freeze_needs_the_lock_and_no_fix(
    found: dict[tuple[str, str], bool | None],
    freezes: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(trusted_folder, "own", lambda: [str(tmp_path / "kept")])
    monkeypatch.setattr(freeze, "calls", lambda *names: found.get(names, False))
    assert freeze.can_freeze.__wrapped__() is freezes
    # What is known of this kernel is not looked for again; what is not known is.
    monkeypatch.setattr(freeze, "calls", lambda *names: True)
    assert freeze.can_freeze.__wrapped__() is (False if freezes is None else freezes)


class Request:
    """As much of a request as the choice needs."""

    def __init__(self, *arguments: str) -> None:
        self.options = parser().parse_args([*arguments])
        self.said: list[str] = []
        self.console = self

    def say(self, text: str) -> None:
        """Keep a line for the user."""
        self.said.append(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_recording_command_has_the_options(command: str) -> None:
    options = Request(command).options
    assert (options.unwind, options.max_depth) == ("auto", 127)
    options = Request(command, "--unwind", "fp", "--max-depth", "511").options
    assert (options.unwind, options.max_depth) == ("fp", 511)


@pytest.mark.parametrize("freezes", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_chosen_reaches_the_recorder(
    command: str, freezes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only samples are taken in interrupts, so only these are not to be had if that can freeze."""
    pretend(monkeypatch, freezes=freezes)
    monkeypatch.chdir(tmp_path)
    chosen: list[Any] = []
    for module in (cpu, sched):
        monkeypatch.setattr(module, "require_privileges", lambda: None)
        monkeypatch.setattr(module, "prepare", chosen.append)
        monkeypatch.setattr(module, "record", lambda request, first, prepare: prepare() or 0)
    assert main([command]) == 0
    assert main([command, "--unwind", "fp", "--max-depth", "9"]) == 0
    assert main([command, "--unwind", "dwarf"]) == (2 if freezes and command == "cpu" else 0)
    auto = Unwind.FP if freezes and command == "cpu" else Unwind.DWARF
    found = [(each.unwind, each.max_depth) for each in chosen]
    assert found[:2] == [(auto, 127), (Unwind.FP, 9)]
    assert found[2:] == ([] if auto is Unwind.FP else [(Unwind.DWARF, 127)])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_user_is_told_when_it_is_frame_pointers_after_all(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "aarch64")
    request = Request(command)
    assert stacks.choose_unwind(request, True) is Unwind.FP  # type: ignore[arg-type]
    assert len(request.said) == 1
    assert "frame pointers" in request.said[0]


@pytest.mark.parametrize("unwind", ["auto", "dwarf", "fp"])
def test_without_user_stacks_nothing_is_said_of_them(
    unwind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "aarch64", freezes=True)
    request = Request("cpu", "-K", "--unwind", unwind)
    assert stacks.choose_unwind(request, True) is Unwind.FP  # type: ignore[arg-type]
    assert request.said == []


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({}, system.OK, "by unwind tables"),
        ({"freezes": None}, system.OK, "by unwind tables"),
        ({"freezes": True}, system.WARN, "for cpu along frame pointers: this kernel can freeze"),
        ({"machine": "aarch64"}, system.WARN, "along frame pointers: unwind tables are known for"),
        ({"helper": False}, system.WARN, "along frame pointers: this kernel has no bpf_task"),
    ],
)
def test_doctor_tells_how_stacks_are_unwound(
    changes: dict[str, bool], verdict: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **changes)  # type: ignore[arg-type]
    check = system._unwinding()
    assert (check.verdict, check.name) == (verdict, "unwinding")
    assert says in check.found


@pytest.mark.bpf
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code")
def test_the_running_kernel_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert freeze.can_freeze() in (True, False)
    checks = {check.name: check for check in system.examine()}
    assert (checks["user memory access"].verdict == system.WARN) == freeze.can_freeze()
    assert (choose("auto", False)[0] is Unwind.DWARF) == Btf.of_kernel().knows(HELPER)
