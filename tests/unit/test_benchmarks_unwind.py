"""What the benchmarks of unwinding make of their measurements. No timing."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from benchmarks import completeness, table_report, tracers, walk_costs, walk_times, walks
from benchmarks.errors import BenchmarkError
from benchmarks.roots import Rooted, in_folded, in_perf_script
from benchmarks.subjects import SUBJECTS, Subject, descendants
from benchmarks.table_processes import Recorded, recorded
from benchmarks.tables import COLD, WARM, distinct, size_of
from benchmarks.targets import TARGETS
from bpflame.profilers.unwind_choice import Unwind

CALLED = frozenset({("libc.so.6", 0x891F4)})


def test_roots_of_folded_stacks() -> None:
    text = (
        "a b;_start;__libc_start_main;main;f;read_[k] 10\n"
        "a;[libc.so.6+0x1098eb];[libc.so.6+0x891f4];run_thread 5\n"
        "a;[truncated: no mapping];f;g 3\n"
        "a;[other.so+0x891f4];f 2\n"
        "kworker;ret_from_fork_[k];kthread_[k] 100\n"
    )
    assert in_folded(text, CALLED) == Rooted(stacks=20, rooted=15, frames=4 * 10 + 3 * 5 + 6 + 4)
    assert in_folded("", CALLED) == Rooted(0, 0, 0)


def test_a_root_is_looked_for_at_the_outer_end_only() -> None:
    inner = ";".join(["f"] * 6 + ["main"])
    assert in_folded(f"a;{inner} 1\n", CALLED).rooted == 0
    assert in_folded(f"a;{inner[2:]} 1\n", CALLED).rooted == 1


def test_roots_of_perf_script() -> None:
    text = (
        "deep \n"
        "\tffffffff81000010 do_syscall_64 ([kernel.kallsyms])\n"
        "\t            1b69 operator()(int) const (/tmp/a (deleted))\n"
        "\t           891f4 [unknown] (/usr/lib/x86_64-linux-gnu/libc.so.6)\n\n"
        "deep \n"
        "\t            1b69 descend (/tmp/deep)\n\n"
        "deep \n"
        "\tffffffff81000010 schedule ([kernel.kallsyms])\n\n"
    )
    assert in_perf_script(text, CALLED) == Rooted(stacks=2, rooted=1, frames=3)


def summary(**counters: int) -> str:
    return "printed by the workload\n" + json.dumps({"counters": {"samples": 7, **counters}}) + "\n"


def test_what_bpflame_states_is_a_share_of_what_it_can_tell() -> None:
    text = summary(user_stacks=200, complete_stacks=190, **{"truncated: no table": 10})
    found = completeness.stated(text, Rooted(100, 50, 900))
    assert (found.samples, found.whole, found.at_root) == (7, 0.95, 0.5)
    assert found.why == {"no table": 0.05}


def test_along_frame_pointers_nothing_is_stated() -> None:
    found = completeness.stated(summary(untold_stacks=200), Rooted(100, 0, 100))
    assert (found.whole, found.why, found.at_root) == (None, {}, 0.0)


def test_no_stacks_at_all_are_a_failure_of_the_recording() -> None:
    with pytest.raises(BenchmarkError, match="no user stacks"):
        completeness.stated(summary(), Rooted(0, 0, 0))
    with pytest.raises(BenchmarkError, match="not a summary"):
        completeness.stated("Killed\n", Rooted(1, 1, 1))


def completeness_rows(stated: float, at_root: int) -> completeness.Rows:
    found = completeness.Found(100, Rooted(1000, at_root, 9000), stated, {"no table": 1 - stated})
    return {
        (subject, tool): [found]
        for subject in SUBJECTS
        for tool in completeness.tools(subject)
        if tool in (completeness.CPU, completeness.OFFCPU)
    }


def test_the_worse_of_what_is_stated_and_what_is_seen_counts() -> None:
    for stated, at_root, missing in ((0.99, 1000, 1.0), (1.0, 980, 2.0), (0.97, 980, 3.0)):
        result = completeness.result(completeness_rows(stated, at_root), ["nginx"], 1)
        medians = [figure.median for figure in result.figures.values()]
        assert medians == [pytest.approx(missing)] * 4
        assert "Not installed: nginx." in result.text()


def test_a_peer_that_always_fails_has_a_row_without_figures() -> None:
    subject = Subject("x", ("true",))
    rows: completeness.Rows = {(subject, completeness.PERF): []}
    assert "it fails" in completeness.result(rows, [], 1).text()


def test_subjects_have_names_of_their_own_and_something_to_record() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)
    for subject in SUBJECTS:
        assert completeness.tools(subject)
        assert bool(subject.line) != (subject.service is not None)
    assert Subject("x", needs=("sh", "no-such-program")).missing() == "no-such-program"


def test_commands_of_the_three() -> None:
    output = Path("/x/out")
    for tool, words in (
        (completeness.CPU, {"cpu", "dwarf", "--max-depth", "511", "-F"}),
        (completeness.OFFCPU, {"offcpu", "dwarf", "511"}),
        (completeness.FP, {"cpu", "fp"}),
        (completeness.PERF, {"record", "dwarf,16384", "--buildid-mmap"}),
    ):
        assert words <= set(completeness.command(tool, output, 511))


def test_descendants_begin_with_the_process() -> None:
    assert descendants(os.getpid())[0] == os.getpid()
    assert os.getpid() in descendants(os.getppid())


def test_percentiles_of_a_histogram() -> None:
    counts = [0, 0, 4, 0, 4]
    assert walk_times.percentile(counts, 0.25) == pytest.approx(2.5)
    assert walk_times.percentile(counts, 0.5) == pytest.approx(3.0)
    assert walk_times.percentile(counts, 1.0) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="no measurements"):
        walk_times.percentile([0, 0], 0.5)


def test_our_commands_end_to_end_differ_in_the_unwinding_only() -> None:
    output = Path("/x/out")
    for work in walk_costs.WORKS:
        lines = [
            tracers.command(walk_costs.command(work, tool), output, 0)
            for tool in (walk_costs.FP, walk_costs.DWARF)
        ]
        assert [word for word in lines[0] if word not in lines[1]] == ["fp"]
    perf = tracers.command(walk_costs.command("pingpong", walk_costs.PERF), output, 0)
    assert {"-a", "sched:sched_switch", "dwarf,16384", "/x/out"} <= set(perf)


def test_bpflame_cpu_is_attached_when_its_events_are_there(tmp_path: Path) -> None:
    (tmp_path / "fd").mkdir()
    line = walk_costs.command("cpu", walk_costs.DWARF)
    assert not tracers.is_attached(line, tmp_path)
    for fd in range(os.cpu_count() or 1):
        (tmp_path / "fd" / str(fd)).symlink_to("anon_inode:[perf_event]")
    assert tracers.is_attached(line, tmp_path)


def walks_result() -> walks.Result:
    times = walk_times.Times(100, 35.0, (120.0, 140.0), (4000.0, 5000.0), 1.0)
    worse = walk_times.Times(100, 3.0, (200.0, 300.0), (600.0, 700.0), 1.0)
    event = walk_times.Event(1000, 5500.0, 35.0, 9.0)
    use = tracers.Use(peak=1_500_000, kernel=2_500_000, cpu=0.25, written=3_000, lost=1)
    names = {
        (name, f"{name}: {unwind.value}{build}")
        for name in walks.EVENTS
        for unwind, build in walks.BUILDS
    }
    return walks.result(
        {place: [worse if place[0] == "perl" else times] for place in walks.WALKED},
        {name: [event] for name in names},
        {
            (work, tool): [walk_costs.Cost(0.9, use)]
            for work in walk_costs.WORKS
            for tool in walk_costs.TOOLS
        },
        {(name, unwind): [(0.9, 0.2)] for name in walks.OPTIONS for unwind in Unwind},
        {Unwind.DWARF: [0.6], Unwind.FP: [0.5]},
        1,
    )


def test_every_target_of_the_walks_is_measured() -> None:
    result = walks_result()
    targets = {target.figure for target in TARGETS if target.figure.startswith("walks")}
    assert len(targets) == 14
    assert targets <= set(result.figures)
    assert result.figures["walks: a frame of the worst at a tick, ns"].median == 200
    assert result.figures["walks: first sample dwarf / fp"].median == pytest.approx(1.2)
    assert "5.50 [5.50, 5.50]" in result.text()


def test_every_target_of_the_tables_is_measured() -> None:
    found = table_report.Found()
    found.single["libc"] = [table_report.Single(1_000_000, 900_000, 0.3)]
    for state, seconds in ((COLD, 2.0), (WARM, 0.4)):
        loaded = table_report.Loaded(350, 1, seconds, 4000, 20_000_000, 19_000_000)
        found.loaded["350 libraries", state] = [loaded]
        found.loaded["all libraries and programs", state] = [loaded]
        found.recorded[state] = [Recorded(seconds, 20_000_000, 350, 1.0, 3.0, 10**8)]
    result = table_report.result(found, 1)
    targets = {target.figure for target in TARGETS if target.figure.startswith("tables")}
    assert len(targets) == 7
    assert targets <= set(result.figures)
    assert result.figures["tables: 700 libraries cold, s"].median == pytest.approx(4.0)
    assert result.figures[f"{table_report.ROWS}, the worst file"].median == pytest.approx(0.3)


def test_targets_of_completeness_are_measured() -> None:
    figures = completeness.result(completeness_rows(1.0, 1000), [], 1).figures
    targets = {target.figure for target in TARGETS if target.figure.startswith("completeness")}
    assert targets == set(figures)


def test_what_a_recording_says_of_tables() -> None:
    counters = {"unwind_table_ms": 1500, "unwind_table_bytes": 9, "unwind_tables": 3}
    text = json.dumps({"counters": {**counters, "user_stacks": 10, "complete_stacks": 9}})
    assert recorded(text, 2.0, 5) == Recorded(1.5, 9, 3, 0.9, 2.0, 5)
    for bad in ("", "{}", json.dumps({"counters": counters})):
        with pytest.raises(BenchmarkError):
            recorded(bad, 2.0, 5)


def test_files_are_counted_once_for_each_build_id(tmp_path: Path) -> None:
    with open("/proc/self/exe", "rb") as file:
        program = file.read()
    for name in ("one", "two", "three.debug"):
        (tmp_path / name).write_bytes(program)
    (tmp_path / "link").symlink_to("one")
    (tmp_path / "text").write_text("no ELF file")
    (tmp_path / "short").write_bytes(struct.pack("<4sB", b"\x7fELF", 2))
    assert [path.name for path in distinct([tmp_path]).values()] == ["one"]
    assert size_of(tmp_path) == 3 * len(program) + len("no ELF file") + 5
