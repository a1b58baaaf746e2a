"""What every object store must do, against a server of each protocol and a shim before it that fails as they do."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.errors import StorageError, UnavailableError
from fcn_ray.storage import answers
from fcn_ray.storage.objects import STORES
from tests import gcs
from tests import s3 as faults
from tests.s3 import Fault, Shim, answer

SLOW_DOWN = answer("503 Slow Down", "SlowDown")


@pytest.fixture
def uri(store: Shim) -> str:
    """An object that is not there yet."""
    return f"{store.root}/folder/object"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(answers, "LONGEST_PAUSE", 0.05)


def _module(store: Shim) -> ModuleType:
    return STORES[store.scheme]


def test_put_if_absent_writes_once(store: Shim, uri: str) -> None:
    assert not storage.exists(uri)
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.stat(uri).path == "object"
    assert storage.stat(uri).size == 5
    assert (storage.is_file(uri), storage.exists(uri)) == (True, True)
    assert (storage.is_file(f"{store.root}/folder"), storage.exists(f"{store.root}/folder/")) == (False, True)
    assert not storage.exists(f"{store.root}/fold")


def test_an_object_comes_to_disk_and_goes_again(uri: str) -> None:
    data = bytes(range(256)) * 5000
    storage.put_if_absent(uri, data)
    with storage.on_disk(uri) as path:
        assert path.read_bytes() == data
    assert not path.parent.exists()


def test_an_object_that_the_disk_has_no_room_for(uri: str) -> None:
    storage.put_if_absent(uri, bytes(100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError, match=f"^{uri} cannot be copied to /"), storage.on_disk(uri):
            raise AssertionError
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_first_of_many_writers_wins(store: Shim, uri: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda i: storage.put_if_absent(uri, bytes([i]) * 5000), range(16)))
    assert sum(written) == 1
    assert storage.read_bytes(uri) == bytes([written.index(True)]) * 5000


def test_replace_is_last_writer_wins_and_folders_can_be_removed(store: Shim, uri: str) -> None:
    for text in (b"first", b"second"):
        storage.replace(uri, text)
    assert storage.read_bytes(uri) == b"second"
    storage.put_if_absent(f"{store.root}/folder2/kept", b"")
    storage.remove_folder(f"{store.root}/folder")
    assert [entry.path for entry in storage.list_files(store.root)] == ["folder2/kept"]


def test_a_folder_of_many_pages_can_be_removed(store: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module(store), "PAGE_KEYS", 3)
    for index in range(10):
        storage.put_if_absent(f"{store.root}/in/{index}", b"")
    storage.remove_folder(f"{store.root}/in")
    assert not storage.exists(f"{store.root}/in")


NAMES = ("a b", "a#?%2e", "a+b=c&d", "é", "\U0001f600", "x//y", "x/..z", "x/~", "~!*'()", "p" * 300, "tab\tname")


def test_names_are_taken_as_they_are_and_listed_in_the_order_of_their_bytes(store: Shim) -> None:
    for name in NAMES:
        storage.put_if_absent(f"{store.root}/in/{name}", name.encode())
    listed = [entry.path for entry in storage.list_files(f"{store.root}/in/")]
    assert listed == sorted((name for name in NAMES if name != "x/..z"), key=str.encode)
    assert all(storage.read_bytes(f"{store.root}/in/{path}") == path.encode() for path in listed)
    assert storage.list_folders(f"{store.root}/in") == ["x"]
    assert storage.list_folders(f"{store.root}/in/x") == [""]
    assert storage.list_folders(store.root) == ["in"]


def test_listing_says_what_it_leaves_out(store: Shim) -> None:
    for name in (".hidden", "_temporary/part", "_DSC1.jpg", "real/a", ".git/config"):
        storage.put_if_absent(f"{store.root}/in/{name}", b"x")
    _put_marker(store, "in/")
    _put_marker(store, "in/folder/")
    skipped: list[storage.Skipped] = []
    assert [entry.path for entry in storage.list_files(f"{store.root}/in", skipped.append)] == ["_DSC1.jpg", "real/a"]
    assert [left[:2] for left in skipped] == [
        ("", "no file"),
        (".git/config", "hidden"),
        (".hidden", "hidden"),
        ("_temporary/part", "_folder"),
        ("folder/", "no file"),
    ]
    assert storage.list_folders(f"{store.root}/in") == [".git", "_temporary", "folder", "real"]


def _put_marker(store: Shim, key: str) -> None:
    """What consoles make when they are asked for a folder."""
    client: Any = _module(store)._client()
    if store.scheme == "s3":
        client.put_object(Bucket="bucket", Key=key)
    elif store.scheme == "gs":
        client.bucket("bucket").blob(key).upload_from_string(b"")
    else:
        client.get_blob_client("bucket", key).upload_blob(b"")


def test_removing_a_folder_leaves_the_object_of_its_name(store: Shim) -> None:
    for name in ("in", "in/a", "in/a/b"):
        storage.put_if_absent(f"{store.root}/{name}", b"x")
    _put_marker(store, "in/")
    storage.remove_folder(f"{store.root}/in")
    assert (storage.is_file(f"{store.root}/in"), storage.is_file(f"{store.root}/in/a/b")) == (True, False)


def test_what_is_not_there_can_be_deleted(store: Shim, uri: str) -> None:
    _module(store).delete(uri)


def test_a_long_listing_comes_page_by_page(store: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module(store), "PAGE_KEYS", 3)
    for index in range(10):
        storage.put_if_absent(f"{store.root}/in/{index}", b"")
    store.fail("GET", answer("500 Internal Server Error", "InternalError"))
    assert [entry.path for entry in storage.list_files(f"{store.root}/in")] == [str(index) for index in range(10)]
    assert store.count("GET") == 5


def test_an_object_is_read_in_parts(store: Shim, uri: str) -> None:
    table = pa.table({"a": pa.array(range(200_000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=20_000, compression="none")
    storage.put_if_absent(uri, sink.getvalue().to_pybytes())
    with storage.open_file(uri) as file:
        parquet = pq.ParquetFile(file)
        assert parquet.read_row_group(7)["a"].to_pylist() == list(range(140_000, 160_000))
    assert storage.digest_file(uri) == storage.digest(sink.getvalue().to_pybytes())


def test_a_reader_never_sees_two_versions(store: Shim, uri: str) -> None:
    storage.replace(uri, b"a" * 1_000_000)
    with storage.open_file(uri) as file:
        assert file.read(10) == b"a" * 10
        storage.replace(uri, b"b" * 1_000_000)
        file.seek(900_000)
        with pytest.raises(StorageError, match="changed while it was read"):
            file.read(10)


def test_versions_change_with_the_content(store: Shim, uri: str) -> None:
    storage.replace(uri, b"one")
    before = storage.stat(uri)
    assert before.version == next(storage.list_files(f"{store.root}/folder")).version
    storage.replace(uri, b"two")
    assert storage.stat(uri).version != before.version


def test_a_store_says_when_an_object_was_put(store: Shim, uri: str) -> None:
    storage.put_if_absent(uri, b"data")
    for entry in (storage.stat(uri), next(storage.list_files(store.root))):
        assert entry.modified == pytest.approx(time.time(), abs=60)


def test_what_is_too_large_is_not_read(store: Shim, uri: str) -> None:
    storage.put_if_absent(uri, b"0123456789")
    assert storage.fetch(uri, 10) == (storage.stat(uri), b"0123456789")
    assert storage.fetch(uri, 9) == (storage.stat(uri), None)


def test_nothing_is_something(store: Shim, uri: str) -> None:
    assert storage.put_if_absent(uri, b"")
    assert not storage.put_if_absent(uri, b"")
    assert storage.fetch(uri, 0) == (storage.stat(uri), b"")
    assert storage.read_bytes(uri) == b""
    with storage.open_file(uri) as file:
        assert file.read() == b""


def test_only_whole_requests_are_made(store: Shim, uri: str) -> None:
    """One request puts a chunk, and one asks for its length; one reads an image with its version."""
    store.fail("none")
    storage.put_if_absent(uri, b"data")
    assert [method for method, _ in store.seen] == [store.put, store.head]
    store.fail("none")
    storage.fetch(uri, 4)
    assert [method for method, _ in store.seen] == ["GET"]


def test_threads_share_one_client(store: Shim, uri: str) -> None:
    threads = [threading.Thread(target=storage.put_if_absent, args=(f"{uri}{i}", b"x")) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(storage.list_files(store.root))) == 16


MAKERS = {
    "s3": "boto3.session.Session.client",
    "gs": "google.cloud.storage.Client",
    "az": "azure.storage.blob.BlobServiceClient.from_connection_string",
}
"""What makes a client."""


@pytest.mark.parametrize("scheme", MAKERS)
def test_threads_that_come_at_once_make_one_client(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    together = threading.Barrier(20)

    def make(*_: object, **__: object) -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    def come(_: int) -> Any:
        together.wait()
        return STORES[scheme]._client()

    monkeypatch.setenv(*ADDRESSES[scheme])
    monkeypatch.setattr(MAKERS[scheme], make)
    STORES[scheme].forget()
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(come, range(20))) == made * 20
    STORES[scheme].forget()


@pytest.mark.parametrize("ask", [storage.stat, storage.read_bytes, storage.open_file], ids=lambda f: f.__name__)
def test_a_missing_object_is_a_storage_error(store: Shim, ask: Callable[[str], Any]) -> None:
    with pytest.raises(StorageError, match=f"{store.root}/none does not exist"):
        ask(f"{store.root}/none")


def test_workers_are_told_addresses_and_no_secrets() -> None:
    assert {"AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT"} <= set(storage.SETTINGS)
    secret = re.compile("KEY|SECRET|TOKEN|CONNECTION_STRING|CREDENTIALS")
    assert not [name for name in storage.SETTINGS if secret.search(name)]


def test_light_imports_stay_light() -> None:
    code = "import sys, fcn_ray.storage as s; s.exists('.'); print({'boto3', 'google', 'azure'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ------------------------------------------------------------------------------------------------------------ faults

PASSING: dict[str, Fault] = {
    "500": answer("500 Internal Server Error", "InternalError"),
    "503": SLOW_DOWN,
    "429": answer("429 Too Many Requests", "TooManyRequests"),
    "reset": faults.reset,
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(store: Shim, uri: str, quick: None, fault: Fault) -> None:
    store.fail(store.put, fault, fault)
    assert storage.put_if_absent(uri, b"data")
    assert store.count(store.put) == 3
    assert storage.read_bytes(uri) == b"data"


def test_a_store_that_stalls_is_asked_again(
    store: Shim, uri: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_module(store), "READ_SECONDS", 1.5)
    _module(store).forget()
    store.fail(store.put, faults.stall(30))
    start = time.monotonic()
    assert storage.put_if_absent(uri, b"data")
    assert time.monotonic() - start < 25
    assert store.count(store.put) == 2


def test_patience_is_ours_alone(store: Shim, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The providers' clients would try again by themselves, each in its own way."""
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    asked: tuple[Callable[[str], Any], ...] = (
        lambda uri: storage.put_if_absent(uri, b"data"),
        lambda uri: storage.fetch(uri, 10),
        lambda uri: list(storage.list_files(uri)),
        storage.read_bytes,
        storage.stat,
        storage.list_folders,
    )
    for ask in asked:
        store.fail("any", always=SLOW_DOWN)
        with pytest.raises(UnavailableError):
            ask(uri)
        assert len(store.seen) == 1


