import errno
import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_ray import storage
from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.storage import local


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_put_if_absent_writes_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "object")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert _visible(tmp_path / "deep") == ["object"]


def test_the_first_of_many_writers_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "object")
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda i: storage.put_if_absent(uri, bytes([i]) * 50_000), range(16)))
    assert sum(written) == 1
    assert storage.read_bytes(uri) == bytes([written.index(True)]) * 50_000
    assert _visible(tmp_path) == ["object"]


_WRITERS = """
import itertools, os, signal, sys, time
from fcn_ray import storage

for attempt, line in enumerate(sys.stdin):  # one process that has imported everything; each attempt is only a fork
    writer = os.fork()
    if not writer:
        for i in itertools.count(attempt * 1000):
            storage.put_if_absent(f"{sys.argv[1]}/{i}", i.to_bytes(4, "big") * 200_000)
    time.sleep(float(line))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
"""


def test_a_killed_writer_leaves_all_of_an_object_or_nothing(tmp_path: Path) -> None:
    pauses = random.Random(5)
    lines = "".join(f"{pauses.uniform(0.005, 0.04)}\n" for _ in range(20))
    subprocess.run([sys.executable, "-c", _WRITERS, str(tmp_path)], input=lines, text=True, check=True)
    written = [path for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")]
    for path in written:
        assert path.read_bytes() == int(path.name).to_bytes(4, "big") * 200_000
    assert {entry.path for entry in storage.list_files(str(tmp_path))} == {path.name for path in written}
    assert len(written) < len(list(tmp_path.iterdir())), "no writer was killed while it wrote, so nothing was tried"


def test_bytes_are_on_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "link", lambda a, b: calls.append("link") or link(a, b))
    storage.put_if_absent(str(tmp_path / "object"), b"data")
    assert calls == ["fsync", "link", "fsync"]


@pytest.mark.parametrize("put", [storage.put_if_absent, storage.replace])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"object cannot be written: No space left"):
        put(str(tmp_path / "object"), b"data")
    assert _visible(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(ConfigError, match=r"object cannot be written .* no hard links"):
        storage.put_if_absent(str(tmp_path / "object"), b"data")
    assert _visible(tmp_path) == []


def test_replace_is_last_writer_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "status")
    storage.replace(uri, b"first")
    storage.replace(uri, b"second")
    assert storage.read_bytes(uri) == b"second"
    assert _visible(tmp_path) == ["status"]


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=3).filter(
    lambda name: not name.startswith((".", "_"))
)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.lists(_NAMES, min_size=1, max_size=3).map(tuple), max_size=12))
def test_listing_is_in_the_order_of_whole_paths(tmp_path_factory: pytest.TempPathFactory, paths: set) -> None:
    root = tmp_path_factory.mktemp("list")
    written = set()
    for parts in sorted(paths, key=len, reverse=True):
        path = root.joinpath(*parts)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            written.add("/".join(parts))
    listed = [entry.path for entry in storage.list_files(str(root))]
    assert listed == sorted(written) == sorted(written, key=str.encode)


