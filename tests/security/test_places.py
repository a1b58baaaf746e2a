"""S8: a path in a table, or a link in the input, leads to images of the input, and never to anything else."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig, SegmentConfig
from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.inference.stages import DecodeImages
from fcn_ray.storage import s3 as s3_store
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import absolute_input, understand_input
from fcn_ray.tables.places import Places
from fcn_ray.tables.plan import extend_plan, pending_chunks, read_chunk
from fcn_ray.tables.reading import label_chunk, read_rows
from fcn_ray.tables.sources import Piece
from tests.images.labelling import label
from tests.s3 import Shim
from tests.security.bundles import write_bundle
from tests.tables.archives import write_tar
from tests.tables.making import png

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SECRET = b"root:x:0:0:the content of another file"


def _table(*paths: str, as_struct: bool = False) -> pa.Table:
    cells = [{"bytes": None, "path": path} for path in paths] if as_struct else list(paths)
    return pa.table({"image": pa.array(cells, STRUCT if as_struct else pa.string())})


def _rows(input: Path | str, allowed: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What becomes of every image of the input, up to and with its decoding, without a network."""
    log = extend_plan(f"{input}-run", str(input), ChunkConfig(), Columns(carry="none"))
    tables = [
        label_chunk(
            read_rows(understand_input(str(input)), read_chunk(log.run_uri, ref), Columns(carry="none"), allowed),
            ref.chunk_id,
            1,
        )
        for ref in pending_chunks(log)
    ]
    rows: list[dict[str, Any]] = DecodeImages(1000)(pa.concat_tables(tables)).drop_columns("pixels").to_pylist()
    return rows


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file, and an image, that nobody asked for, outside of the input `tmp_path`/in."""
    (tmp_path / "in").mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "passwd").write_bytes(SECRET)
    (tmp_path / "private" / "face.png").write_bytes(png())
    return tmp_path / "private"


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Connections to a listener on this machine, which is also what S3 requests would go to."""
    found: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                found.append(peer)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        monkeypatch.setenv("PORT", str(listener.getsockname()[1]))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
        s3_store.forget()
        yield found
        s3_store.forget()
        listener.shutdown(socket.SHUT_RDWR)


URIS = [
    "http://127.0.0.1:PORT/a.png",
    "https://127.0.0.1:PORT/a.png",
    "HTTP://127.0.0.1:PORT/a.png",
    "ftp://127.0.0.1:PORT/a.png",
    "http://user:password@127.0.0.1:PORT/a.png",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "s3://169.254.169.254/latest/meta-data/",
    "s3://elsewhere/a.png",
    "s3://key:secret@bucket/a.png",
    "s3://bucket/a.png?X-Amz-Signature=aaaa",
    "S3://elsewhere/a.png",
    "gopher://127.0.0.1:PORT/a.png",
    "file://127.0.0.1:PORT/a.png",
    "file://localhost/SECRET/face.png",
    "file://SECRET/face.png",
    "file://SECRET/../private/passwd",
    "data:image/png;base64,iVBORw0KGgo=",
    "javascript:alert(1)",
    "SECRET/face.png",
    "SECRET/passwd",
    "../private/face.png",
    "../private/passwd",
    "a/../../private/face.png",
    "//127.0.0.1:PORT/a.png",
    "\\\\127.0.0.1\\share\\a.png",
    "/proc/self/environ",
    "/dev/zero",
    "nul\0l.png",
    "~/.ssh/id_rsa",
]


@pytest.mark.parametrize("as_struct", [False, True], ids=["paths", "structs"])
def test_what_a_table_names_elsewhere_is_not_touched(
    tmp_path: Path, secret: Path, hits: list[Any], as_struct: bool
) -> None:
    assert len(URIS) >= 20
    named = [uri.replace("PORT", os.environ["PORT"]).replace("SECRET", str(secret)) for uri in URIS]
    (tmp_path / "in" / "near.png").write_bytes(png())
    pq.write_table(_table("near.png", *named, as_struct=as_struct), tmp_path / "in" / "t.parquet")
    near, *rows = (row for row in _rows(tmp_path / "in") if row["path"] == "t.parquet")
    assert near["status"] == "ok"
    for uri, row in zip(URIS, rows, strict=True):
        assert row["status"] == "unreadable", (uri, row)
        assert "root:" not in row["error"]
        assert "password" not in row["error"]
        assert "aaaa" not in row["error"]
    assert hits == []
    outside = [row["error"] for uri, row in zip(URIS, rows, strict=True) if uri.startswith(("SECRET", "..", "/"))]
    assert len(outside) >= 6
    assert all("lies outside of the input" in error and "allow_paths" in error for error in outside)


def test_the_message_does_not_tell_whether_something_is_there(tmp_path: Path, secret: Path) -> None:
    places = Places.around(understand_input(str(tmp_path / "in")))
    messages = []
    for name in ("face.png", "none.png"):
        with pytest.raises(StorageError) as caught:
            places.resolve(f"{secret}/{name}", str(tmp_path / "in"))
        messages.append(str(caught.value).replace(name, "NAME"))
    assert messages[0] == messages[1]


