"""A store that others wrote: OpenStack Swift, which is installed for this, and checks signatures."""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from fcn_ray import storage
from fcn_ray.errors import RefusedError, StorageError, UnavailableError
from fcn_ray.storage import s3
from fcn_ray.tables.audit import audit
from tests import swift
from tests.tables.making import finished_run, png

pytestmark = [pytest.mark.swift, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = "s3://bucket"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with the bucket "bucket", in which each test has a folder of its own."""
    folder, packages = tmp_path_factory.mktemp("swift"), tmp_path_factory.mktemp("packages")
    if not swift.keeps_attributes(folder):
        pytest.skip("files here cannot have attributes, in which Swift keeps its own")
    swift.install(packages)
    with swift.serving(packages, folder) as found:
        keys = {"aws_access_key_id": swift.KEY, "aws_secret_access_key": swift.SECRET}
        boto3.client("s3", endpoint_url=found, region_name="us-east-1", **keys).create_bucket(Bucket="bucket")
        yield found


@pytest.fixture(autouse=True)
def store(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What this process knows of it."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    keys = {"AWS_ACCESS_KEY_ID": swift.KEY, "AWS_SECRET_ACCESS_KEY": swift.SECRET, "AWS_REGION": "us-east-1"}
    for name, value in (keys | {"AWS_ENDPOINT_URL": address, "FCN_RAY_PATIENCE_SECONDS": "60"}).items():
        monkeypatch.setenv(name, value)
    s3.forget()
    yield
    s3.forget()


def test_put_if_absent_writes_once() -> None:
    uri = f"{ROOT}/once/object"
    assert not storage.exists(uri)
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert (storage.is_file(uri), storage.exists(f"{ROOT}/once"), storage.exists(f"{ROOT}/on")) == (True, True, False)


def test_replace_is_last_writer_wins_and_the_version_tells() -> None:
    uri = f"{ROOT}/replaced/object"
    storage.replace(uri, b"first")
    before = storage.stat(uri)
    assert (before.path, before.size) == ("object", 5)
    assert before.version == "5-8b04d5e3775d298e78455efc5ca404d5", "the MD5 of what was put"
    assert [entry.version for entry in storage.list_files(f"{ROOT}/replaced")] == [before.version]
    storage.replace(uri, b"other")
    assert storage.stat(uri).version not in ("", before.version)
    assert storage.read_bytes(uri) == b"other"


def test_an_object_is_read_in_parts_of_one_version() -> None:
    uri, data = f"{ROOT}/parts/object", bytes(range(256)) * 4000
    storage.put_if_absent(uri, data)
    assert storage.fetch(uri, len(data) - 1) == (storage.stat(uri), None)
    with storage.open_file(uri) as file:
        assert file.read(5) == data[:5]
        file.seek(-700_001, os.SEEK_END)
        assert file.read(300_000) == data[-700_001:-400_001]
        storage.replace(uri, data[::-1])
        file.seek(0)
        with pytest.raises(StorageError, match="changed while it was read"):
            file.read(5)


NAMES = ("a b", "a+b", "a#b", "a/b", "a%2Fb", "a?b=c&d", "ä", "Z", "\U0001f600", "a/b c/ü")


def test_names_are_taken_as_they_are_and_listed_by_page_in_the_order_of_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = f"{ROOT}/names"
    for name in NAMES:
        assert storage.put_if_absent(f"{folder}/{name}", name.encode())
    monkeypatch.setattr(s3, "PAGE_KEYS", 3)
    listed = [entry.path for entry in storage.list_files(folder)]
    assert listed == ["Z", "a b", "a#b", "a%2Fb", "a+b", "a/b", "a/b c/ü", "a?b=c&d", "ä", "\U0001f600"]
    assert [storage.read_bytes(f"{folder}/{name}") for name in listed] == [name.encode() for name in listed]
    assert (storage.list_folders(folder), storage.list_folders(f"{folder}/a")) == (["a"], ["b c"])


def test_a_folder_is_removed_and_its_neighbours_stay() -> None:
    for name in ("in", "in/a b", "in/ä/c", "in2/d"):
        storage.put_if_absent(f"{ROOT}/removal/{name}", b"x")
    storage.remove_folder(f"{ROOT}/removal/in")
    assert [entry.path for entry in storage.list_files(f"{ROOT}/removal")] == ["in", "in2/d"]


ASKED: dict[str, Callable[[str], Any]] = {
    "read": storage.read_bytes,
    "put": lambda uri: storage.put_if_absent(uri, b"x"),
    "list": lambda uri: list(storage.list_files(uri)),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("name", "value"), [("SECRET_ACCESS_KEY", "guessed"), ("ACCESS_KEY_ID", "account:stranger")])
def test_wrong_keys_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Any], name: str, value: str
) -> None:
    """Swift says the same of a key that it does not know."""
    monkeypatch.setenv(f"AWS_{name}", value)
    s3.forget()
    with pytest.raises(UnavailableError) as caught:
        ask(f"{ROOT}/in")
    hint = "SignatureDoesNotMatch: the secret key does not belong to the access key"
    assert str(caught.value) == f"{ROOT}/in: {hint}"


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_missing_bucket_is_named(ask: Callable[[str], Any]) -> None:
    with pytest.raises(RefusedError, match=r"^s3://nobody/in: NoSuchBucket: there is no such bucket$"):
        ask("s3://nobody/in")


def test_a_missing_object_is_missing() -> None:
    for ask in (storage.read_bytes, storage.stat, storage.open_file):
        with pytest.raises(StorageError, match=f"^{ROOT}/none does not exist$"):
            ask(f"{ROOT}/none")


def test_a_run_is_planned_committed_and_audited() -> None:
    root = f"{ROOT}/job"
    for name in ("a b.png", "a+b.png", "ä.png", "1/a#b.png"):
        storage.put_if_absent(f"{root}/in/{name}", png(len(name)))
    finished_run(root)
    report = audit(f"{root}/out")
    assert (report.findings, report.unfinished, report.statuses) == ([], [], {"ok": 4})


# ------------------------------------------------------------------------------------------------------------- races


def test_of_many_writers_at_once_the_object_is_whole_and_that_of_one_who_was_told_so() -> None:
    uri = f"{ROOT}/race/object"
    assert not storage.exists(uri)  # and there is a connected client, which else each thread would make for itself
    with ThreadPoolExecutor(20) as pool:
        written = list(pool.map(lambda i: storage.put_if_absent(uri, bytes([i]) * 5000), range(20)))
    assert storage.read_bytes(uri) in [bytes([i]) * 5000 for i in range(20) if written[i]]
    assert not storage.put_if_absent(uri, b"late")


def test_swift_does_not_decide_who_of_two_at_once_was_first(address: str) -> None:
    """It looks for an object when a request begins and puts the new one when it ends: the slower one is told that it
    wrote, and what it wrote is gone. So of two jobs at once on such a store, one may go by a plan that is not there."""
    uri = f"{ROOT}/slow/object"
    about = {"Bucket": "bucket", "Key": "slow/object", "IfNoneMatch": "*"}
    place = urlsplit(s3._client().generate_presigned_url("put_object", about))
    connection = http.client.HTTPConnection(place.netloc, timeout=60)
    connection.putrequest("PUT", f"{place.path}?{place.query}")
    for name, value in {"If-None-Match": "*", "Content-Length": "4", "Expect": "100-continue"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n", "the condition was found to hold"
    assert storage.put_if_absent(uri, b"quick")
    connection.send(b"slow")
    assert connection.getresponse().status == 200
    assert storage.read_bytes(uri) == b"quick"