def test_listing_says_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("_DSC1.jpg", ".hidden", "_temporary/part", "real/a", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "real" / "a")
    with open(os.path.join(os.fsencode(tmp_path), b"latin-\xe9.png"), "wb"):
        pass
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "inside").symlink_to("real/a/b")
    with open(os.path.join(os.fsencode(tmp_path), b"._\xff.png"), "wb"):
        pass
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"_\xff"))
    skipped: list[storage.Skipped] = []
    listed = [entry.path for entry in storage.list_files(str(tmp_path), skipped.append)]
    assert listed == ["_DSC1.jpg", "linked", "real/a"]
    assert [(left.path, left.why) for left in skipped if not left.fault] == [
        ("._\udcff.png", "hidden"),
        (".git/", "hidden"),
        (".hidden", "hidden"),
        ("_temporary/", "_folder"),
        ("_\udcff/", "_folder"),
        ("pipe", "no file"),
        ("round", "linked folder"),
    ]
    faults = {left.path: left.why for left in skipped if left.fault}
    assert list(faults) == ["broken", "inside", "itself", "latin-\udce9.png"]
    assert "leads nowhere" in faults["broken"]
    assert "Not a directory" in faults["inside"]
    assert "Too many levels of symbolic links" in faults["itself"]
    assert "not UTF-8" in faults["latin-\udce9.png"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_folder_that_may_not_be_listed_is_told_of_and_a_broken_disk_is_an_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scan = os.scandir

    def refuse(folder: Path) -> Any:
        if folder == tmp_path / refused:
            raise OSError(number, os.strerror(number))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    refused, skipped = "b", list[storage.Skipped]()
    listing = storage.list_files(str(tmp_path), skipped.append)
    if number == errno.EACCES:
        assert [entry.path for entry in listing] == ["a/1.png", "c/3.png"]
        assert skipped == [("b/", "Permission denied", True)]
    else:
        with pytest.raises(StorageError, match="/b cannot be listed: Input/output error"):
            list(listing)
    with pytest.raises(StorageError, match=r"b/? cannot be listed"):
        list(storage.list_files(str(tmp_path)))  # nobody would hear of it
    refused = ""
    with pytest.raises(StorageError, match=f"{tmp_path} cannot be listed"):
        list(storage.list_files(str(tmp_path), skipped.append))


def test_the_file_system_s_own_folder_is_nobody_s_and_anybody_else_s_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/lost+found/1.png", "lost+found/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert [entry.path for entry in storage.list_files(str(tmp_path))] == ["a/lost+found/1.png", "lost+found/2.png"]
    scan = os.scandir

    def refuse(folder: Path) -> Any:
        if folder.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    skipped: list[storage.Skipped] = []
    assert list(storage.list_files(str(tmp_path), skipped.append)) == []
    assert [(left.path, left.fault) for left in skipped] == [("a/lost+found/", True), ("lost+found/", False)]


def test_a_folder_that_vanishes_during_the_listing_is_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "b/1.png", "c/2.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    skipped: list[storage.Skipped] = []
    listing = storage.list_files(str(tmp_path), skipped.append)
    found = [next(listing).path]
    shutil.rmtree(tmp_path / "b")
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"now a file")
    assert [*found, *(entry.path for entry in listing)] == ["a.png", "d.png"]
    assert [left.path for left in skipped] == ["b/", "c/"]


def test_versions_change_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = storage.stat(str(path))
    assert before == next(storage.list_files(str(tmp_path)))
    os.utime(path, ns=(0, 1))
    assert storage.stat(str(path)).version != before.version


def test_the_version_that_is_told_is_the_one_that_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    first = storage.stat(str(path))

    class Replacing(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            (tmp_path / "b").write_bytes(b"the second")
            os.replace(tmp_path / "b", path)
            return super().read(size)

    monkeypatch.setattr(local, "open_file", Replacing)
    assert storage.fetch(str(path), 100) == (first, b"first")
    assert storage.stat(str(path)).version != first.version


@pytest.mark.parametrize("name", ["missing", ".", "pipe", "nul\0l"])
def test_what_is_no_file_cannot_be_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="cannot be read"):
        storage.read_bytes(f"{tmp_path}/{name}")


def test_a_name_that_no_file_can_have_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: embedded null"):
        storage.stat(f"{tmp_path}/nul\0l")


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert storage.absolute("link") == storage.absolute(f"file://{tmp_path}/a/") == f"{tmp_path.resolve()}/a"
    assert storage.join("x/", "y", "z") == "x/y/z"
    assert storage.list_folders(str(tmp_path)) == ["a", "link"]
    assert storage.list_folders("missing") == []
    assert list(storage.list_files("missing")) == []


@pytest.mark.parametrize("write", [storage.put_if_absent, storage.replace])
def test_a_file_where_a_folder_should_be_is_a_storage_error(
    tmp_path: Path, write: Callable[[str, bytes], object]
) -> None:
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(StorageError, match="folder/below/object cannot be written"):
        write(str(tmp_path / "folder" / "below" / "object"), b"x")


def test_a_local_file_is_its_own_path_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with storage.on_disk(str(tmp_path / "a")) as path:
        assert path == tmp_path / "a"
    assert path.exists()
    with pytest.raises(StorageError, match="b cannot be read"), storage.on_disk(str(tmp_path / "b")):
        raise AssertionError
