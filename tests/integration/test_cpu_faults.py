"""Bad input, full disks, missing rights, full maps, lost CPUs: nothing breaks in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from recording import ROOT, Folded, Running, bpflame

from bpflame.bpf.cpus import online_cpus
from bpflame.profile import Metadata
from bpflame.profilers import cpu, recorder
from bpflame.profilers.command import Command
from bpflame.profilers.counting import StackCounts
from bpflame.profilers.cpu_events import CpuEvents
from bpflame.profilers.signals import StopSignals
from bpflame.profilers.target import Target
from bpflame.raw import RawProfile

pytestmark = pytest.mark.bpf

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def no_traceback(text: str) -> bool:
    return "Traceback" not in text and "error:" in text


def test_without_root_it_says_what_works(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    readable = tmp_path / "bpflame"  # the checkout may be private to root
    for folder in ("bpflame", "bpf", "profilers", "symbolize", "flamegraph"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", tmp_path], check=True)
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    run = ["/usr/bin/python3", "-m", "bpflame"]
    done = subprocess.run(
        [*AS_NOBODY, *run, "cpu", "-d", "1", "-o", "x.svg"],
        cwd=readable.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert no_traceback(done.stderr)
    assert "CAP_BPF" in done.stderr
    assert "sudo /usr/bin/python3 -m bpflame cpu -d 1 -o x.svg" in done.stderr
    done = subprocess.run(
        [*AS_NOBODY, *run, "doctor"], cwd=readable.parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "FAIL  privileges" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-p", "999999999"], 2, "no process 999999999"),
        (["-p", "12,x"], 2, "not a list of numbers: '12,x'"),
        (["-t", "999999999"], 2, "no thread 999999999"),
        (["--", "no-such-command"], 2, "command not found: no-such-command"),
        (["--", "/etc/passwd"], 2, "command is not executable: /etc/passwd"),
        (["--"], 2, "no command after --"),
        (["ls"], 2, "put -- before it"),
        (["-F", "0"], 2, "not a rate in Hz: '0'"),
        (["-F", "9999999"], 2, "at most"),
        (["-d", "soon"], 2, "not a duration: 'soon'"),
        (["-n", "("], 2, "not a regular expression: '('"),
        (["-C", "77"], 2, "-C 77: not online"),
        (["--cgroup", "/no/such/group"], 2, "no such control group"),
        (["--event", "cycles"], None, "cycles"),
        (["-o", "x.pdf"], 2, "x.pdf: the suffix must say"),
        (["-o", "/no/such/folder/x.svg"], 1, "cannot write /no/such/folder/x.svg"),
        (["-o", "/tmp"], 2, "/tmp: the suffix"),
        (["--json", "-o", "-"], 2, "both want standard output"),
        (["-p", "1", "-t", "1"], 2, "exclude each other"),
        (["--no-such-option"], 2, "unknown option: --no-such-option"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], code: int | None, says: str, tmp_path: Path
) -> None:
    result = bpflame("cpu", "-d", "0.1", *arguments, cwd=tmp_path)
    if code is None:  # this machine may have a PMU
        assert result.code in (0, 2)
        if result.code == 0:
            return
        code = 2
    assert result.code == code, result.stderr
    assert no_traceback(result.stderr)
    assert says in result.stderr
    assert os.listdir(tmp_path) == []


def test_the_old_file_survives_a_full_disk(workloads: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], check=True)
    try:
        old = disk / "x.svg"
        old.write_text("the old picture")
        result = bpflame("cpu", "-F", "499", "-o", old, "--", workloads / "fp" / "three_paths", "1")
        assert result.code == 1
        assert no_traceback(result.stderr)
        assert f"cannot write {old}: No space left on device" in result.stderr
        assert old.read_text() == "the old picture"
        assert os.listdir(disk) == ["x.svg"]
    finally:
        subprocess.run(["umount", disk], check=True)
    command = [workloads / "fp" / "three_paths", "0.5"]
    result = bpflame("cpu", "-F", "499", "-o", "/dev/full", "--", *command)
    assert result.code == 1
    assert no_traceback(result.stderr)
    to_stdout = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
    for arguments in (["cpu", "-F", "499", "-o", "-", "--", *command], ["doctor", "--json"]):
        result = bpflame(*arguments, prefix=to_stdout)
        assert result.code == 1
        assert "cannot write standard output: No space left on device" in result.stderr
        assert no_traceback(result.stderr)


def test_no_samples_give_a_valid_picture(tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    result = bpflame("cpu", "-d", "0.5", "-n", "^no such name$", "-o", out)
    assert result.code == 0
    assert "no samples" in result.stderr
    text = "".join(ET.parse(out).getroot().itertext())
    assert "No samples" in text


def test_no_kernel_headers_are_needed(workloads: Path, tmp_path: Path) -> None:
    """With /lib/modules and /usr/src hidden from bcc, and no debugfs or tracefs in sight."""
    script = (
        "for d in /lib/modules /usr/lib/modules /usr/src /sys/kernel/debug /sys/kernel/tracing;"
        ' do [ -d "$d" ] && mount -t tmpfs none "$d"; done; exec "$@"'
    )
    hidden = ("unshare", "-m", "sh", "-c", script, "sh")
    result = bpflame(
        "cpu", "-F", "499", "-o", "-", "--", workloads / "fp" / "three_paths", "1",
        prefix=hidden,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert Folded(result.stdout).share("spin_sixty") > 40


def test_a_deleted_program_has_its_names(workloads: Path, tmp_path: Path) -> None:
    program = tmp_path / "three_paths"
    shutil.copy(workloads / "fp" / "three_paths", program)
    process = subprocess.Popen([program, "60"])
    try:
        program.unlink()
        shutil.copy(workloads / "fp" / "syscalls", program)  # another one in its place
        result = bpflame("cpu", "-F", "499", "-d", "2", "-p", str(process.pid), "-o", "-")
    finally:
        process.kill()
        process.wait()
    assert Folded(result.stdout).share("spin_sixty") > 45


def test_a_program_that_only_its_mount_namespace_sees(workloads: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    script = 'mount -t tmpfs none "$1" && cp "$2" "$1/program" && exec "$1/program" 60'
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", inside, workloads / "fp" / "three_paths"]
    )
    try:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{process.pid}/comm").read_text() != "program\n":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        result = bpflame("cpu", "-F", "499", "-d", "2", "-p", str(process.pid), "-o", "-")
    finally:
        process.kill()
        process.wait()
    assert os.listdir(inside) == []
    assert Folded(result.stdout).share("spin_sixty") > 45


def record(
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    room: int,
    event: str = "cpu-clock",
    **patches: object,
) -> tuple[RawProfile, int]:
    """Record in this process with small maps; returns the recording and the room for stacks."""
    monkeypatch.setattr(cpu, "entries", lambda frequency: room)
    for name, value in patches.items():
        monkeypatch.setattr(StackCounts, name, value)
    options = cpu.CpuOptions(target=Target(command=command), frequency=999, event=event)
    with StopSignals() as signals:
        prepared = cpu.prepare(options)
        child = Command(command, None)
        recording = prepared.recorder(child, Metadata())
        try:
            raw = recording.run(None, signals, lambda progress: None, lambda: None)
        finally:
            child.close()
            recording.close()
    return raw, room


def distinct_stacks(raw: RawProfile) -> int:
    return len({sample.user for sample in raw.samples})


def test_more_stacks_than_the_maps_have_room_for(
    workloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps that are too small for the whole recording lose nothing: they are drained in time."""
    command = (str(workloads / "fp" / "many_stacks"), "6")
    raw, room = record(monkeypatch, command, 1024)
    assert distinct_stacks(raw) > 2 * room
    counters = raw.meta.counters
    assert counters["lost_samples"] == counters["lost_stacks"] == 0
    assert sum(sample.value for sample in raw.samples) == counters["samples"]


