"""What is peculiar to S3; what it has in common with the other stores is in test_object_stores.py."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Any

import pytest

from fcn_ray import storage
from fcn_ray.errors import RefusedError, StorageError, UnavailableError, UnequippedError
from fcn_ray.storage import answers
from fcn_ray.storage import s3 as s3_store
from fcn_ray.storage.answers import Missing
from tests.s3 import Fault, Shim, answer

pytestmark = pytest.mark.s3

URI = "s3://bucket/folder/object"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(answers, "LONGEST_PAUSE", 0.05)


PASSING: dict[str, Fault] = {
    "409": answer("409 Conflict", "ConditionalRequestConflict"),
    "400 of a body that was changed on its way": answer("400 Bad Request", "BadDigest"),
    "400 of a slow upload": answer("400 Bad Request", "RequestTimeout"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(s3: Shim, quick: None, fault: Fault) -> None:
    s3.fail("PUT", fault, fault)
    assert storage.put_if_absent(URI, b"data")
    assert s3.count("PUT") == 3
    assert storage.read_bytes(URI) == b"data"


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
    s3.fail("any", always=answer("403 Forbidden", ""))
    with pytest.raises(StorageError, match="these credentials may not do that"):
        storage.stat(URI)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("400 Bad Request", "ExpiredToken", UnavailableError),
        ("400 Bad Request", "InvalidToken", UnavailableError),
        ("403 Forbidden", "InvalidAccessKeyId", UnavailableError),
        ("403 Forbidden", "RequestTimeTooSkewed", UnavailableError),
        ("404 Not Found", "NoSuchBucket", RefusedError),
        ("404 Not Found", "NoSuchKey", Missing),
        ("403 Forbidden", "AccessDenied", StorageError),
    ],
)
def test_a_head_that_fails_tells_the_object_from_the_store(
    s3: Shim, status: str, code: str, kind: type[StorageError]
) -> None:
    s3.fail("any", always=answer(status, code))
    with pytest.raises(StorageError) as error:
        storage.stat(URI)
    assert type(error.value) is kind


def test_an_object_that_appears_behind_a_head_is_there(s3: Shim) -> None:
    storage.put_if_absent(URI, b"data")
    known = storage.stat(URI)
    s3.fail("HEAD", answer("404 Not Found", ""))
    assert storage.stat(URI) == known


def test_no_credentials(s3: Shim, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_store.forget()
    with pytest.raises(RefusedError, match="no credentials found: set AWS_ACCESS_KEY_ID"):
        storage.read_bytes(URI)


def test_the_more_special_endpoint_counts(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_store.forget()
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


def test_the_region_of_the_environment_counts(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    s3_store.forget()
    seen: list[str] = []

    def look(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        seen.append(environ["HTTP_AUTHORIZATION"])
        return app(environ, start_response)

    s3.fail("PUT", look)
    storage.put_if_absent(URI, b"data")
    assert "/eu-north-1/s3/" in seen[0]


def _page(status: str) -> Fault:
    """A web server answers, and not a store."""

    def fault(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(status, [("Content-Type", "text/html")])
        return [b"<!doctype html><title>Welcome<p>It works"]

    return fault


def test_a_web_server_in_the_place_of_the_store_is_told_as_such(
    s3: Shim, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.fail("any", always=_page("404 Not Found"))
    with pytest.raises(
        RefusedError, match="s3://bucket/folder: what answers there is no S3 store: is AWS_ENDPOINT_URL"
    ):
        list(s3_store.keys("s3://bucket/folder"))
    monkeypatch.setattr(answers, "_answered", set())
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.1")
    s3.fail("any", always=_page("200 OK"))
    with pytest.raises(UnavailableError, match="It has not answered once: is AWS_ENDPOINT_URL right"):
        list(s3_store.keys("s3://bucket/folder"))


def test_an_endpoint_that_is_no_address_is_told_without_it(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "store.example:9000/secret")
    s3_store.forget()
    with pytest.raises(UnequippedError, match="expected AWS_ENDPOINT_URL to be one such as https://") as error:
        storage.read_bytes(URI)
    assert "secret" not in str(error.value)
