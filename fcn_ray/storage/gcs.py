"""Requests to Google Cloud Storage by google-cloud-storage: credentials as Google's own tools set them.

The version of an object is its generation. Where STORAGE_EMULATOR_HOST is set, that is asked, without credentials.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from threading import Lock
from typing import Any, TypeVar

from fcn_ray.errors import FcnRayError, NotInstalledError, RefusedError, StorageError, UnavailableError, UnequippedError
from fcn_ray.storage.answers import Found, Missing, Passing, Taken, first_line, patiently
from fcn_ray.storage.uris import split, split_folder

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Longest wait for a connection, and for the next byte of an answer."""

PAGE_KEYS = 1000
"""Keys in a page of a listing; the store gives no more."""

_FIELDS = "items(name,size,generation,timeCreated),prefixes,nextPageToken"

# What Google's answers say of too many requests (some come with 403), of a body that does not have the checksum that
# came with it (400), and of a bucket that is not there (404).
_LIMITS, _DAMAGED, _NO_BUCKET = "ateLimitExceeded", "doesn't match calculated", "bucket does not exist"


def head(uri: str) -> Found:
    """What the store says of the object. Raises Missing."""

    def request(blob: Any) -> Found:
        blob.reload(**_once())
        return _found(blob)

    return _ask(uri, request)


def _found(blob: Any) -> Found:
    return Found(blob.size, str(blob.generation), blob.time_created and blob.time_created.timestamp())


def keys(uri: str) -> Iterator[tuple[str, Found]]:
    """Path below the folder, and what there is, of every object below it, in the order of the store."""
    prefix = split_folder(uri)[1]
    for blobs, _ in _pages(uri, prefix=prefix):
        for blob in blobs:
            yield blob.name[len(prefix) :], _found(blob)


def folders(uri: str) -> Iterator[str]:
    """Names of the folders directly below."""
    prefix = split_folder(uri)[1]
    for _, found in _pages(uri, prefix=prefix, delimiter="/"):
        for name in found:
            yield name[len(prefix) : -1]


def _pages(uri: str, **about: Any) -> Iterator[tuple[list[Any], list[str]]]:
    token: str | None = None
    while True:
        blobs, prefixes, token = _ask(uri, partial(_page, about | {"page_token": token}))
        yield blobs, prefixes
        if not token:
            return


def _page(about: dict[str, Any], anywhere: Any) -> tuple[list[Any], list[str], str | None]:
    listing = anywhere.client.list_blobs(anywhere.bucket, page_size=PAGE_KEYS, fields=_FIELDS, **_once(), **about)
    page = next(listing.pages)
    return list(page), sorted(page.prefixes), listing.next_page_token


