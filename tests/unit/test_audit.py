"""The line that a recording ends with, and the counters behind it."""

from __future__ import annotations

import pytest

from bpflame.commands.results import audit, summary
from bpflame.output import Output
from bpflame.profile import Metadata, Profile, Task
from bpflame.profilers.assemble import ends
from bpflame.raw import TRUNCATED, AbsoluteAddress, Context, RawSample, RawWaker, StackEnd

TASK = Task(7, 8, "app")
STACK = (AbsoluteAddress(0x1000),)


def sample(
    end: StackEnd,
    value: int = 1,
    user: tuple[AbsoluteAddress, ...] = STACK,
    guessed: bool = False,
    wakers: tuple[RawWaker, ...] = (),
) -> RawSample:
    return RawSample(TASK, None, user, (), False, value, (), wakers, end, guessed)


def waker(end: StackEnd, bare: bool = False, guessed: bool = False) -> RawWaker:
    return RawWaker(Context.TASK, TASK, None, STACK, (), False, bare, end, guessed)


def counted(counters: dict[str, int]) -> list[str]:
    """What the audit line says after the stacks."""
    line = audit(Profile("cpu", "samples", (), Metadata(counters=counters)))
    return line.split("; ")[3:]


def test_each_end_has_its_reason() -> None:
    assert set(TRUNCATED) == set(StackEnd) - {StackEnd.UNTOLD, StackEnd.COMPLETE}
    assert len(set(TRUNCATED.values())) == len(TRUNCATED)


def test_stacks_count_with_the_weight_of_their_samples() -> None:
    assert ends(
        [
            sample(StackEnd.COMPLETE, 90),
            sample(StackEnd.COMPLETE, 5, guessed=True),
            sample(StackEnd.NO_TABLE, 3),
            sample(StackEnd.TOO_DEEP, 2, guessed=True),
            sample(StackEnd.NO_TABLE, 4),
        ]
    ) == {
        "user_stacks": 104,
        "complete_stacks": 95,
        "truncated: no table": 7,
        "truncated: too deep": 2,
        "guessed_stacks": 7,
    }


def test_a_stack_of_which_nothing_could_be_taken_is_not_whole() -> None:
    assert ends([sample(StackEnd.NOT_READY, 3, user=())]) == {
        "user_stacks": 3,
        "truncated: tables not ready": 3,
    }


def test_frame_pointers_do_not_tell() -> None:
    assert ends([sample(StackEnd.UNTOLD, 3), sample(StackEnd.UNTOLD, 9, user=())]) == {
        "untold_stacks": 3
    }


def test_the_stacks_of_wakers_count_too() -> None:
    nearest, next_one = waker(StackEnd.COMPLETE), waker(StackEnd.UNREADABLE, guessed=True)
    hidden = waker(StackEnd.NO_TABLE, bare=True)
    found = ends([sample(StackEnd.COMPLETE, 10, wakers=(nearest, next_one, hidden))])
    assert found == {
        "user_stacks": 30,
        "complete_stacks": 20,
        "truncated: unreadable stack": 10,
        "guessed_stacks": 10,
    }


@pytest.mark.parametrize(
    ("counters", "says"),
    [
        ({}, []),
        ({"user_stacks": 7, "complete_stacks": 7}, ["all user stacks whole"]),
        (
            {
                "user_stacks": 1000,
                "complete_stacks": 996,
                "truncated: too deep": 1,
                "truncated: no table": 1,
                "truncated: unreadable stack": 2,
            },
            ["99.6% of user stacks whole (unreadable stack: 0.2%, no table: 0.1%)"],
        ),
        (
            {"user_stacks": 10**6, "complete_stacks": 10**6 - 1, "truncated: no mapping": 1},
            [">99.9% of user stacks whole (no mapping: <0.1%)"],
        ),
        (
            {"user_stacks": 3, "truncated: tables not ready": 3},
            ["0.0% of user stacks whole (tables not ready: 100.0%)"],
        ),
        (
            {"user_stacks": 40, "complete_stacks": 40, "guessed_stacks": 1},
            [
                "all user stacks whole",
                "2.5% with frames by frame pointer (JIT code, code without unwind tables)",
            ],
        ),
        ({"untold_stacks": 5}, ["user stacks along frame pointers"]),
        (
            {"untold_stacks": 1, "user_stacks": 3, "complete_stacks": 3},
            ["all user stacks whole", "25.0% of user stacks along frame pointers"],
        ),
        ({"files_without_table": 2}, ["2 files without an unwind table"]),
        ({"dropped_copies": 2}, ["2 stack copies without room"]),
        ({"crowded_processes": 2}, ["2 processes with more mappings than fit"]),
        ({"table_room": 2}, ["2 unwind tables without room"]),
        ({"late_stacks": 9, "unwind_tables": 3, "replaced_files": 1}, []),
    ],
)
def test_what_the_line_says_of_user_stacks(counters: dict[str, int], says: list[str]) -> None:
    assert counted(counters) == [*says, "all frames named"]


def test_the_summary_has_every_counter() -> None:
    counters = {"user_stacks": 2, "complete_stacks": 1, "truncated: no table": 1, "late_stacks": 1}
    profile = Profile("cpu", "samples", (), Metadata(counters=counters))
    assert summary(profile, Output("x.svg"), 0)["counters"] == counters
