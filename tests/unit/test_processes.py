"""Which program image a pid was running: fork, exec, reuse, and what came before."""

import os

from bpflame.bpf.mapping_ring import Executed, Exited, Forked, Mapped
from bpflame.profilers.files import FileKeeper
from bpflame.profilers.processes import ProcessTracker
from bpflame.profilers.procfs import executable_mappings
from bpflame.raw import AbsoluteAddress, AddressSpace


def mapped(time: int, pid: int, start: int, path: str) -> Mapped:
    return Mapped(time, pid, start, start + 0x1000, 0, 1, b"", path)


def tracker(**options: object) -> ProcessTracker:
    return ProcessTracker(FileKeeper(), **options)  # type: ignore[arg-type]


def path_at(space: AddressSpace | None, address: int) -> str | None:
    assert space is not None
    found = space.find(AbsoluteAddress(address))
    return found and found.file.path


def test_an_exec_begins_a_new_image() -> None:
    processes = tracker()
    processes.apply([mapped(5, 7, 0x1000, "/before"), Executed(10, 7)])
    processes.apply([mapped(11, 7, 0x1000, "/after")])
    assert path_at(processes.find(7, 0), 0x1800) == "/before"
    # BPF notes the exec a moment after the record that begins it.
    assert path_at(processes.find(7, 12), 0x1800) == "/after"


def test_a_fork_inherits_and_then_goes_its_own_way() -> None:
    processes = tracker()
    processes.apply([mapped(1, 7, 0x1000, "/lib"), Forked(10, 8, 7)])
    processes.apply([mapped(11, 7, 0x5000, "/parent"), mapped(12, 8, 0x5000, "/child")])
    assert path_at(processes.find(8, 10), 0x1000) == "/lib"
    assert path_at(processes.find(8, 10), 0x5000) == "/child"
    assert path_at(processes.find(7, 0), 0x5000) == "/parent"


def test_a_pid_that_is_used_again_is_another_process() -> None:
    processes = tracker()
    processes.apply([Forked(10, 8, 7), Executed(11, 8), mapped(12, 8, 0x1000, "/first")])
    processes.sampled([8])
    processes.apply([Exited(20, 8), Forked(30, 8, 7), Executed(31, 8)])
    processes.apply([mapped(32, 8, 0x1000, "/second")])
    processes.forget()
    assert path_at(processes.find(8, 11), 0x1000) == "/first"
    assert path_at(processes.find(8, 31), 0x1000) == "/second"


def test_processes_that_ended_without_samples_are_forgotten() -> None:
    processes = tracker()
    gone, sampled, alive = 1 << 29, 1 << 28, os.getpid()  # beyond any pid_max
    for pid in (gone, sampled, alive):
        processes.apply([Forked(1, pid, 7), Exited(2, pid)])
    processes.sampled([sampled])
    processes.forget()
    assert processes.find(gone, 1) is None
    assert processes.find(sampled, 1) is not None
    assert processes.find(alive, 1) is not None, "only its first thread has ended"


def test_an_old_process_whose_note_was_lost_has_its_last_image() -> None:
    processes = tracker()
    processes.apply([mapped(1, 7, 0x1000, "/parent"), Forked(2, 8, 7), Executed(3, 8)])
    processes.apply([mapped(4, 8, 0x1000, "/new")])
    assert path_at(processes.find(8, 0), 0x1000) == "/new"


def test_a_file_that_one_process_has_lost_is_kept_by_another() -> None:
    files = FileKeeper()
    try:
        mapping = next(
            m for m in executable_mappings(os.getpid()) or () if "/libc.so" in m.file.path
        )
        files.keep(1 << 29, mapping)
        assert mapping.file not in files.files
        files.keep(os.getpid(), mapping)
        assert os.fstat(files.files[mapping.file]).st_ino == os.stat(mapping.file.path).st_ino
    finally:
        files.close()


def test_only_targets_and_their_children_are_followed() -> None:
    processes = tracker(only=[7], children=True)
    processes.apply([Forked(1, 8, 7), Forked(2, 9, 8), Forked(3, 11, 10)])
    assert processes.find(8, 1) is not None
    assert processes.find(9, 2) is not None
    assert processes.find(11, 3) is None
    alone = tracker(only=[7])
    alone.apply([Forked(1, 8, 7)])
    assert alone.find(8, 1) is None