@pytest.mark.parametrize("full", ["STACK_ENTRIES", "COUNT_ENTRIES"])
def test_a_full_map_is_reported(
    workloads: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """Were they not drained, what finds no room would be counted, and no weight would vanish."""
    monkeypatch.setattr(recorder, "_DRAIN_SECONDS", 3600.0)
    compile_program = cpu.Program
    monkeypatch.setattr(
        cpu, "Program", lambda name, defines: compile_program(name, {**defines, full: 64})
    )
    command = (str(workloads / "fp" / "many_stacks"), "4")
    raw, _ = record(monkeypatch, command, 8192, pressed=lambda self: False)
    counters = raw.meta.counters
    kept = sum(sample.value for sample in raw.samples)
    assert kept + counters["lost_samples"] == counters["samples"]
    if full == "COUNT_ENTRIES":
        assert counters["lost_samples"] > 0
    else:
        assert counters["lost_stacks"] > 0
        assert any(sample.lost for sample in raw.samples)


def test_a_cpu_whose_event_is_gone_is_sampled_again(
    workloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after it was offline: the event's descriptor is there, and never ticks again."""
    silent = {}
    open_events = CpuEvents.open

    def break_one(self: CpuEvents) -> None:
        open_events(self)
        for victim in self.cpus[:1]:
            fd = self._fds[victim]
            other = os.open("/dev/null", os.O_RDONLY)
            os.dup2(other, fd)
            os.close(other)
            silent[victim] = fd

    monkeypatch.setattr(CpuEvents, "open", break_one)
    raw, _ = record(monkeypatch, (str(workloads / "fp" / "threads"), "6"), 8192)
    assert silent
    assert raw.meta.counters["reopened_cpus"] == 1
    expected = 999 * raw.meta.duration * len(online_cpus())
    counters = raw.meta.counters
    assert counters["samples"] + counters["idle_samples"] > 0.2 * expected


def test_a_cpu_that_was_offline_is_sampled_again(workloads: Path, tmp_path: Path) -> None:
    last = online_cpus()[-1]
    switch = Path(f"/sys/devices/system/cpu/cpu{last}/online")
    if not os.access(switch, os.W_OK) or last == 0:
        pytest.skip("this machine cannot take a CPU offline")
    out = tmp_path / "x.folded"
    running = Running("cpu", "-d", "6", "-C", str(last), "-F", "499", "--json", "-o", out)
    try:
        time.sleep(1)
        switch.write_text("0")
        time.sleep(1)
    finally:
        switch.write_text("1")
    command = ["taskset", "-c", str(last), workloads / "fp" / "three_paths", "10"]
    load = subprocess.Popen(command)
    try:
        summary, err = running.process.communicate(timeout=60)
    finally:
        load.kill()
        load.wait()
    assert running.process.returncode == 0
    assert b"1 CPUs sampled again" in err
    assert b'"reopened_cpus": 1' in summary
    assert Folded(out.read_text()).roots()["three_paths"] > 499


def test_samples_of_a_hardware_event_weigh_their_period(
    workloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a PMU the clock stands in for the cycles: its period is in nanoseconds."""
    sampling_attr = cpu.sampling_attr
    monkeypatch.setattr(cpu, "sampling_attr", lambda event, rate: sampling_attr("cpu-clock", rate))
    raw, _ = record(monkeypatch, (str(workloads / "fp" / "three_paths"), "1"), 8192, event="cycles")
    assert raw.unit == "cycles"
    value = sum(sample.value for sample in raw.samples)
    assert value == pytest.approx(raw.meta.counters["samples"] * 1e9 / 999, rel=1e-6)