def test_a_folder_with_a_longer_name_is_another_one(tmp_path: Path) -> None:
    for name in ("in", "in2", "inner"):
        (tmp_path / name).mkdir()
    places = Places.around(understand_input(str(tmp_path / "in")))
    assert places.resolve("a.png", str(tmp_path / "in" / "sub")) == f"{tmp_path}/in/sub/a.png"
    assert places.resolve(f"file://{tmp_path}/in/a.png", "x") == f"{tmp_path}/in/a.png"
    for name in ("../in2/a.png", "../inner/a.png", ".."):
        with pytest.raises(StorageError, match="outside"):
            places.resolve(name, str(tmp_path / "in"))


def test_of_one_table_the_folder_counts(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "in" / "near.png").write_bytes(png())
    pq.write_table(_table("near.png", f"{secret}/face.png"), tmp_path / "in" / "t.parquet")
    assert [row["status"] for row in _rows(tmp_path / "in" / "t.parquet")] == ["ok", "unreadable"]


def test_allowed_prefixes_are_read(tmp_path: Path, secret: Path) -> None:
    pq.write_table(
        _table(f"{secret}/face.png", f"file://{secret}/face.png", f"{secret}-2/face.png"), tmp_path / "in/t.parquet"
    )
    (tmp_path / "in" / "link.png").symlink_to(secret / "face.png")
    rows = _rows(tmp_path / "in", (str(secret),))
    assert [(row["path"], row["row"], row["status"]) for row in rows] == [
        ("link.png", 0, "ok"),
        ("t.parquet", 0, "ok"),
        ("t.parquet", 1, "ok"),
        ("t.parquet", 2, "unreadable"),
    ]


def test_links_that_leave_the_input_are_rows_that_say_so(tmp_path: Path, secret: Path) -> None:
    folder = tmp_path / "in"
    (folder / "real.png").write_bytes(png())
    (folder / "inside.png").symlink_to("real.png")
    (folder / "passwd.png").symlink_to(secret / "passwd")
    (folder / "face.png").symlink_to("../private/face.png")
    (folder / "far.png").symlink_to("passwd.png")
    (folder / "photos").symlink_to(secret)  # to a folder: not even looked into
    (folder / "gone.png").symlink_to("nowhere.png")
    pq.write_table(_table("x.png"), secret / "t.parquet")
    (folder / "t.parquet").symlink_to(secret / "t.parquet")
    (secret / "t.tar").write_bytes(b"no tar, which must not be told either")
    (folder / "t.tar").symlink_to(secret / "t.tar")
    found = label(folder, tmp_path / "out")
    assert found.statuses == {
        ("face.png", 0): "unreadable",
        ("far.png", 0): "unreadable",
        ("inside.png", 0): "ok",
        ("passwd.png", 0): "unreadable",
        ("real.png", 0): "ok",
    }
    assert found.listing.skipped == {"(linked folder)": 1}
    assert [left.path for left in found.listing.quarantined] == ["gone.png", "t.parquet", "t.tar"]
    errors = [row["error"] for row in found.rows if row["status"] == "unreadable"]
    errors += [left.reason for left in found.listing.quarantined[1:]]
    assert all("lies outside of the input" in error and "allow_paths" in error for error in errors)


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_a_link_that_came_after_the_plan_leads_nowhere_either(tmp_path: Path, secret: Path, suffix: str) -> None:
    pq.write_table(pa.table({"image": [png()]}), secret / "t.parquet")
    write_tar(secret / "t.tar", 1)
    link = tmp_path / "in" / f"t.{suffix}"
    link.symlink_to(secret / f"t.{suffix}")
    entry = storage.stat(str(link))
    piece = Piece(link.name, entry.version, "tar" if suffix == "tar" else "parquet", 0, 1, entry.size)
    (row,) = read_rows(understand_input(str(tmp_path / "in")), [piece], Columns()).to_pylist()
    assert row["image"] is None
    assert row["source_error"] == "unreadable"
    assert "lies outside of the input" in row["source_message"]
    (row,) = read_rows(understand_input(str(tmp_path / "in")), [piece], Columns(), (str(secret),)).to_pylist()
    assert row["source_error"] is None


def test_a_file_that_is_named_may_be_a_link(tmp_path: Path, secret: Path) -> None:
    """As caches have them, which store files by their digests: it keeps its name, and the images beside it are its."""
    pq.write_table(_table("near.png", "../private/face.png"), secret / "3f2a")
    (tmp_path / "in" / "train.parquet").symlink_to(secret / "3f2a")
    (tmp_path / "in" / "near.png").write_bytes(png())
    name = absolute_input(str(tmp_path / "in" / "train.parquet"))
    assert name == f"{tmp_path}/in/train.parquet"
    assert [(row["path"], row["status"]) for row in _rows(name)] == [
        ("train.parquet", "ok"),
        ("train.parquet", "unreadable"),
    ]


