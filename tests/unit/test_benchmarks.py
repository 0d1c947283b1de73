"""What the benchmarks make of their measurements: statistics, parsing, verdicts. No timing."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import machine, memory, peers, programs, switches, tracers
from benchmarks.errors import BenchmarkError, retried
from benchmarks.losses import bpflame_losses, bpftrace_losses, perf_losses
from benchmarks.report import Result, Table, document, verdicts
from benchmarks.samples import STAMP_RANGE, first_stamp, first_time, folded_counts, perf_samples
from benchmarks.stats import Spread, paired_ratios, slowdown, spread
from benchmarks.targets import TARGETS, Target

TIMES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


def ratio(median: float) -> Spread:
    return Spread(median, median, median, 1)


def test_spread_of_known_values() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 2)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


@given(TIMES)
def test_spread_is_ordered_and_within_the_values(values: list[float]) -> None:
    found = spread(values)
    assert found.median == pytest.approx(statistics.median(values))
    slack = 1e-9 * max(values)
    ordered = (min(values), found.low, found.median, found.high, max(values))
    assert all(a <= b + slack for a, b in itertools.pairwise(ordered))


def test_spread_of_nothing() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        spread([])


def test_spread_as_text_scales_every_number() -> None:
    assert Spread(0.5, 0.25, 0.75, 4).text(".0f", 1000) == "500 [250, 750]"
    assert Spread(0.01, -0.02, 0.03, 4).text("+.1f", 100) == "+1.0 [-2.0, +3.0]"


def test_ratios_are_of_pairs_not_of_medians() -> None:
    # The machine was ten times slower in the last round, for both.
    assert paired_ratios([1.0, 2.0, 20.0], [2.0, 4.0, 40.0]) == [0.5, 0.5, 0.5]


@given(TIMES)
def test_ratio_to_oneself_is_one(values: list[float]) -> None:
    assert paired_ratios(values, values) == [1.0] * len(values)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_ratios_that_make_no_sense(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_ratios(ours, theirs)


def test_slowdown_is_relative_to_both_runs_without() -> None:
    assert slowdown(1.0, 1.1, 1.0) == pytest.approx(0.1)
    assert slowdown(0.9, 1.0, 1.1) == pytest.approx(0.0)  # a drift is no overhead
    with pytest.raises(ValueError):
        slowdown(0.0, 1.0, 0.0)


def test_folded_counts_by_root_frame() -> None:
    text = "a b;main;x y 3\na b;main 2\nswapper 1\na b;f<int> (char);g 1\n"
    assert folded_counts(text) == {"a b": 6, "swapper": 1}
    assert folded_counts("") == {}


@pytest.mark.parametrize("line", ["main", "main;f x", " 3", "main 1.5"])
def test_what_is_not_folded_is_passed_over(line: str) -> None:
    assert folded_counts(f"a;main 1\n{line}\na;main 2\n") == {"a": 3}


def test_lines_end_at_a_newline_only() -> None:
    assert folded_counts("a\x0bb\u2028c;main 1\n") == {"a\x0bb\u2028c": 1}


def test_perf_samples_with_spaces_in_names() -> None:
    text = "       t000000012    12.345678: \n kworker/0:1-ev x 1  3.000001: \n :123  4.5:\n"
    assert perf_samples(text) == [
        ("t000000012", 12.345678),
        ("kworker/0:1-ev x 1", 3.000001),
        (":123", 4.5),
    ]
    assert perf_samples("\tffffffff8100 main\nnew\nline\n") == []


def test_first_stamp_is_the_smallest() -> None:
    names = ["t000012345", "t000012001", "swapper", "t12000", "t0000120000", "xt000012000"]
    assert first_stamp(names, 11.0) == pytest.approx(1.001)


def test_first_stamp_across_the_wrap() -> None:
    start = (STAMP_RANGE - 500) / 1000
    assert first_stamp(["t000000100", "t000000200"], start) == pytest.approx(0.6)


def test_stamp_of_the_starting_millisecond() -> None:
    assert first_stamp(["t000012345"], 12.3459) == 0.0


def test_stamp_from_before_the_start() -> None:
    with pytest.raises(BenchmarkError, match="before the start"):
        first_stamp(["t000012000", "t000013500"], 13.0)


def test_no_stamps() -> None:
    with pytest.raises(BenchmarkError, match="no sample"):
        first_stamp(["swapper"], 1.0)
    with pytest.raises(BenchmarkError, match="no sample"):
        first_time([("swapper", 5.0)], 1.0)


def test_first_time_ignores_other_threads_and_the_name() -> None:
    samples = [("swapper", 1.1), ("t000000001", 1.5), ("t000001500", 1.501)]
    assert first_time(samples, 1.0) == pytest.approx(0.5)


def test_what_the_programs_print() -> None:
    assert programs.parse_pair("1500000000 2000000000\n") == (1500000000, 2000000000)
    for text in ("", "1", "1 2 3", "0 5", "-1 5", "a b"):
        with pytest.raises(BenchmarkError):
            programs.parse_pair(text)


def test_peak_of_a_command_that_has_ended() -> None:
    assert programs.parse_peak("123\n2048\n1500000\n") == pytest.approx((2048 * 1024, 1.5))
    for text in ("", "123\n"):
        with pytest.raises(BenchmarkError):
            programs.parse_peak(text)


def test_units_grow_until_the_time_can_be_told() -> None:
    tried = []

    def seconds(units: int) -> float:
        tried.append(units)
        return units * 1e-4

    assert programs.units_for(2.0, seconds) == 20000
    assert tried == [100, 400, 1600, 6400]


def test_bytes_of_maps_count_each_map_once() -> None:
    one = "pos:\t0\nmap_type:\t1\nkey_size:\t4\nmemlock:\t4096\nmap_id:\t7\nfrozen:\t0\n"
    assert memory.map_bytes(one) == {"7": 4096}
    assert memory.map_bytes("pos:\t0\nflags:\t02\nmnt_id:\t15\n") == {}
    assert memory.map_bytes("prog_id:\t3\nmemlock:\t4096\n") == {}


def test_kernel_bytes_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "fdinfo").mkdir()
    for fd, number, size in ((3, 7, 4096), (4, 7, 4096), (5, 8, 1000)):
        (tmp_path / "fdinfo" / str(fd)).write_text(f"memlock:\t{size}\nmap_id:\t{number}\n")
    (tmp_path / "maps").write_text(
        "7f0000000000-7f0000081000 rw-s 00000000 00:10 9   anon_inode:[perf_event]\n"
        "7f1000000000-7f1000001000 r-xp 00000000 08:01 5   /usr/bin/perf\n"
    )
    assert memory.kernel_bytes(tmp_path) == 4096 + 1000 + 0x81000
    assert memory.kernel_bytes(tmp_path / "gone") == 0


def test_machine_from_cpuinfo() -> None:
    text = "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t\t: fpu sse hypervisor lm\n\n"
    assert machine.cpu_model(text) == "A CPU @ 3 GHz"
    assert machine.is_virtual(text)
    assert not machine.is_virtual(text.replace("hypervisor", "hypervisor_not"))


def test_newest_headers_with_their_common_part(tmp_path: Path) -> None:
    assert machine.find_headers(tmp_path) is None
    for version in ("6.1.0-9", "6.1.0-56"):
        for part in ("amd64", "common"):
            (tmp_path / f"linux-headers-{version}-{part}").mkdir()
    (tmp_path / "linux-headers-6.5.0-1-common").mkdir()  # the other half is not installed
    (tmp_path / "linux-headers-6.1.0-99-cloud-amd64").mkdir()
    stem = tmp_path / "linux-headers-6.1.0-56"
    assert machine.find_headers(tmp_path) == (Path(f"{stem}-amd64"), Path(f"{stem}-common"))


@pytest.mark.parametrize("tool", peers.TOOLS)
@pytest.mark.parametrize("seconds", [None, 3])
def test_commands_have_the_rate_and_the_length(tool: str, seconds: int | None) -> None:
    line = peers.command(tool, 997, seconds, Path("/x/out"))
    assert line[line.index("-F") + 1] == "997"
    assert ("3" in line) == (seconds is not None)
    assert ("/x/out" in line) == (tool != peers.BCC)


def test_perf_keeps_nothing_in_the_home_folder() -> None:
    line = peers.command(peers.PERF, 99, 1, Path("/x/perf.data"))
    assert line[:3] == ["perf", "--buildid-dir", "/x/buildid"]
    assert line[3] == "record"


@pytest.mark.parametrize("tool", tracers.OURS)
def test_our_commands_are_what_the_tables_call_them(tool: str) -> None:
    _, *line = tracers.command(tool, Path("/x/out"), 4321)
    assert line == [
        *tool.replace("OTHER", "4321").split()[1:],
        *("-q", "--json", "-o", "/x/out"),
    ]


def test_commands_of_the_other_tracers() -> None:
    line = tracers.command(tracers.PERF, Path("/x/perf.data"), 4321)
    assert line[line.index("-e") + 1] == "sched:sched_switch"
    assert {"-a", "-g", "/x/perf.data"} <= set(line)
    program = tracers.command(tracers.BPFTRACE, Path("/x/out"), 4321)[-1]
    assert "tracepoint:sched:sched_switch" in Path(program).read_text()


def process(folder: Path, events: int, fdinfo: str = "") -> Path:
    """A folder as in /proc, of a process with perf events and another file."""
    (folder / "fd").mkdir(parents=True)
    (folder / "fdinfo").mkdir()
    for fd in range(events):
        (folder / "fd" / str(fd)).symlink_to("anon_inode:[perf_event]")
    (folder / "fd" / "99").symlink_to("/dev/null")
    (folder / "fdinfo" / "99").write_text(fdinfo)
    return folder


def test_a_tracer_is_attached_when_its_last_event_is_there(tmp_path: Path) -> None:
    cpus = os.cpu_count() or 1
    none = process(tmp_path / "none", 0)
    some = process(tmp_path / "some", cpus)
    more = process(tmp_path / "more", cpus + 1)
    found = {
        tool: [tracers.is_attached(tool, folder) for folder in (none, some, more)]
        for tool in (tracers.PERF, tracers.BPFTRACE)
    }
    assert found == {tracers.PERF: [False, True, True], tracers.BPFTRACE: [False, False, True]}


def test_bpflame_is_attached_when_it_has_the_raw_tracepoint(tmp_path: Path) -> None:
    link = "pos:\t0\nlink_type:\traw_tracepoint\nprog_id:\t7\ntp_name:\tsched_{}\n"
    for name, attached in (("switch", True), ("process_fork", False)):
        folder = process(tmp_path / name, 9, link.format(name))
        assert tracers.is_attached(tracers.OFFCPU, folder) == attached
    assert not tracers.is_attached(tracers.OFFCPU, tmp_path / "gone")


def test_losses_of_bpflame_are_all_of_them_but_no_weight() -> None:
    counters = {"samples": 9, "lost_samples": 2, "lost_stacks": 3, "lost_value": 1000, "other": 4}
    assert bpflame_losses(json.dumps({"counters": counters})) == 5
    assert bpflame_losses('{"counters": {}}') == 0
    for text in ("", "{}", "[]", "bpflame: no"):
        with pytest.raises(BenchmarkError):
            bpflame_losses(text)


def perf_data(*records: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<IHH", kind, 0, 8 + len(rest)) + rest for kind, rest in records)
    head = b"PERFILE2" + bytes(32) + struct.pack("<QQ", 104, len(body))
    return head.ljust(104, b"\0") + body + b"features"


def test_losses_of_perf_are_not_counted_twice(tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    sample, lost, again = (9, bytes(24)), (2, struct.pack("<QQ", 77, 5)), (2, bytes(16))
    total = (13, struct.pack("<QQ", 6, 1))  # the last one was told by no record
    for records, expected in (
        ([sample], 0),
        ([lost, sample, lost, again], 10),
        ([sample, lost, total], 6),
    ):
        data.write_bytes(perf_data(*records))
        assert perf_losses(data) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PERFILE2",
        perf_data(),
        perf_data((9, bytes(24)))[:110],
        perf_data((2, b"")).removesuffix(b"features"),
        b"X" + perf_data((9, b""))[1:],
        perf_data((9, b"")).replace(struct.pack("<IHH", 9, 0, 8), bytes(8)),
    ],
)
def test_what_is_no_whole_perf_data(tmp_path: Path, content: bytes) -> None:
    data = tmp_path / "perf.data"
    data.write_bytes(content)
    with pytest.raises(BenchmarkError):
        perf_losses(data)


def test_losses_of_bpftrace() -> None:
    assert bpftrace_losses("Attaching 2 probes...\n@ns[\n]: 5\n") == 0
    messages = "Lost 12 events\nERROR: failed to look up stack id -17 (pid -1): -2\nLost 3 events\n"
    assert bpftrace_losses(messages) == 16


def test_added_time_is_shared_by_the_switches_under_the_tool() -> None:
    run = switches.run((0.9, 1000), (2.0, 2000), (1.1, 1000), use())
    assert run.added == pytest.approx(0.0005)
    assert run.loss == pytest.approx(0.5)


def use(lost: int = 0) -> tracers.Use:
    return tracers.Use(peak=1_500_000, kernel=2_500_000, cpu=0.25, written=3_000, lost=lost)


def switch_runs(added: float) -> switches.Runs:
    return {
        (kind, tool): [switches.Run(added, 0.5, use(3))] * 2
        for kind in switches.KINDS
        for tool in tracers.TOOLS
    }


def test_every_target_of_the_switches_is_measured() -> None:
    bare = {kind: [(1.0, 1000), (2.0, 1000)] for kind in switches.KINDS}
    found = switches.result(switch_runs(2e-6), bare, 2)
    targets = [target for target in TARGETS if target.figure.startswith("switches")]
    assert len(targets) == 11
    assert {target.figure for target in targets} <= set(found.figures)
    assert found.figures["switches locks: bpflame offcpu, ns"].median == pytest.approx(2000)
    assert found.figures["switches locks: perf record / bpftrace"].median == 1.0
    assert found.figures[switches.LOST].median == 2 * 6 * 2 * 3  # of bpflame's runs alone
    text = found.text()
    assert "+2000 [+2000, +2000]" in text
    assert "750 [625, 875]" in text


def test_no_ratio_to_what_adds_nothing() -> None:
    figures = switches.result(switch_runs(-1e-9), {}, 2).figures
    assert not any(" / " in name for name in figures)


def test_a_failure_is_tried_again_but_not_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    tries = []

    def fail(times: int) -> int:
        tries.append(times)
        if len(tries) <= times:
            raise BenchmarkError("it crashed")
        return len(tries)

    assert retried(lambda: fail(2)) == 3
    assert capsys.readouterr().err.count("it crashed") == 2
    tries.clear()
    with pytest.raises(BenchmarkError, match="it crashed"):
        retried(lambda: fail(9))
    assert len(tries) == 3


def test_tables_are_aligned() -> None:
    text = Table(("name", "ms"), (("a", "1"), ("longer", "1000"))).text()
    assert text.splitlines() == [
        "| name   |   ms |",
        "| ------ | ---: |",
        "| a      |    1 |",
        "| longer | 1000 |",
    ]


def test_a_target_is_met_below_its_limit_only() -> None:
    target = Target("fast", "x", 0.5)
    for median, verdict in ((0.49, "met"), (0.5, "MISSED"), (2.0, "MISSED")):
        row = target.verdict({"x": ratio(median)})
        assert row is not None
        assert row[-1] == verdict
    noisy = target.verdict({"x": Spread(0.51, 0.45, 0.6, 5)})
    assert noisy is not None
    assert noisy[-1] == "even, within the noise"
    assert target.verdict({"y": ratio(0.1)}) is None


def test_a_target_with_a_unit_may_reach_its_limit() -> None:
    target = Target("cheap", "x", 3000, "ns", at_most=True)
    for median, verdict in ((3000.0, "met"), (3000.5, "MISSED")):
        row = target.verdict({"x": ratio(median)})
        assert row == (
            "cheap",
            "<= 3,000 ns",
            f"{median:,.0f} [{median:,.0f}, {median:,.0f}]",
            verdict,
        )


def test_document_has_every_result_and_every_target() -> None:
    table = Table(("a", "b"), (("1", "2"),))
    results = [
        Result(
            "One",
            "By one.",
            (table,),
            {target.figure: ratio(2 * target.limit + 9) for target in TARGETS},
        ),
        Result("Two", "By two.", (table,), {}),
    ]
    text = document(results, "- kernel: 6")
    for part in ("## One", "By two.", "- kernel: 6", *(target.claim for target in TARGETS)):
        assert part in text
    assert text.count("MISSED") == len(TARGETS)
    assert verdicts(results[1:]) == ""