def get(uri: str, part: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
    """The object, or (first byte, bytes) of it; raises Taken when it is of another generation than `etag`."""
    about: dict[str, Any] = {"if_generation_match": int(etag)} if etag else {}
    if part:
        about |= {"start": part[0], "end": part[0] + part[1] - 1}

    def request(blob: Any) -> bytes:
        data: bytes = blob.download_as_bytes(raw_download=True, **_once(), **about)
        if etag and blob.generation not in (None, int(etag)):  # what speaks Google's protocol may not know conditions
            raise Taken
        return data

    return _ask(uri, request)


def fetch(uri: str, limit: int) -> tuple[Found, bytes | None]:
    """What the store says of the object, and its bytes unless they are more than `limit`. Raises Missing."""

    def request(blob: Any) -> tuple[Found, bytes] | None:
        kept = _Limited(limit)
        try:
            blob.download_to_file(kept, raw_download=True, **_once())
        except _TooLong:
            return None
        return Found(kept.tell(), str(blob.generation)), kept.getvalue()

    return _ask(uri, request) or (head(uri), None)


class _TooLong(Exception):  # noqa: N818
    pass


class _Limited(io.BytesIO):
    """Takes `limit` bytes; the client does not tell beforehand how many will come."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise _TooLong
        return super().write(data)


def put(uri: str, data: bytes, *, if_absent: bool) -> None:
    """Store the object whole; with `if_absent` raises Taken when there is one."""
    about = {"if_generation_match": 0} if if_absent else {}
    kind = "application/octet-stream"
    _ask(uri, lambda blob: blob.upload_from_string(data, content_type=kind, **_once(), **about))


def delete(uri: str) -> None:
    """Delete the object, if it is there."""
    try:
        _ask(uri, lambda blob: blob.delete(**_once()))
    except Missing:
        return


# ------------------------------------------------------------------------------------------------------------ asking


def _once() -> dict[str, Any]:
    return {"retry": None, "timeout": (CONNECT_SECONDS, READ_SECONDS)}  # patience is ours


_making = Lock()


def _client() -> Any:
    with _making:  # threads that come at once would make one each
        return _make_client()


@cache
def _make_client() -> Any:
    try:
        from google.cloud.storage import Client
    except ImportError as error:
        raise NotInstalledError(f'gs:// needs a package: {error}; pip install "fcn_ray[gcs]"') from error
    # Else each process asks once for the bucket as well, in a thread that tries again and again, to name it in traces.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    return Client(project=None)  # objects need none


def forget() -> None:
    """Connect anew at the next request, with the settings of that moment."""
    _make_client.cache_clear()


def _ask(uri: str, request: Callable[[Any], T]) -> T:
    """What `request` returns, called with the client's object of `uri`."""
    return patiently(uri, lambda: _try(uri, request))


def _try(uri: str, request: Callable[[Any], T]) -> T:
    bucket, key = split(uri)
    try:
        return request(_client().bucket(bucket).blob(key))
    except (FcnRayError, Passing, Taken):
        raise
    except Exception as error:
        explained = _explain(uri, error)
        if explained is None:
            raise
        raise explained from error


def _explain(uri: str, error: Exception) -> Exception | None:
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests import exceptions
    from urllib3.exceptions import HTTPError

    if isinstance(error, GoogleAPICallError):
        return _explain_answer(uri, error)
    if isinstance(error, GoogleAuthError):
        return _explain_credentials(uri, error)
    broken = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError, HTTPError)
    if isinstance(error, (*broken, exceptions.JSONDecodeError, DataCorruption, ConnectionError, TimeoutError)):
        return Passing(f"the store cannot be reached ({first_line(error)})")
    if isinstance(error, (exceptions.RequestException, ValueError)):  # of a name or an address that the client refuses
        return StorageError(f"{uri}: {first_line(error)}")
    return None


def _explain_credentials(uri: str, error: Any) -> Exception:
    from google.auth.exceptions import DefaultCredentialsError

    if isinstance(error, DefaultCredentialsError):
        return UnequippedError(
            f"{uri}: no credentials found: run gcloud auth application-default login, or set "
            "GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account"
        )
    if error.retryable:
        return Passing(f"the credentials cannot be renewed ({first_line(error)})")
    return UnavailableError(f"{uri}: the credentials have expired: renew them ({first_line(error)})")


def _explain_answer(uri: str, error: Any) -> Exception:
    status, asked, message = int(error.code), error.response.url, _message(error.response)
    if status >= 500 or status in (408, 409, 410, 429) or (status == 404 and "upload_id=" in asked):
        return Passing(f"the store answers {status}: {message}")
    if _LIMITS in error.response.text or _DAMAGED in message:
        return Passing(f"the store answers {status}: {message}")
    if status == 412:
        return Taken()
    if status == 404 and ("/o/" not in asked or _NO_BUCKET in message):
        return RefusedError(f"{uri}: 404: there is no such bucket")
    if status == 404:
        return Missing(f"{uri} does not exist")
    if status == 401:
        return UnavailableError(f"{uri}: 401: the store does not accept these credentials, or not any more: renew them")
    if status == 403:
        return StorageError(f"{uri}: 403: these credentials may not do that: {message}")
    return StorageError(f"{uri}: {status}: {message}")


def _message(answer: Any) -> str:
    try:
        return first_line(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return first_line(answer.reason if answer.text.startswith("<") else answer.text or answer.reason)
