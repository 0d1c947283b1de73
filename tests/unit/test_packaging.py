"""The package as it is installed: all of its parts, under one name."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bpf", "flamegraph", "profilers", "symbolize")


def test_every_package_is_listed() -> None:
    # Not by tomllib, which Python 3.10 lacks.
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[$(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    listed = re.findall(r'"([\w.]+)"', block[1])
    found = {"bpflame", "bpflame.commands"} | {
        "bpflame." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(listed) == found


def test_the_links_lead_to_the_folders() -> None:
    for folder in FOLDERS:
        assert (ROOT / "bpflame" / folder).is_symlink()
        assert (ROOT / "bpflame" / folder).resolve() == ROOT / folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-c", "--null", "-T", "-", "-f", source / "all.tar"],
                   input=files, cwd=ROOT, check=True)  # fmt: skip
    subprocess.run(["tar", "-x", "-f", "all.tar"], cwd=source, check=True)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source],
        check=True,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_programs_headers_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (
        ("bpf", "programs/*"),
        ("bpf", "include/**/*.h"),
        ("flamegraph", "assets/*"),
    ):
        for path in (ROOT / folder).glob(pattern):
            assert f"bpflame/{path.relative_to(ROOT)}" in names
    assert "bpflame/py.typed" in names


def test_it_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "import bpflame, sys; assert bpflame.__file__.startswith(sys.argv[1]), bpflame.__file__;"
        "from bpflame.cli import main; sys.exit(main(['render', '-', '-o', '-']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(site)],
        input="main;f 3\nmain;g 1\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "main;f 3\nmain;g 1\n"
