"""The words around the picture: its title, and where the profile comes from."""

from __future__ import annotations

import time

from bpflame.flamegraph.layout import Layout
from bpflame.flamegraph.units import counted, format_value, percent
from bpflame.profile import Metadata, Profile

_TITLES = {
    "cpu": "CPU flame graph",
    "offcpu": "Off-CPU flame graph",
    "wakeup": "Wakeup flame graph",
    "offwake": "Off-CPU and waker flame graph",
    "chain": "Wake chain flame graph",
}
# Counters that tell of something missing or uncertain; the rest is for the audit line.
_LOSSES = ("lost_", "missed_", "refused_", "truncated_", "unknown_")


def title(profile: Profile) -> str:
    """The recording's own title, or that of its kind."""
    return profile.meta.title or _TITLES.get(profile.kind, f"{profile.kind} flame graph")


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
        f"{name.replace('_', ' ')}: {number:,}"
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


def _amount(profile: Profile) -> str:
    if not profile.total:
        return ""
    amount = format_value(profile.total, profile.unit)
    return f"{amount} in total" if profile.unit == "ns" else amount


def _event(meta: Metadata) -> str:
    event = meta.event
    if meta.frequency:
        event = f"{event or 'sampled'} at {meta.frequency:,} Hz"
    if meta.cpus:
        event = f"{event} on {counted(meta.cpus, 'CPU')}".lstrip()
    return event
