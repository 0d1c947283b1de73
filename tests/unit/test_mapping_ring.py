"""The kernel's records of mappings, from the real ring."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bpflame.bpf.cpus import online_cpus
from bpflame.bpf.mapping_ring import Executed, Exited, Forked, Mapped, MappingRings

pytestmark = pytest.mark.bpf


@pytest.fixture
def rings() -> Iterator[MappingRings]:
    made = MappingRings(online_cpus())
    yield made
    made.close()


def test_a_process_from_fork_to_exit(rings: MappingRings) -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "exec /bin/true"])
    process.wait()
    events = rings.read(time.monotonic_ns())
    mine = [event for event in events if event.pid == process.pid]
    kinds = [type(event) for event in mine]
    assert kinds[0] is Forked
    assert mine[0] == Forked(mine[0].time, process.pid, os.getpid())
    assert kinds.count(Executed) == 2
    assert kinds[-1] is Exited
    files = {event.path for event in mine if isinstance(event, Mapped)}
    assert any("/libc.so.6" in path for path in files)
    assert "[vdso]" in files
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert rings.lost == 0


def test_what_is_younger_is_held_back_and_nothing_comes_twice(rings: MappingRings) -> None:
    subprocess.run(["/bin/true"], check=True)
    between = time.monotonic_ns()
    subprocess.run(["/bin/true"], check=True)
    early = rings.read(between)
    late = rings.read(time.monotonic_ns())
    assert all(event.time <= between for event in early)
    assert all(event.time > between for event in late)
    assert {e.pid for e in early if isinstance(e, Forked)}.isdisjoint(
        {e.pid for e in late if isinstance(e, Forked)}
    )


def test_a_ring_that_is_full_says_what_it_lost() -> None:
    small = MappingRings(online_cpus(), size=4096)
    try:
        for _ in range(30):
            subprocess.run([sys.executable, "-S", "-c", ""], check=True)
        small.read(time.monotonic_ns())
        subprocess.run(["/bin/true"], check=True)  # the loss is told with the next record
        subprocess.run(["taskset", "-c", "0", "/bin/true"], check=True)
        subprocess.run(["taskset", "-c", str(online_cpus()[-1]), "/bin/true"], check=True)
        small.read(time.monotonic_ns())
        assert small.lost > 0
    finally:
        small.close()
