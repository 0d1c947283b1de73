import os
import stat
from pathlib import Path
from typing import IO

import pytest

from bpflame.errors import BpflameError, UsageError
from bpflame.output import FOLDED, PROFILE, SVG, Output, unique_name


def hello(out: IO[bytes]) -> None:
    out.write(b"hello")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.svg", SVG), ("a.SVG", SVG), ("a.folded", FOLDED), ("a.txt", FOLDED),
     ("a.bpflame", PROFILE), ("-", FOLDED), ("/dev/null", FOLDED)],
)  # fmt: skip
def test_the_suffix_says_what_to_write(name: str, kind: str) -> None:
    assert Output(name).kind == kind


@pytest.mark.parametrize("name", ["a", "a.png", ".svg", "svg", ""])
def test_other_suffixes_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="the suffix must say what to write"):
        Output(name)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    output = Output(str(path))
    output.check()
    assert os.listdir(tmp_path) == []
    output.write(hello)
    assert path.read_bytes() == b"hello"
    assert os.listdir(tmp_path) == ["a.svg"]


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_text("old")

    def fails(out: IO[bytes]) -> None:
        out.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(BpflameError, match=r"a\.svg: No space left on device"):
        Output(str(path)).write(fails)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.svg"]


def test_modes(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        for name, mode in (("new.svg", 0o640), ("new.bpflame", 0o600)):
            Output(str(tmp_path / name)).write(hello)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
        kept = tmp_path / "kept.svg"
        kept.touch()
        kept.chmod(0o604)
        Output(str(kept)).write(hello)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "a.svg"
    link.symlink_to(victim)
    Output(str(link)).write(hello)
    assert victim.read_text() == "precious"
    assert not link.is_symlink()


def test_folders_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    for name, problem in (("folder.svg", "is a directory"), ("no/a.svg", "No such file")):
        with pytest.raises(BpflameError, match=problem):
            Output(str(tmp_path / name)).check()


def test_default_names_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101T000000")
    first = unique_name("cpu", "app")
    Path(first).touch()
    second = unique_name("cpu", "app")
    assert first == "cpu-app-20260101T000000.svg"
    assert second == "cpu-app-20260101T000000-2.svg"
