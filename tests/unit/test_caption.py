from __future__ import annotations

import pytest

from bpflame.flamegraph import caption
from bpflame.flamegraph.layout import Layout
from bpflame.profile import WAITS, Frame, Metadata, Profile, Sample

WHOLE = Layout([], 0, 0, 0)


def losses(unit: str, **counters: int) -> list[str]:
    return caption.losses(Profile("x", unit, (), Metadata(counters=counters)), WHOLE, 0.1)


@pytest.mark.parametrize(
    ("kind", "unit", "text"),
    [
        ("cpu", "samples", "1,500 samples"),
        ("cpu", "ns", "1.50 µs in total"),
        ("offcpu", "ns", "1.50 µs of waiting in total"),
        ("wakeup", "ns", "1.50 µs in total until woken"),
        ("offwake", "ns", "1.50 µs of waiting in total"),
        ("chain", "ns", "1.50 µs of waiting in total"),
        ("unheard-of", "ns", "1.50 µs in total"),
    ],
)
def test_the_total_says_what_it_sums(kind: str, unit: str, text: str) -> None:
    assert caption.origin(Profile(kind, unit, (Sample((Frame("main"),), 1500),))) == [text]


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (Metadata(event="cycles", frequency=999, cpus=1), "cycles at 999 Hz on 1 CPU"),
        (Metadata(event="sched_switch", cpus=4), "context switches on 4 CPUs"),
        (Metadata(event="sched_switch"), "context switches"),
        (Metadata(event="other", cpus=4), "other on 4 CPUs"),
        (Metadata(cpus=4), "on 4 CPUs"),
    ],
)
def test_events(meta: Metadata, text: str) -> None:
    assert caption.origin(Profile("offcpu", "ns", (), meta)) == [text]


def test_losses_in_time_read_as_time() -> None:
    counters = {
        "waits": 9,
        "blocked_ns": 9,
        "unknown_waker_ns": 1_500_000_000,
        "partial_ns": 2_000_000,
        "lost_ns": 0,
        "lost_wakers": 1234,
        "lost_value": 20_000,
    }
    assert losses("ns", **counters) == [
        "lost value: 20.00 µs",
        "lost wakers: 1,234",
        "partial: 2.00 ms",
        "unknown waker: 1.50 s",
    ]
    assert losses("samples", lost_value=20_000) == ["lost value: 20,000"]


def test_every_wait_is_explained() -> None:
    assert tuple(caption.WAITS) == WAITS


@pytest.mark.parametrize("kind", ["cpu", "offcpu", "wakeup", "offwake", "chain", "unheard-of"])
def test_every_kind_has_a_title(kind: str) -> None:
    profile = Profile(kind, "ns", ())
    assert caption.title(profile).endswith("flame graph")
    assert caption.nothing(profile).startswith("No ")