@pytest.mark.parametrize("fault", [faults.cut, faults.reset, SLOW_DOWN], ids=["cut", "reset", "503"])
def test_a_broken_answer_is_asked_for_again(store: Shim, uri: str, quick: None, fault: Fault) -> None:
    storage.put_if_absent(uri, b"0123456789" * 1000)
    store.fail("GET", fault)
    assert storage.read_bytes(uri) == b"0123456789" * 1000
    assert store.count("GET") == 2
    with storage.open_file(uri) as file:
        store.fail("GET", fault)
        assert file.read(10) == b"0123456789"
        assert store.count("GET") == 2


def test_an_answer_that_is_not_the_part_that_was_asked_for_is_refused(store: Shim, uri: str) -> None:
    storage.put_if_absent(uri, b"0123456789" * 100_000)
    with storage.open_file(uri) as file:
        store.fail("GET", always=faults.ignore_range)
        file.seek(5)
        with pytest.raises(StorageError):
            file.read(10)


def test_a_lost_reply_is_no_second_object(store: Shim, uri: str, quick: None) -> None:
    store.fail(store.put, faults.lose_reply)
    assert not storage.put_if_absent(uri, b"data"), "whoever put it: it was there when we asked again"
    assert storage.read_bytes(uri) == b"data"
    assert store.count(store.put) == 2