def test_a_link_in_a_path_of_a_table_is_followed_to_its_end(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "in" / "photos").symlink_to(secret)
    pq.write_table(_table("photos/face.png", "photos/../near.png"), tmp_path / "in" / "t.parquet")
    (tmp_path / "in" / "near.png").write_bytes(png())
    first, second = (row for row in _rows(tmp_path / "in") if row["path"] == "t.parquet")
    assert first["status"] == "unreadable"
    assert second["status"] == "unreadable", "below a link, .. is the folder that the link leads to"


def test_an_input_that_is_a_link_is_what_it_leads_to(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "data").symlink_to(secret)
    (secret / "passwd").unlink()
    pq.write_table(_table("face.png", f"{tmp_path}/data/face.png"), secret / "t.parquet")
    assert [row["status"] for row in _rows(storage.absolute(str(tmp_path / "data")))] == ["ok"] * 3


def test_files_that_are_no_images_are_not_quoted(tmp_path: Path) -> None:
    contents = {
        "a.png": (SECRET, "text"),
        "b.png": (b"<!DOCTYPE html><p>canary", "HTML"),
        "c.png": (b'{"password": "canary"}', "JSON"),
        "d.png": (b"\x80\x04canary", "a Python pickle"),
        "e.png": (b"canary\xff\x00\x01", "unknown bytes"),
    }
    (tmp_path / "in").mkdir()
    for name, (data, _) in contents.items():
        (tmp_path / "in" / name).write_bytes(data)
    rows = _rows(tmp_path / "in")
    for row, (data, kind) in zip(rows, contents.values(), strict=True):
        assert (row["status"], row["error"]) == ("not_image", f"no known image format: {len(data)} bytes, {kind}")


def test_other_prefixes_are_another_run_and_none_is_the_old_one(tmp_path: Path) -> None:
    from fcn_ray.inference.job import segment

    (tmp_path / "in").mkdir()
    bundle = write_bundle(tmp_path / "bundle", b"weights")
    runs = {}
    for allowed in ((), ("a",), ("b", "a"), ("a", "b")):
        config = SegmentConfig(
            input=str(tmp_path / "in"), output=str(tmp_path / "out"), model=bundle, allow_paths=allowed
        )
        runs[allowed] = segment(config, dry_run=True).run
    assert len(set(runs.values())) == 3
    assert runs[("b", "a")] == runs[("a", "b")]


@pytest.mark.parametrize("prefix", ["http://host/", "s3://key:secret@bucket/", "s3://bucket/a?X-Amz-Signature=aaaa"])
def test_prefixes_are_places_that_can_be_read(tmp_path: Path, prefix: str) -> None:
    where = understand_input(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        Places.around(where, SegmentConfig(input="i", output="o", model="m", allow_paths=(prefix,)).allow_paths)
    assert "secret" not in str(caught.value).replace("no secrets", "")


# ---------------------------------------------------------------------------------------------------------------- S3


@pytest.mark.s3
def test_a_table_in_a_bucket_names_objects_of_that_bucket(s3: Shim, tmp_path: Path, secret: Path) -> None:
    for key in ("in/near.png", "other/far.png", "in/what?.png"):
        storage.put_if_absent(f"s3://bucket/{key}", png())
    paths = {
        "near.png": "ok",
        "s3://bucket/in/near.png": "ok",
        "s3://bucket/other/far.png": "ok",
        "../other/far.png": "ok",
        "what?.png": "ok",
        "none.png": "unreadable",
        "s3://bucket2/in/near.png": "unreadable",
        "../../bucket2/near.png": "unreadable",
        "s3://bucket/../bucket2/near.png": "unreadable",
        f"{secret}/face.png": "unreadable",
        f"file://{secret}/face.png": "unreadable",
        "s3://bucket/in/what?.png": "ok",
        "s3://bucket/in/near.png?versionId=1": "unreadable",
        "s3://bucket/in/near.png?X-Amz-Signature=aaaa": "unreadable",
    }
    pq.write_table(_table(*paths), tmp_path / "t.parquet")
    storage.put_if_absent("s3://bucket/in/t.parquet", (tmp_path / "t.parquet").read_bytes())
    s3.fail("none")
    rows = [row for row in _rows("s3://bucket/in") if row["path"] == "t.parquet"]
    assert dict(zip(paths, (row["status"] for row in rows), strict=True)) == paths
    assert not [path for _, path in s3.seen if "bucket2" in path or "Amz" in path]
    (row,) = (
        row for row in _rows("s3://bucket/in", (str(secret),)) if row["row"] == list(paths).index(f"{secret}/face.png")
    )
    assert row["status"] == "ok"


@pytest.mark.s3
def test_a_table_in_a_folder_names_objects_only_where_it_may(s3: Shim, tmp_path: Path) -> None:
    storage.put_if_absent("s3://bucket/a/x.png", png())
    (tmp_path / "in").mkdir()
    pq.write_table(_table("s3://bucket/a/x.png", "s3://bucket/ab/x.png"), tmp_path / "in" / "t.parquet")
    s3.fail("none")
    assert [row["status"] for row in _rows(tmp_path / "in")] == ["unreadable"] * 2
    assert s3.seen == []
    assert [row["status"] for row in _rows(tmp_path / "in", ("s3://bucket/a",))] == ["ok", "unreadable"]
