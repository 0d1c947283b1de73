"""The command line where nothing is recorded."""

from pathlib import Path

import pytest

from bpflame.cli import main

WAITS = ("offcpu", "wakeup", "offwake", "chain")


@pytest.mark.parametrize("command", ["", "cpu", *WAITS, "render", "doctor"])
def test_help_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_tells_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cpu", "--help"])
    text = capsys.readouterr().out
    assert "(default: 99)" in text
    assert "examples:" in text
    with pytest.raises(SystemExit):
        main(["chain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "up to 16 (default: 8)" in text
    assert "a bare number is microseconds" in text


@pytest.mark.parametrize("command", ["cpu", *WAITS])
def test_help_tells_how_user_stacks_are_unwound(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--unwind {auto,dwarf,fp}" in text
    assert "up to 511 (default: 127)" in text


@pytest.mark.parametrize("command", WAITS)
def test_help_shows_the_options_that_a_command_has(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert ("--depth" in text) == (command == "chain")
    assert ("--split" in text) == (command != "wakeup")
    assert "--check-stacks" not in text
    assert f"bpflame {command} " in text.partition("examples:")[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["no-such"], "no-such"),
        (["render"], "FILE"),
        (["render", "-"], "needs -o FILE"),
        (["render", "/no/such/file", "-o", "-"], "/no/such/file: No such file"),
        (["render", "/tmp", "-o", "-"], "/tmp: Is a directory"),
        (["render", "x.folded", "--", "ls"], "render takes no command"),
        (["doctor", "--", "ls"], "doctor takes no command"),
        (["cpu", "--dur", "3"], "unknown option: --dur"),
        (["offcpu", "--depth", "3"], "unknown option: --depth"),
        (["wakeup", "--depth", "3"], "unknown option: --depth"),
        (["offwake", "--depth", "3"], "unknown option: --depth"),
        (["wakeup", "--no-split"], "unknown option: --no-split"),
        (["chain", "--depth", "0"], "--depth: not a depth from 1 to 16: '0'"),
        (["chain", "--depth", "17"], "--depth: not a depth from 1 to 16: '17'"),
        (["chain", "--depth", "x"], "--depth: not a depth from 1 to 16: 'x'"),
        (["offcpu", "-F", "99"], "unknown option: -F"),
        (["cpu", "--unwind", "orc"], "--unwind: invalid choice: 'orc'"),
        (["cpu", "--max-depth", "0"], "--max-depth: not a number of frames from 1 to 511: '0'"),
        (["cpu", "-U", "-K"], "-K/--kernel-stacks: not allowed with argument -U/--user-stacks"),
        (["offcpu", "ls"], "put -- before it"),
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("bpflame: error: ")


@pytest.mark.parametrize("command", WAITS)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "1", "--", "ls"], "a command and -p, -t or --cgroup exclude each other"),
        (["-t", "1", "--", "ls"], "a command and -p, -t or --cgroup exclude each other"),
        (["-p", "1", "-t", "1"], "-p and -t exclude each other"),
        (["--children"], "--children needs -p"),
        (["--"], "no command after --"),
        (["-p", "999999999"], "no process 999999999"),
        (["-t", "999999999"], "no thread 999999999"),
        (["-p", "0"], "not a process or thread id: '0'"),
        (["-u", "-k"], "-k/--kernel-threads: not allowed with argument -u/--user-threads"),
        (["-U", "-K"], "-K/--kernel-stacks: not allowed with argument -U/--user-stacks"),
        (["-m", "2ms", "-M", "1ms"], "-M is less than -m"),
        (["-m", "2", "-M", "1us"], "-M is less than -m"),
        (["--unwind", "orc"], "--unwind: invalid choice: 'orc'"),
        (["--max-depth", "512"], "--max-depth: not a number of frames from 1 to 511: '512'"),
        (["-M", "0"], "-M/--max: not a length of time: '0'"),
        (["-m", "soon"], "-m/--min: not a length of time: 'soon'"),
        (["-M", "-1"], "-M"),
        (["--state", "X"], "--state: not a state: 'X'"),
        (["--state", "S,Q"], "--state: not a state: 'Q'"),
        (["--sample", "0"], "--sample: not one in so many: '0'"),
        (["--sample", "1/0"], "--sample: not one in so many: '1/0'"),
        (["--by", "name"], "--by"),
        (["-d", "0"], "-d/--duration: not a duration: '0'"),
        (["-n", "("], "-n/--comm: not a regular expression: '('"),
        (["--json", "-o", "-"], "both want standard output"),
        (["-o", "x.pdf"], "x.pdf: the suffix must say"),
    ],
)
def test_wrong_wishes_for_waits_are_exit_2(
    command: str,
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("bpflame: error: ")
    assert list(tmp_path.iterdir()) == []


def test_render_reads_folded_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("main;f 3\r\nmain;f 1\n\n")
    out = tmp_path / "out.svg"
    assert main(["render", str(source), "-o", str(out)]) == 0
    assert capsys.readouterr() == ("", f"bpflame: wrote {out}\n")
    assert "4 samples" in out.read_text()
    source.write_text("main;f three\n")
    assert main(["render", str(source), "-o", str(out)]) == 2
    assert f"{source}" in capsys.readouterr().err
    assert "4 samples" in out.read_text()


def test_a_message_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "\x1b[31m\n.folded", "-o", "-"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1
