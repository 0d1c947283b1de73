"""What every command does with a finished profile: write it, and say what it is worth."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO

from bpflame.flamegraph.units import format_value
from bpflame.output import FOLDED, SVG, Output
from bpflame.profile import Profile
from bpflame.profile_file import write_profile

_NO_SAMPLES = {
    "cpu": "nothing of what was asked for ran on a CPU in that time "
    "(what sleeps or waits has no CPU samples)",
    "wakeup": "nobody woke anything of what was asked for in that time",
}
_NO_WAITS = "nothing of what was asked for waited in that time"
_UNNAMED, _TRUNCATED = "unnamed: ", "truncated: "
# Counters, and what the audit line says of them: numbers, and shares of the time.
_EVENTS = (
    ("lost_stacks", "stacks without room"),
    ("lost_threads", "threads without room"),
    ("lost_wakers", "wakers without room"),
    ("lost_mappings", "mapping records lost"),
    ("dropped_copies", "stack copies without room"),
    ("crowded_processes", "processes with more mappings than fit"),
    ("table_room", "unwind tables without room"),
    ("files_without_table", "files without an unwind table"),
    ("lost_children", "new processes not followed"),
    ("missed_ends", "waits whose end was not seen"),
    ("negative_waits", "waits of negative length dropped"),
    ("filtered_waits", "waits of other lengths left out"),
    ("truncated_sleepers", "threads that slept before with stacks cut short"),
    ("unfinished_waits", "waits still going on at the end"),
    ("mistaken", "kernel stacks mistaken"),
    ("reopened_cpus", "CPUs sampled again after they came online"),
    ("own_samples", "of bpflame itself left out"),
)
_SHARES = (
    ("unknown_waker_ns", "without a known waker"),
    ("partial_ns", "in waits seen in part"),
)


def no_samples(kind: str) -> str:
    """Why a profile of a kind may be empty."""
    return _NO_SAMPLES.get(kind, _NO_WAITS)


def write(profile: Profile, output: Output, by: str) -> None:
    """Write a profile in the form that the output asks for.

    Args:
        profile: Without root frames for its tasks.
        output: Where to.
        by: What the root frame tells apart; pictures and folded text have it, recordings keep all.

    Raises:
        UsageError: The recording did not keep what ``by`` asks for.
        BpflameError: The file cannot be written.
    """

    def writer(out: IO[bytes]) -> None:
        if output.kind not in (SVG, FOLDED):
            write_profile(profile, out)
            return
        # Not before something was recorded: svgwrite takes a while to load.
        from bpflame.flamegraph.folded import write_folded
        from bpflame.flamegraph.transforms import group_by

        text = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace", newline="\n")
        grouped = group_by(profile, by)
        if output.kind == SVG:
            from bpflame.flamegraph.svg import SvgOptions, write_svg

            write_svg(grouped, text, SvgOptions(empty_reason=no_samples(profile.kind)))
        else:
            write_folded(grouped, text)
        text.flush()
        text.detach()

    output.write(writer)


def audit(profile: Profile) -> str:
    """The line that every recording ends with: nothing is lost in silence."""
    meta, count = profile.meta, profile.meta.counters
    samples = count.get("samples", 0)
    lost = count.get("lost_samples", 0)
    stacks = len({sample.stack for sample in profile.samples})
    waits = profile.unit == "ns"
    parts = [
        f"{samples:,} {'waits' if waits else 'samples'} in {meta.duration:.1f} s"
        f" on {meta.cpus} CPUs",
        f"{lost:,} lost" + (f" ({lost / samples:.1%})" if lost and samples else ""),
        f"{stacks:,} stacks",
    ]
    if waits:
        parts.insert(1, f"{format_value(profile.total, 'ns')} of waiting")
    if count.get("sample_one_in"):
        parts.insert(1, f"one in {count['sample_one_in']} followed")
    parts += [f"{count[name]:,} {text}" for name, text in _EVENTS if count.get(name)]
    parts += [
        f"{count[name] / profile.total:.2%} of the time {text}"
        for name, text in _SHARES
        if count.get(name) and profile.total
    ]
    parts += [*_unwound(count), _unnamed(count)]
    return "; ".join(parts)


def _unwound(count: Mapping[str, int]) -> list[str]:
    """How user stacks ended."""
    told, untold = count.get("user_stacks", 0), count.get("untold_stacks", 0)
    whole, guessed = count.get("complete_stacks", 0), count.get("guessed_stacks", 0)
    parts = []
    if told and whole == told:
        parts.append("all user stacks whole")
    elif told:
        why = _reasons(count, _TRUNCATED, told)
        parts.append(f"{_share(whole, told)} of user stacks whole ({why})")
    if guessed:
        parts.append(
            f"{_share(guessed, told)} with frames by frame pointer"
            " (JIT code, code without unwind tables)"
        )
    if untold:
        share = f"{_share(untold, told + untold)} of " if told else ""
        parts.append(f"{share}user stacks along frame pointers")
    return parts


def _unnamed(count: Mapping[str, int]) -> str:
    frames, unnamed = count.get("frames", 0), count.get("unnamed_frames", 0)
    if not unnamed:
        return "all frames named"
    why = _reasons(count, _UNNAMED, frames)
    return f"{_share(unnamed, frames)} of frames without a name ({why})"


def _reasons(count: Mapping[str, int], prefix: str, whole: int) -> str:
    """The two greatest counters that begin with ``prefix``, as shares."""
    found = {
        name.removeprefix(prefix): value for name, value in count.items() if name.startswith(prefix)
    }
    top = sorted(found, key=lambda reason: (-found[reason], reason))[:2]
    return ", ".join(f"{reason}: {_share(found[reason], whole)}" for reason in top)


def _share(part: int, whole: int) -> str:
    """A percentage; what is neither none nor all does not read so."""
    text = f"{part / whole:.1%}"
    if text == "0.0%" and part:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and part < whole else text


def summary(profile: Profile, output: Output, exit_code: int) -> dict[str, object]:
    """The same for machines: ``--json``; docs/format.md describes the fields."""
    meta = profile.meta
    return {
        "schema": 1,
        "kind": profile.kind,
        "unit": profile.unit,
        "output": output.path,
        "target": meta.target,
        "host": meta.host,
        "kernel": meta.kernel,
        "cpus": meta.cpus,
        "event": meta.event,
        "frequency": meta.frequency,
        "start": meta.start,
        "duration": meta.duration,
        "total": profile.total,
        "stacks": len({sample.stack for sample in profile.samples}),
        "counters": dict(meta.counters),
        "exit_code": exit_code,
    }
