"""What is peculiar to Google Cloud Storage; what it has in common with the other stores is in test_object_stores.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fcn_ray import storage
from fcn_ray.errors import ConfigError, OutOfReachError, RefusedError, StorageError, UnavailableError
from fcn_ray.storage import answers, gcs
from tests import s3 as faults
from tests.gcs import refuse
from tests.s3 import Fault, Shim

URI = "gs://bucket/folder/object"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FIRST_PAUSE", 0.01)


PASSING: dict[str, Fault] = {
    "408": refuse(408, "Request Timeout"),
    "409": refuse(409, "Conflict"),
    "400 of a body that was changed on its way": faults.garble,
    "403 of too many requests": refuse(403, "The limit was exceeded.", "userRateLimitExceeded"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(gs: Shim, fault: Fault) -> None:
    gs.fail("POST", fault, fault)
    assert storage.put_if_absent(URI, b"data")
    assert gs.count("POST") == 3
    assert storage.read_bytes(URI) == b"data"


REFUSALS: dict[str, tuple[Fault, type[Exception], str]] = {
    "401": (refuse(401, "Invalid Credentials"), UnavailableError, "401: .*renew them"),
    "403": (refuse(403, "me does not have storage.objects.create access."), StorageError, "403: .*may not do that: me"),
    "404": (refuse(404, "The specified bucket does not exist."), RefusedError, "404: there is no such bucket"),
    "400": (refuse(400, "Invalid argument."), StorageError, "400: Invalid argument."),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_come_with_a_hint_and_are_not_repeated(gs: Shim, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs._client()._http.credentials, "refresh", lambda _: None)
    fault, raised, hint = REFUSALS[kind]
    gs.fail("POST", always=fault)
    with pytest.raises(StorageError, match=f"{URI}: {hint}") as error:
        storage.put_if_absent(URI, b"data")
    assert type(error.value) is raised
    assert gs.count("POST") == (3 if kind == "401" else 1)  # the client renews its credentials twice


def test_a_bucket_that_is_not_there_is_no_missing_object(gs: Shim) -> None:
    for ask in (storage.read_bytes, storage.stat, lambda uri: list(storage.list_files(uri))):
        gs.fail("GET", refuse(404, "The specified bucket does not exist."))
        with pytest.raises(RefusedError, match="no such bucket"):
            ask(URI)
    gs.fail("GET", refuse(404, "Not Found"))
    with pytest.raises(RefusedError, match="no such bucket"):
        storage.list_folders(URI)


def test_a_name_that_no_bucket_has_is_refused(gs: Shim) -> None:
    with pytest.raises(StorageError, match="gs://-bucket/a: Bucket names must start"):
        storage.read_bytes("gs://-bucket/a")


def test_a_store_that_ignores_the_version_is_noticed(gs: Shim) -> None:
    def ignore(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        query = re.sub("ifGenerationMatch=[0-9]+&?", "", environ["QUERY_STRING"])
        return app(environ | {"QUERY_STRING": query}, start_response)

    storage.replace(URI, b"a" * 100)
    gs.fail("GET", always=ignore)
    with storage.open_file(URI) as file:
        storage.replace(URI, b"b" * 100)
        with pytest.raises(StorageError, match="changed while it was read"):
            file.read(10)


BIG = bytes(range(256)) * 40_000
"""10 MB: more than the client sends in one request."""


def test_a_large_object_is_put_once_too(gs: Shim) -> None:
    assert storage.put_if_absent(URI, BIG)
    assert not storage.put_if_absent(URI, BIG[1:])
    assert storage.digest_file(URI) == storage.digest(BIG)


def test_the_first_of_two_large_writers_wins(gs: Shim) -> None:
    def overtaken(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        gs.fail("none")
        storage.put_if_absent(URI, b"first")
        return app(environ, start_response)

    gs.fail("PUT", overtaken)  # after the upload has begun
    assert not storage.put_if_absent(URI, BIG)
    assert storage.read_bytes(URI) == b"first"


LATE: dict[str, Fault] = {
    "lost reply": faults.lose_reply,
    "reset": faults.reset,
    "503": refuse(503, "Service Unavailable"),
    "410": refuse(410, "Gone"),
    "404": refuse(404, "Not Found"),
}


@pytest.mark.parametrize("kind", LATE)
def test_an_upload_that_breaks_off_begins_anew(gs: Shim, kind: str) -> None:
    gs.fail("PUT", LATE[kind])
    assert storage.put_if_absent(URI, BIG) == (kind != "lost reply")
    assert storage.digest_file(URI) == storage.digest(BIG)


def test_a_content_that_was_stored_compressed_is_read_as_it_is(gs: Shim) -> None:
    """Else its bytes would not be as many as the store says."""

    def say_gzip(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return app(environ, lambda status, headers: start_response(status, [*headers, ("Content-Encoding", "gzip")]))

    storage.put_if_absent(URI, b"\x1f\x8b no gzip at all")
    gs.fail("GET", always=say_gzip)
    assert storage.fetch(URI, 100)[1] == storage.read_bytes(URI) == b"\x1f\x8b no gzip at all"


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    gcs.forget()
    with pytest.raises(RefusedError, match=f"{URI}: no credentials found: run gcloud auth application-default login"):
        storage.read_bytes(URI)


def test_credentials_that_have_ended(gs: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth.exceptions import RefreshError

    errors = [RefreshError("busy", retryable=True), RefreshError("invalid_grant: Bad Request")]

    def renew(*_: Any, **__: Any) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(gcs._client()._http.credentials, "before_request", renew)
    with pytest.raises(UnavailableError, match=r"the credentials have expired: renew them \(invalid_grant"):
        storage.read_bytes(URI)
    assert not errors


def test_the_package_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    gcs.forget()
    with pytest.raises(ConfigError, match=r'gs:// needs a package: .*; pip install "fcn_ray\[gcs\]"') as error:
        storage.read_bytes(URI)
    assert error.value.exit_code == 2
    assert isinstance(error.value, OutOfReachError), "a worker without it must not take the object for unreadable"
