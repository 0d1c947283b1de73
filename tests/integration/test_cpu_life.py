"""How a recording begins and ends: signals, exit codes, what is left behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from recording import BPFLAME, ROOT, Folded, Running, bpflame

pytestmark = pytest.mark.bpf


def attached() -> int:
    """How many of our BPF programs are loaded."""
    listing = subprocess.run(["bpftool", "prog", "show"], capture_output=True, check=True)
    return listing.stdout.count(b"bpflame_")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_recording_and_saves_it(
    workloads: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out.folded"
    load = subprocess.Popen([workloads / "fp" / "three_paths", "60"])
    try:
        running = Running("cpu", "-p", str(load.pid), "-F", "499", "-o", out)
        assert "Ctrl-C stops and saves" in running.first_line
        result = running.finish(number)
    finally:
        load.kill()
        load.wait()
    assert result.code == 0
    assert Folded(out.read_text()).share("spin_sixty") > 40
    assert os.listdir(tmp_path) == ["out.folded"]


def test_a_signal_works_where_a_shell_ignored_it(workloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.folded"
    ignoring = ["env", "--ignore-signal=INT"]
    running = Running("cpu", "-p", "1", "-o", out, prefix=ignoring)
    assert running.finish(signal.SIGINT).code == 0
    assert out.exists()


def test_a_second_signal_cuts_symbolization_short(workloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.folded"
    load = subprocess.Popen([workloads / "fp" / "three_paths", "60"])
    try:
        running = Running("cpu", "-p", str(load.pid), "-F", "499", "-o", out)
        time.sleep(1)
        running.process.send_signal(signal.SIGSTOP)  # so that both are there at once
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        _, err = running.process.communicate(timeout=60)
    finally:
        load.kill()
        load.wait()
    assert running.process.returncode == 0
    assert b"cut short" in err
    text = out.read_text()
    assert "[three_paths+0x" in text
    assert "spin_sixty" not in text


def test_a_signal_before_anything_was_recorded(tmp_path: Path) -> None:
    """SIGSTOP holds it back once its handlers are there; then it finds the signal waiting."""
    process = subprocess.Popen(
        [*BPFLAME, "cpu", "-o", str(tmp_path / "x.svg")],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    # The handlers are there once SIGQUIT is caught (proc_pid_status(5), SigCgt).
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        caught = next(
            int(line.split()[1], 16)
            for line in status.read_text().splitlines()
            if line.startswith("SigCgt")
        )
        if caught >> (signal.SIGQUIT - 1) & 1:
            break
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"before anything was recorded" in err
    assert os.listdir(tmp_path) == []


def test_nothing_stays_attached(workloads: Path, tmp_path: Path) -> None:
    def detached() -> bool:
        deadline = time.monotonic() + 10
        while attached() and time.monotonic() < deadline:
            time.sleep(0.05)
        return attached() == 0

    assert detached(), "left by the test before, or by someone else"
    running = Running("cpu", "-p", "1", "-o", tmp_path / "x.folded")
    assert attached() > 0
    running.process.kill()
    running.process.communicate()
    assert detached()
    assert os.listdir(tmp_path) == []


def test_the_commands_exit_code_is_passed_on(tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    assert bpflame("cpu", "-o", out, "--", "sh", "-c", "exit 7").code == 7
    assert out.exists()
    assert bpflame("cpu", "-o", out, "--", "sh", "-c", "kill -9 $$").code == 128 + 9


def test_a_duration_ends_the_command(workloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    began = time.monotonic()
    command = [workloads / "fp" / "three_paths", "60"]
    result = bpflame("cpu", "-d", "1", "-F", "499", "-o", out, "--", *command)
    assert result.code == 0
    assert time.monotonic() - began < 30
    assert Folded(out.read_text()).share("path_sixty") > 40


def test_the_command_keeps_its_output_and_ours_stays_clean(tmp_path: Path) -> None:
    out = tmp_path / "x.folded"
    assert bpflame("cpu", "-o", out, "--", "echo", "hello").stdout == "hello\n"
    result = bpflame("cpu", "-o", "-", "--", "sh", "-c", "echo hello; sleep 0.1")
    assert "hello" not in result.stdout
    assert "hello" in result.stderr


def test_the_command_has_its_own_environment_and_limits(tmp_path: Path) -> None:
    script = "env | sort | grep -v ^_=; ulimit -n; grep SigIgn /proc/self/status"
    inside = bpflame("cpu", "-o", tmp_path / "x.folded", "--", "sh", "-c", script)
    outside = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert inside.stdout == outside.stdout


def test_under_sudo_the_command_and_the_output_belong_to_the_user(tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    tmp_path.chmod(0o777)
    sudo = {"SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody"}
    script = "id -u; id -g; id -G; echo $HOME"
    result = bpflame("cpu", "-o", out, "--", "sh", "-c", script, env=sudo)
    assert result.stdout.split()[:3] == ["65534", "65534", "65534"]
    assert "/root" not in result.stdout
    assert (out.stat().st_uid, out.stat().st_gid) == (65534, 65534)
    result = bpflame("cpu", "--as-root", "-o", out, "--", "id", "-u", env=sudo)
    assert result.stdout == "0\n"


def test_progress_is_for_terminals(workloads: Path, tmp_path: Path) -> None:
    arguments = ["cpu", "-F", "499", "-o", str(tmp_path / "x.folded")]
    command = ["--", str(workloads / "fp" / "three_paths"), "2"]
    assert "unique stacks" not in bpflame(*arguments, *command).stderr
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*BPFLAME, *arguments, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "xterm"},
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            seen += os.read(controller, 4096)
        except OSError:  # the other side was closed
            break
    os.close(controller)
    assert process.wait() == 0
    assert b"recording: 1 s, " in seen
    assert b"0 lost" in seen
    assert b"\x1b" not in seen


def test_a_reader_that_goes_away_is_no_error(workloads: Path) -> None:
    pipe = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "bash", *BPFLAME, "cpu", "-o", "-", "-d",
         "1", "-p", str(os.getpid())],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip
    assert b"Traceback" not in pipe.stderr


def test_a_command_may_clean_up_after_a_signal(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(0.5); sys.exit(7)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "print('ready', flush=True)\n"
        "while True: pass\n"
    )
    running = Running("cpu", "-o", tmp_path / "x.folded", "--", "python3", "-c", script)
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == b"ready\n"
    assert running.finish(signal.SIGINT, after=0.3).code == 7
    assert (tmp_path / "x.folded").exists()


def test_a_terminal_that_hangs_up_does_not_cost_the_recording(
    workloads: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.folded"
    controller, terminal = pty.openpty()
    command = ["--", str(workloads / "fp" / "three_paths"), "2"]
    process = subprocess.Popen(
        [*BPFLAME, "cpu", "-F", "499", "-o", str(out), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(terminal)
    assert b"sampling" in os.read(controller, 4096)
    os.close(controller)
    assert process.wait(timeout=60) == 0
    assert Folded(out.read_text()).share("spin_sixty") > 40


def test_odd_surroundings(tmp_path: Path) -> None:
    """SIGCHLD ignored, standard descriptors closed: both are inherited."""
    out = tmp_path / "x.folded"
    ignoring = ("env", "--ignore-signal=CHLD")
    assert bpflame("cpu", "-o", out, "--", "sh", "-c", "exit 5", prefix=ignoring).code == 5
    closed = ("sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh")
    assert bpflame("cpu", "-o", out, "--", "sh", "-c", "exit 6", prefix=closed).code == 6
    assert bpflame("cpu", "-d", "0.1", "-o", "-", prefix=closed).code == 0
