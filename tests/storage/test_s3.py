"""S3 against a real server of its protocol, and a shim before it that fails as stores and networks do."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.errors import RefusedError, StorageError
from fcn_ray.storage import requests
from fcn_ray.storage import s3 as s3_requests
from tests import s3 as faults
from tests.s3 import Fault, Shim, answer

pytestmark = pytest.mark.s3

URI = "s3://bucket/folder/object"
SLOW_DOWN = answer("503 Slow Down", "SlowDown")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(requests, "LONGEST_PAUSE", 0.05)


def test_put_if_absent_writes_once(s3: Shim) -> None:
    assert not storage.exists(URI)
    assert storage.put_if_absent(URI, b"first")
    assert not storage.put_if_absent(URI, b"second")
    assert storage.read_bytes(URI) == b"first"
    assert storage.stat(URI).path == "object"
    assert storage.stat(URI).size == 5
    assert (storage.is_file(URI), storage.exists(URI)) == (True, True)
    assert (storage.is_file("s3://bucket/folder"), storage.exists("s3://bucket/folder/")) == (False, True)
    assert not storage.exists("s3://bucket/fold")


def test_the_first_of_many_writers_wins(s3: Shim) -> None:
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda i: storage.put_if_absent(URI, bytes([i]) * 5000), range(16)))
    assert sum(written) == 1
    assert storage.read_bytes(URI) == bytes([written.index(True)]) * 5000


def test_replace_is_last_writer_wins_and_folders_can_be_removed(s3: Shim) -> None:
    for text in (b"first", b"second"):
        storage.replace(URI, text)
    assert storage.read_bytes(URI) == b"second"
    storage.put_if_absent("s3://bucket/folder2/kept", b"")
    storage.remove_folder("s3://bucket/folder")
    assert [entry.path for entry in storage.list_files("s3://bucket")] == ["folder2/kept"]


NAMES = ("a b", "a#?%2e", "a+b=c&d", "é", "\U0001f600", "x//y", "x/..z", "x/~", "~!*'()", "p" * 300, "tab\tname")


def test_names_are_taken_as_they_are_and_listed_in_the_order_of_their_bytes(s3: Shim) -> None:
    for name in NAMES:
        storage.put_if_absent(f"s3://bucket/in/{name}", name.encode())
    listed = [entry.path for entry in storage.list_files("s3://bucket/in/")]
    assert listed == sorted((name for name in NAMES if name != "x/..z"), key=str.encode)
    assert all(storage.read_bytes(storage.join("s3://bucket/in", path)) == path.encode() for path in listed)
    assert storage.list_folders("s3://bucket/in") == ["x"]
    assert storage.list_folders("s3://bucket") == ["in"]


def test_listing_says_what_it_leaves_out(s3: Shim) -> None:
    for name in (".hidden", "_temporary/part", "_DSC1.jpg", "real/a", ".git/config"):
        storage.put_if_absent(f"s3://bucket/in/{name}", b"x")
    s3_requests._client().put_object(Bucket="bucket", Key="in/folder/")  # what consoles make when asked for a folder
    skipped: list[str] = []
    assert [entry.path for entry in storage.list_files("s3://bucket/in", skipped.append)] == ["_DSC1.jpg", "real/a"]
    assert skipped == [".git/config", ".hidden", "_temporary/part", "folder/"]


def test_a_long_listing_comes_page_by_page(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "PAGE_KEYS", 3)
    for index in range(10):
        storage.put_if_absent(f"s3://bucket/in/{index}", b"")
    s3.fail("GET", answer("500 Internal Server Error", "InternalError"))
    assert [entry.path for entry in storage.list_files("s3://bucket/in")] == [str(index) for index in range(10)]
    assert s3.count("GET") == 5


def test_an_object_is_read_in_parts(s3: Shim) -> None:
    table = pa.table({"a": pa.array(range(200_000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=20_000, compression="none")
    storage.put_if_absent(URI, sink.getvalue().to_pybytes())
    with storage.open_file(URI) as file:
        parquet = pq.ParquetFile(file)
        assert parquet.read_row_group(7)["a"].to_pylist() == list(range(140_000, 160_000))
    assert storage.digest_file(URI) == storage.digest(sink.getvalue().to_pybytes())


def test_a_reader_never_sees_two_versions(s3: Shim) -> None:
    storage.replace(URI, b"a" * 1_000_000)
    with storage.open_file(URI) as file:
        assert file.read(10) == b"a" * 10
        storage.replace(URI, b"b" * 1_000_000)
        file.seek(900_000)
        with pytest.raises(StorageError, match="changed while it was read"):
            file.read(10)


def test_versions_change_with_the_content(s3: Shim) -> None:
    storage.replace(URI, b"one")
    before = storage.stat(URI)
    assert before.version == next(storage.list_files("s3://bucket/folder")).version
    storage.replace(URI, b"two")
    assert storage.stat(URI).version != before.version


# ------------------------------------------------------------------------------------------------------------ faults

PASSING: dict[str, Fault] = {
    "500": answer("500 Internal Server Error", "InternalError"),
    "503": SLOW_DOWN,
    "409": answer("409 Conflict", "ConditionalRequestConflict"),
    "429": answer("429 Too Many Requests", "TooManyRequests"),
    "400 of a body that was changed on its way": answer("400 Bad Request", "BadDigest"),
    "400 of a slow upload": answer("400 Bad Request", "RequestTimeout"),
    "reset": faults.reset,
    "stall": faults.stall(1.0),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(s3: Shim, quick: None, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "READ_SECONDS", 0.5)
    s3_requests.forget()
    s3.fail("PUT", fault, fault)
    assert storage.put_if_absent(URI, b"data")
    assert s3.count("PUT") == 3
    assert storage.read_bytes(URI) == b"data"


@pytest.mark.parametrize("fault", [faults.cut, faults.reset, SLOW_DOWN], ids=["cut", "reset", "503"])
def test_a_broken_answer_is_asked_for_again(s3: Shim, quick: None, fault: Fault) -> None:
    storage.put_if_absent(URI, b"0123456789" * 1000)
    s3.fail("GET", fault, fault)
    assert storage.read_bytes(URI) == b"0123456789" * 1000
    assert s3.count("GET") == 3


def test_a_lost_reply_is_no_second_object(s3: Shim, quick: None) -> None:
    s3.fail("PUT", faults.lose_reply)
    assert not storage.put_if_absent(URI, b"data"), "whoever put it: it was there when we asked again"
    assert storage.read_bytes(URI) == b"data"
    assert s3.count("PUT") == 2


def test_an_object_of_another_length_is_no_success(s3: Shim) -> None:
    s3.fail("PUT", faults.keep_half)
    with pytest.raises(StorageError, match="has 5 bytes after 10 were sent: this store does not keep what it is given"):
        storage.put_if_absent(URI, b"0123456789")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; they pass on a clock of their own, on which requests take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(requests, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(requests, "sleep", pauses.append)
    return pauses


def test_a_storm_is_sat_out_with_growing_random_pauses(s3: Shim, clock: list[float]) -> None:
    def calm_after_nine_minutes(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return (app if sum(clock) > 540 else partial(SLOW_DOWN, app))(environ, start_response)

    s3.fail("PUT", always=calm_after_nine_minutes)
    assert storage.put_if_absent(URI, b"data")
    assert max(clock) <= requests.LONGEST_PAUSE
    assert len(set(clock)) == len(clock) > 30
    assert sum(clock[:6]) < 20 < sum(clock[-15:])


def test_patience_ends(s3: Shim, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "20")
    s3.fail("PUT", always=SLOW_DOWN)
    with pytest.raises(StorageError, match=r"object: the store answers SlowDown, \d+ times in 20 seconds.*goes on"):
        storage.put_if_absent(URI, b"data")
    assert s3.count("PUT") == len(clock) + 1
    assert sum(clock) == pytest.approx(20)


HINTS = {
    "InvalidAccessKeyId": ("403 Forbidden", "does not know this access key"),
    "SignatureDoesNotMatch": ("403 Forbidden", "secret key does not belong to the access key"),
    "AccessDenied": ("403 Forbidden", "may not do that"),
    "ExpiredToken": ("400 Bad Request", "expired: renew them"),
    "NoSuchBucket": ("404 Not Found", "no such bucket"),
    "PermanentRedirect": ("301 Moved Permanently", "another region: set AWS_REGION"),
    "AuthorizationHeaderMalformed": ("400 Bad Request", "another region: set AWS_REGION"),
    "NotImplemented": ("501 Not Implemented", "lacks what results need: conditional writes"),
}


@pytest.mark.parametrize("code", HINTS)
def test_refusals_come_with_a_hint_and_are_not_repeated(s3: Shim, code: str) -> None:
    status, hint = HINTS[code]
    s3.fail("PUT", always=answer(status, code))
    with pytest.raises(StorageError, match=rf"s3://bucket/folder/object: {code}: .*{hint}"):
        storage.put_if_absent(URI, b"data")
    assert s3.count("PUT") == (2 if code == "PermanentRedirect" else 1)  # boto3 looks for the bucket's region itself


def test_a_head_has_no_body_to_say_why(s3: Shim) -> None:
    s3.fail("HEAD", answer("403 Forbidden", ""))
    with pytest.raises(StorageError, match="these credentials may not do that"):
        storage.stat(URI)


@pytest.mark.parametrize("ask", [storage.stat, storage.read_bytes, storage.open_file], ids=lambda f: f.__name__)
def test_a_missing_object_is_a_storage_error(s3: Shim, ask: Callable[[str], Any]) -> None:
    with pytest.raises(StorageError, match="s3://bucket/none does not exist"):
        ask("s3://bucket/none")


def test_no_server_there(s3: Shim, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.1")
    s3_requests.forget()
    with pytest.raises(StorageError, match=r"cannot be reached.*127\.0\.0\.1:9"):
        storage.read_bytes(URI)


def test_no_credentials(s3: Shim, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_requests.forget()
    with pytest.raises(RefusedError, match="no credentials found: set AWS_ACCESS_KEY_ID"):
        storage.read_bytes(URI)


def test_the_more_special_endpoint_counts(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_requests.forget()
    assert storage.put_if_absent(URI, b"data")


def test_bodies_are_sent_as_they_are(s3: Shim) -> None:
    """Stores that do not know trailing checksums would keep them inside the object."""
    seen: dict[str, Any] = {}

    def look(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        seen.update(environ)
        return app(environ, start_response)

    s3.fail("PUT", look)
    storage.put_if_absent(URI, b"data")
    assert "aws-chunked" not in seen.get("HTTP_CONTENT_ENCODING", "")
    assert "HTTP_X_AMZ_TRAILER" not in seen
    assert (seen["CONTENT_LENGTH"], seen["HTTP_IF_NONE_MATCH"]) == ("4", "*")
    assert seen["HTTP_CONTENT_MD5"] == base64.b64encode(hashlib.md5(b"data").digest()).decode()


def test_what_is_too_large_is_not_read(s3: Shim) -> None:
    storage.put_if_absent(URI, b"0123456789")
    assert storage.fetch(URI, 10) == (storage.stat(URI), b"0123456789")
    assert storage.fetch(URI, 9) == (storage.stat(URI), None)


def test_the_region_of_the_environment_counts(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    s3_requests.forget()
    seen: list[str] = []

    def look(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        seen.append(environ["HTTP_AUTHORIZATION"])
        return app(environ, start_response)

    s3.fail("PUT", look)
    storage.put_if_absent(URI, b"data")
    assert "/eu-north-1/s3/" in seen[0]


def test_threads_share_one_client(s3: Shim) -> None:
    threads = [threading.Thread(target=storage.put_if_absent, args=(f"{URI}{i}", b"x")) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(storage.list_files("s3://bucket"))) == 16


def test_light_imports_stay_light() -> None:
    code = "import sys, fcn_ray.storage as s; s.exists('.'); print('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_only_whole_requests_are_made(s3: Shim) -> None:
    """One request puts a chunk, and one asks for its length."""
    s3.fail("none")
    storage.put_if_absent(URI, b"data")
    assert [method for method, _ in s3.seen] == ["PUT", "HEAD"]
