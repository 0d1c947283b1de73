"""Values on the command line: what they mean, and what is refused."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame import arguments
from bpflame.commands import sched, stacks
from bpflame.profilers.sched import MAX_WAKERS


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("100", 100_000),
        ("1", 1_000),
        ("100us", 100_000),
        ("1ms", 1_000_000),
        ("1.5ms", 1_500_000),
        (".5ms", 500_000),
        ("2s", 2_000_000_000),
        ("2.5s", 2_500_000_000),
        ("1.5", 1_500),
        (".5", 500),
        ("3m", 180_000_000_000),
        ("1h", 3_600_000_000_000),
        ("0001", 1_000),
    ],
)
def test_a_length_of_time_without_a_unit_is_in_microseconds(text: str, ns: int) -> None:
    assert arguments.wait_length(text) == ns


@given(st.integers(1, 10**12) | st.decimals(1, 10**6, places=2))
def test_a_bare_number_of_any_size_is_in_microseconds(number: object) -> None:
    assert arguments.wait_length(f"{number}") == arguments.wait_length(f"{number}us")


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1 ms", "1ns", "ms", "1e3", "inf", "nan", "1,5ms", "²", "10000000h"]
)
def test_what_is_no_length_of_time_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a length of time") as caught:
        arguments.wait_length(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["0", "0us", "0ms", "0s"])
def test_a_wait_of_no_length_is_no_minimum_and_no_maximum(text: str) -> None:
    assert arguments.shortest_wait(text) == 0
    with pytest.raises(argparse.ArgumentTypeError, match="not a length of time"):
        arguments.wait_length(text)


def test_the_shortest_wait_is_a_length_of_time_like_another() -> None:
    assert arguments.shortest_wait("10") == 10_000
    with pytest.raises(argparse.ArgumentTypeError, match="not a length of time: '0x'"):
        arguments.shortest_wait("0x")


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("1.5", 1.5), ("500ms", 0.5)])
def test_a_duration_without_a_unit_is_in_seconds(text: str, seconds: float) -> None:
    assert arguments.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "n"), [("1/10", 10), ("10", 10), ("1/1", 1), ("1/999999", 999999)]
)
def test_one_in_so_many(text: str, n: int) -> None:
    assert arguments.one_in(text) == n


@pytest.mark.parametrize(
    "text", ["", "0", "1/0", "-1", "1/-1", "2/3", "1/", "/1", "0.5", "1/10 ", "1000000", "x"]
)
def test_what_is_not_one_in_so_many_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not one in so many") as caught:
        arguments.one_in(text)
    assert repr(text) in str(caught.value)


def test_states_are_those_of_ps_each_once_in_the_order_given() -> None:
    assert sched.states("D") == ("D",)
    assert sched.states("S,D,S") == ("S", "D")
    assert sched.states("T,t") == ("T", "t")


@pytest.mark.parametrize(("text", "bad"), [("X", "X"), ("S,Z", "Z"), ("s", "s"), ("SD", "SD")])
def test_an_unknown_state_is_named_with_those_that_are_known(text: str, bad: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        sched.states(text)
    assert f"not a state: {bad!r}" in str(caught.value)
    assert "R, S, D, T, t, P, I" in str(caught.value)


@pytest.mark.parametrize("text", ["", "S,", ",S", "S D"])
def test_a_list_of_states_with_a_hole_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a state"):
        sched.states(text)


@given(st.from_regex(r"[0-9]{1,8}", fullmatch=True))
def test_a_depth_is_never_beyond_the_bounds(text: str) -> None:
    try:
        depth = sched.depth(text)
    except argparse.ArgumentTypeError:
        depth = 0
    assert depth == int(text) or not depth
    assert depth <= MAX_WAKERS


def test_all_depths_within_the_bounds_are_taken() -> None:
    assert [sched.depth(str(n)) for n in range(1, MAX_WAKERS + 1)] == [*range(1, MAX_WAKERS + 1)]


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", "1.0", "²", "٣", "00017", "000112345"])
def test_what_is_no_depth_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a depth from 1 to 16") as caught:
        sched.depth(text)
    assert repr(text) in str(caught.value)


def test_all_numbers_of_frames_within_the_bounds_are_taken() -> None:
    assert [stacks.max_depth(str(n)) for n in range(1, 512)] == [*range(1, 512)]


@pytest.mark.parametrize("text", ["", "0", "512", "-1", "+1", "1.0", "x", "²", "0127", "99999999"])
def test_what_is_no_number_of_frames_is_named(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match="not a number of frames from 1 to 511"
    ) as bad:
        stacks.max_depth(text)
    assert repr(text) in str(bad.value)
