"""Tables on disk: what was stored comes back, or nothing does."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bpflame.bpf.unwind import cache as cache_module
from bpflame.bpf.unwind import trusted_folder
from bpflame.bpf.unwind.build import build_table
from bpflame.bpf.unwind.cache import TableCache
from bpflame.bpf.unwind.rules import Cfa, pack
from bpflame.bpf.unwind.table import PAGE, Table
from bpflame.symbolize.elf_file import ElfFile

ID = bytes(range(20))
NAME = ID.hex()
BODY = cache_module._HEADER.size + cache_module._DIGEST


def table(rows: int = 2) -> Table:
    return Table(
        0x1000,
        np.array([(0, rows, 0), (rows, 0, 1)], PAGE),
        np.array([at << 16 | at % 2 for at in range(rows)], np.uint32),
        np.array([pack(Cfa.GAP), pack(Cfa.SP, 8)], np.uint64),
    )


def same(one: Table | None, other: Table) -> bool:
    return one is not None and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(Table)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "unwind"


@pytest.fixture
def cache(folder: Path) -> TableCache:
    made = TableCache(str(folder))
    made.store(ID, table())
    assert (folder / NAME).is_file()
    return made


def test_a_table_comes_back(cache: TableCache) -> None:
    assert same(cache.load(ID), table())
    assert cache.load(ID[:-1]) is None
    cache.store(ID, table(9))
    assert same(cache.load(ID), table(9))


def test_a_real_table_comes_back(cache: TableCache) -> None:
    with ElfFile.open("/usr/lib/x86_64-linux-gnu/libc.so.6") as elf:
        built = build_table(elf)
        cache.store(elf.build_id, built)
        assert same(cache.load(elf.build_id), built)


@pytest.mark.parametrize("build_id", [b"", bytes(65)])
def test_without_a_build_id_nothing_is_kept(cache: TableCache, build_id: bytes) -> None:
    cache.store(build_id, table())
    assert cache.load(build_id) is None


def test_files_and_folder_are_for_their_owner_only(cache: TableCache, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600


def test_every_flipped_byte_is_noticed(cache: TableCache, folder: Path) -> None:
    content = (folder / NAME).read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (folder / NAME).write_bytes(damaged)
        assert cache.load(ID) is None
        assert not (folder / NAME).exists()


def test_every_cut_is_noticed(cache: TableCache, folder: Path) -> None:
    content = (folder / NAME).read_bytes()
    for size in range(len(content)):
        (folder / NAME).write_bytes(content[:size])
        assert cache.load(ID) is None
    (folder / NAME).write_bytes(content + b"\0")
    assert cache.load(ID) is None


def test_a_file_under_another_name_is_not_taken(cache: TableCache, folder: Path) -> None:
    (folder / NAME).rename(folder / bytes(20).hex())
    assert cache.load(bytes(20)) is None


def test_another_version_is_not_taken(cache: TableCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_VERSION", cache_module._VERSION ^ 1)
    assert cache.load(ID) is None


def test_absurd_sizes_are_refused_before_they_are_read(cache: TableCache, folder: Path) -> None:
    os.truncate(folder / NAME, 1 << 40)
    assert cache.load(ID) is None
    assert not (folder / NAME).exists()


Change = Callable[[Table], None]


def _set(name: str, value: object) -> Change:
    def change(of: Table) -> None:
        getattr(of, name)[...] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("pages", (0, 3, 0)),  # rows that are not there
        _set("pages", (2**32 - 1, 1, 0)),
        _set("pages", (0, 2, 2)),  # a carry that is not there
        _set("rows", 5),  # a rule that is not there
        _set("rows", 0),  # the same address twice
        _set("rows", [1 << 28, 1 << 29]),  # past the page
        _set("rules", 7),  # a rule twice
        _set("rules", [max(Cfa) + 1, 0]),  # of no kind
        _set("rules", [4 << 8, 0]),
    ],
)
def test_tables_that_would_lead_astray_are_refused(
    cache: TableCache, folder: Path, change: Change
) -> None:
    wrong = table()
    wrong.check()
    change(wrong)
    with pytest.raises(ValueError, match="r"):
        wrong.check()
    cache.store(ID, wrong)  # with the right digest
    assert cache.load(ID) is None
    assert not (folder / NAME).exists()


def test_odd_first_addresses_are_refused(cache: TableCache) -> None:
    for first in (0x1001, 1 << 62):
        cache.store(ID, dataclasses.replace(table(), first=first))
        assert cache.load(ID) is None


# Whom to trust


def test_symbolic_links_are_not_followed(cache: TableCache, folder: Path, tmp_path: Path) -> None:
    (folder / NAME).rename(tmp_path / "elsewhere")
    (folder / NAME).symlink_to(tmp_path / "elsewhere")
    assert cache.load(ID) is None
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_and_folders_of_others_are_not_trusted(cache: TableCache, folder: Path) -> None:
    os.chown(folder / NAME, 65534, 65534)
    assert cache.load(ID) is None
    assert (folder / NAME).exists()
    os.chown(folder / NAME, 0, 0)
    assert same(cache.load(ID), table())
    for path in (folder, folder.parent):
        os.chown(path, 65534, 65534)
        assert cache.load(ID) is None
        cache.store(bytes(20), table())
        assert [each.name for each in folder.iterdir()] == [NAME]
        os.chown(path, 0, 0)


def test_what_others_can_change_is_not_trusted(cache: TableCache, folder: Path) -> None:
    for path, before in ((folder, 0o700), (folder.parent, 0o700)):
        path.chmod(0o777)
        assert cache.load(ID) is None
        path.chmod(before)
    assert same(cache.load(ID), table())
    (folder / NAME).chmod(0o666)
    assert cache.load(ID) is None


def test_a_fifo_does_not_block(cache: TableCache, folder: Path) -> None:
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    assert cache.load(ID) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root falls back to /var/cache")
def test_root_does_not_use_the_folder_of_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, system = tmp_path / "home", tmp_path / "system"
    home.mkdir()
    os.chown(home, 65534, 65534)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(trusted_folder, "_SYSTEM_FOLDER", str(system))
    TableCache().store(ID, table())
    assert list(home.iterdir()) == []
    assert [each.name for each in system.iterdir()] == [NAME]
    assert same(TableCache().load(ID), table())


def test_the_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    TableCache().store(ID, table())
    assert (tmp_path / "xdg" / "bpflame" / "unwind" / NAME).is_file()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    TableCache().store(ID, table())
    assert (tmp_path / "home" / ".cache" / "bpflame" / "unwind" / NAME).is_file()


# Room


def test_what_was_used_least_recently_goes(folder: Path) -> None:
    size = BODY + 2 * 8 + 100 * 4 + 2 * 8
    cache = TableCache(str(folder), limit=3 * size)
    for number in range(3):
        cache.store(bytes([number]), table(100))
        os.utime(folder / f"{number:02x}", (0, time.time() - 1e6 + number))
    assert same(cache.load(b"\0"), table(100))  # touches it
    cache.store(b"\3", table(100))
    assert sorted(each.name for each in folder.iterdir()) == ["00", "02", "03"]
    cache.store(b"\4", table(4000))
    assert not (folder / "04").exists()


def test_what_a_killed_writer_left_goes(cache: TableCache, folder: Path) -> None:
    old, new = folder / f".{NAME}.0", folder / f".{NAME}.1"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 7200))
    TableCache(str(folder)).store(ID, table())
    assert (old.exists(), new.exists()) == (False, True)


def test_a_use_is_noted_once_a_day(cache: TableCache, folder: Path) -> None:
    recent = time.time() - 3600
    os.utime(folder / NAME, (recent, recent))
    assert cache.load(ID) is not None
    assert abs((folder / NAME).stat().st_mtime - recent) < 1
    os.utime(folder / NAME, (recent - 86_400, recent - 86_400))
    assert cache.load(ID) is not None
    assert time.time() - (folder / NAME).stat().st_mtime < 60


def test_a_full_disk_leaves_nothing_behind(
    cache: TableCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    cache.store(bytes(20), table())
    assert [each.name for each in folder.iterdir()] == [NAME]


@pytest.mark.parametrize("path", ["/proc/nothing/here", "/dev/null/x", "/proc/self/mem"])
def test_folders_that_cannot_be_made_are_done_without(path: str) -> None:
    cache = TableCache(path)
    cache.store(ID, table())
    assert cache.load(ID) is None


def _write_many(folder: str, rows: int) -> None:
    cache = TableCache(folder)
    for _ in range(200):
        cache.store(ID, table(rows))


def test_readers_see_whole_tables_while_others_write(cache: TableCache, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(folder), rows)) for rows in (50, 3000)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        loaded = cache.load(ID)
        assert loaded is not None
        seen.add(len(loaded.rows))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {2, 50, 3000}
    assert {50, 3000} & seen
    assert [each.name for each in folder.iterdir()] == [NAME]