def test_an_object_of_another_length_is_no_success(store: Shim, uri: str) -> None:
    store.fail(store.put, gcs.keep_half if store.scheme == "gs" else faults.keep_half)
    with pytest.raises(StorageError, match="has 5 bytes after 10 were sent: this store does not keep what it is given"):
        storage.put_if_absent(uri, b"0123456789")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; they pass on a clock of their own, on which requests take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(answers, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(answers, "sleep", pauses.append)
    return pauses


def test_a_storm_is_sat_out_with_growing_random_pauses(gs: Shim, clock: list[float]) -> None:
    def calm_after_nine_minutes(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return (app if sum(clock) > 540 else partial(SLOW_DOWN, app))(environ, start_response)

    gs.fail("POST", always=calm_after_nine_minutes)
    assert storage.put_if_absent(f"{gs.root}/object", b"data")
    assert max(clock) <= answers.LONGEST_PAUSE
    assert len(set(clock)) == len(clock) > 30
    assert sum(clock[:6]) < 20 < sum(clock[-15:])


def test_patience_ends(gs: Shim, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "20")
    gs.fail("POST", always=SLOW_DOWN)
    with pytest.raises(UnavailableError, match=r"object: the store answers 503: .+, \d+ times in 20 seconds.*goes on"):
        storage.put_if_absent(f"{gs.root}/object", b"data")
    assert gs.count("POST") == len(clock) + 1
    assert sum(clock) == pytest.approx(20)


ADDRESSES = {
    "s3": ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    "gs": ("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9"),
    "az": ("AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint=http://127.0.0.1:9/a;SharedAccessSignature=sig=s"),
}


def test_no_server_there(store: Shim, uri: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*ADDRESSES[store.scheme])
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.1")
    _module(store).forget()
    with pytest.raises(UnavailableError, match=r"cannot be reached.*127\.0\.0\.1"):
        storage.read_bytes(uri)


def test_what_clients_say_is_passed_on_without_signatures() -> None:
    said = ValueError("\n GET https://a.b/c?sv=1&sig=secret failed \nRequestId: 1")
    assert answers.first_line(said) == "GET https://a.b/c?... failed"
    assert answers.first_line(ValueError()) == "ValueError"
