import gzip
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.errors import InputError
from bpflame.profile import Frame, FrameKind, Metadata, Profile, Reason, Sample, Task
from bpflame.profile_file import read_profile, write_profile

text = st.text(st.characters(codec=None), max_size=12)
numbers = st.integers(0, 2**63)
frames = st.builds(
    Frame, text, st.sampled_from(FrameKind), text, text, st.integers(0, 9999),
    st.none() | st.sampled_from(Reason),
)  # fmt: skip
tasks = st.none() | st.builds(Task, numbers, numbers, text, text)
samples = st.builds(Sample, st.lists(frames, max_size=6).map(tuple), numbers, tasks)
metas = st.builds(
    Metadata, text, text, text, text, st.integers(0, 4096), text, numbers,
    st.floats(0, 1e10), st.floats(0, 1e6), st.dictionaries(text, numbers, max_size=3),
)  # fmt: skip
profiles = st.builds(Profile, text, text, st.lists(samples, max_size=8).map(tuple), metas)


def packed(profile: Profile) -> bytes:
    out = io.BytesIO()
    write_profile(profile, out)
    return out.getvalue()


@given(profiles)
def test_what_is_written_is_read_back(profile: Profile) -> None:
    data = packed(profile)
    assert read_profile(io.BytesIO(data), "x") == profile
    assert packed(profile) == data


def test_deep_stacks() -> None:
    deep = tuple(Frame(f"f{i}") for i in range(20_000))
    profile = Profile("cpu", "samples", (Sample(deep, 1), Sample(deep[:-1], 2)))
    assert read_profile(io.BytesIO(packed(profile)), "x") == profile


def document(**changes: Any) -> bytes:
    whole = {
        "bpflame": 1, "kind": "cpu", "unit": "samples", "meta": {},
        "frames": [["f", "user", "", "", 0, None]], "tasks": [None],
        "stacks": [[-1, 0]], "samples": [[0, 0, 1]], **changes,
    }  # fmt: skip
    return gzip.compress(json.dumps(whole).encode())


def test_the_least_that_is_a_profile() -> None:
    profile = read_profile(io.BytesIO(document()), "x")
    assert profile.samples == (Sample((Frame("f"),), 1),)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "damaged"),
        (b"\x1f\x8b", "not a bpflame profile"),
        (b"\x1f\x8b" + bytes(40), "not a bpflame profile"),
        (document()[:-9], "not a bpflame profile"),
        (gzip.compress(b"{"), "damaged"),
        (gzip.compress(b"[" * 100_000), "damaged"),
        (gzip.compress(b"[]"), "damaged"),
        (document(bpflame=2), "version 2"),
        (document(frames=[["f", "odd", "", "", 0, None]]), "damaged"),
        (document(frames=[["f"]]), "damaged"),
        (document(stacks=[[0, 0]]), "damaged"),
        (document(stacks=[[-1, 1]]), "damaged"),
        (document(stacks=[[-1, -1]]), "damaged"),
        (document(samples=[[1, 0, 1]]), "damaged"),
        (document(samples=[[0, -1, 1]]), "damaged"),
        (document(samples=[[0, 0, -1]]), "damaged"),
        (document(samples=[[0, 0, 1.5]]), "damaged"),
        (document(meta=3), "damaged"),
        (document(meta=[]), "damaged"),
        (document(meta={"start": 1e300}), "out of range"),
        (document(meta={"start": float("nan")}), "out of range"),
        (document(meta={"duration": -1}), "out of range"),
        (document(frames=[["f", "user", "", "", float("inf"), None]]), "damaged"),
        (document(tasks=[[float("inf"), 0, "", ""]]), "damaged"),
    ],
)
def test_damage_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^run\.bpflame: .*{problem}"):
        read_profile(io.BytesIO(data), "run.bpflame")
