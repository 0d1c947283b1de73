"""The command line where nothing is recorded."""

from pathlib import Path

import pytest

from bpflame.cli import main


def test_help_fits_a_terminal_and_tells_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["--help"], ["cpu", "--help"], ["render", "--help"], ["doctor", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main(["cpu", "--help"])
    text = capsys.readouterr().out
    assert "(default: 99)" in text
    assert "examples:" in text


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
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("bpflame: error: ")


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
