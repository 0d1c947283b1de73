"""The words around the picture: its title, and where the profile comes from."""

from __future__ import annotations

import time
from typing import NamedTuple

from bpflame.flamegraph.layout import Layout
from bpflame.flamegraph.units import counted, format_value, percent
from bpflame.profile import BLOCKED, PARTIAL, PREEMPTED, RUN_QUEUE, Metadata, Profile

WAITS = {
    BLOCKED: "waits for something other than a CPU",
    RUN_QUEUE: "ready to run, waits for a CPU",
    PREEMPTED: "ready to run, another thread was given the CPU",
    PARTIAL: "began before the recording, or went on after it",
}
"""What the names of waits mean."""


class _Words(NamedTuple):
    """The words for a kind of profile: its title, what an empty one lacks, what times sum up to."""

    title: str
    none: str = "No samples"
    total: str = "in total"


_KINDS = {
    "cpu": _Words("CPU flame graph"),
    "offcpu": _Words("Off-CPU flame graph", "No waits", "of waiting in total"),
    "wakeup": _Words("Wakeup flame graph", "No wakeups", "in total until woken"),
    "offwake": _Words("Off-CPU and waker flame graph", "No waits", "of waiting in total"),
    "chain": _Words("Wake chain flame graph", "No waits", "of waiting in total"),
}
_EVENTS = {"sched_switch": "context switches"}
# Counters that tell of something missing or uncertain; the rest is for the audit line.
_LOSSES = ("lost_", "missed_", "refused_", "truncated_", "unknown_", "partial_")
_NANOSECONDS = "_ns"


def title(profile: Profile) -> str:
    """The recording's own title, or that of its kind."""
    return profile.meta.title or _words(profile).title


def nothing(profile: Profile) -> str:
    """What to say in place of a picture that has nothing to show."""
    return _words(profile).none


def origin(profile: Profile) -> list[str]:
    """Phrases that say what was recorded, where, how and how much."""
    meta = profile.meta
    phrases = [
        meta.target,
        ", ".join(filter(None, (meta.host, meta.kernel and f"Linux {meta.kernel}"))),
        _event(meta),
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(meta.start)) if meta.start else "",
        f"recorded for {meta.duration:,.1f} s" if meta.duration else "",
        _amount(profile),
    ]
    return [phrase for phrase in phrases if phrase]


def losses(profile: Profile, layout: Layout, minwidth: float) -> list[str]:
    """Phrases that say what the recording lost, and what the picture leaves out.

    Args:
        profile: For the counters of its recording.
        layout: For the frames it hides.
        minwidth: The least width of a box, in pixels.
    """
    phrases = [
        _counter(name, number, profile.unit)
        for name, number in sorted(profile.meta.counters.items())
        if number and name.startswith(_LOSSES)
    ]
    if layout.hidden_frames:
        share = percent(layout.hidden_value, profile.total)
        phrases.append(
            f"{counted(layout.hidden_frames, 'frame')} narrower than {minwidth:g} px"
            f" not drawn ({share})"
        )
    return phrases


def _words(profile: Profile) -> _Words:
    return _KINDS.get(profile.kind) or _Words(f"{profile.kind} flame graph")


def _amount(profile: Profile) -> str:
    if not profile.total:
        return ""
    amount = format_value(profile.total, profile.unit)
    if profile.unit == "ns":
        amount = f"{amount} {_words(profile).total}"
    return amount


def _counter(name: str, number: int, unit: str) -> str:
    if name.endswith(_NANOSECONDS) or (name == "lost_value" and unit == "ns"):
        amount = format_value(number, "ns")
    else:
        amount = f"{number:,}"
    return f"{name.removesuffix(_NANOSECONDS).replace('_', ' ')}: {amount}"


def _event(meta: Metadata) -> str:
    event = _EVENTS.get(meta.event, meta.event)
    if meta.frequency:
        event = f"{event or 'sampled'} at {meta.frequency:,} Hz"
    if meta.cpus:
        event = f"{event} on {counted(meta.cpus, 'CPU')}".lstrip()
    return event
