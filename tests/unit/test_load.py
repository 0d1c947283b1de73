"""Finding the right bcc, and the source that it compiles."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpflame.bpf import load
from bpflame.errors import BpflameError


@pytest.fixture
def no_bcc_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
        monkeypatch.delitem(sys.modules, name)
    load.load_bcc.cache_clear()
    yield
    load.load_bcc.cache_clear()


def test_the_distributions_bcc_wins_over_another_project_of_that_name(
    no_bcc_yet: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    impostor = tmp_path / "bcc"
    impostor.mkdir()
    (impostor / "__init__.py").write_text("raise ImportError('lattice')")
    monkeypatch.syspath_prepend(str(tmp_path))
    bcc = load.load_bcc()
    assert hasattr(bcc, "BPF")
    assert str(bcc.__file__).startswith("/usr/lib/python3")


@pytest.mark.parametrize("text", ["lattice = 1", "import no_such_module", "1 / 0"])
def test_the_other_project_is_recognised(
    no_bcc_yet: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "bcc.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(load, "_BCC_FOLDERS", ())
    with pytest.raises(BpflameError, match="is another project") as caught:
        load.load_bcc()
    assert "apt install python3-bpfcc" in caught.value.hint


def test_bcc_that_is_not_there_is_asked_for(
    no_bcc_yet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_BCC_FOLDERS", ())
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BpflameError, match="bcc is not installed") as caught:
        load.load_bcc()
    assert "apt install python3-bpfcc" in caught.value.hint


@pytest.mark.parametrize("path", sorted(load.PROGRAMS.glob("*.bpf.c")), ids=lambda p: p.name)
def test_a_program_includes_each_of_its_headers_once(path: Path) -> None:
    text = load.source(path)
    guards = re.findall(r"^#define (BPFLAME_\w+_H)$", text, re.MULTILINE)
    assert len(guards) == len(set(guards))
    assert not re.search(r'^#include "', text, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(load.PROGRAMS.iterdir()), ids=lambda p: p.name)
def test_programs_include_nothing_of_the_kernel(path: Path) -> None:
    assert not re.search(r"^\s*#\s*include\s*<", path.read_text(), re.MULTILINE)


def test_the_compilers_message_is_part_of_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.bpf.c").write_text("int bpflame_broken(void *ctx)\n{\n\treturn nothing;\n}")
    monkeypatch.setattr(load, "PROGRAMS", tmp_path)
    with pytest.raises(BpflameError, match="cannot compile the BPF program broken") as caught:
        load.Program("broken", {})
    assert "broken.bpf.c:3" in caught.value.hint
    assert "'nothing'" in caught.value.hint


def test_commands_that_record_nothing_need_no_bcc() -> None:
    script = (
        "import sys; from bpflame import cli; cli.parser();"
        "assert not {'bcc', 'numpy', 'svgwrite', 'elftools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
