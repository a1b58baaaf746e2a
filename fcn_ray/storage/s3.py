"""S3 and what speaks its protocol, by boto3: the credentials, profiles, region and endpoint of the AWS settings.

Keys are used as they are, whatever they hold. Writes are one conditional PUT: a store that answers "already there" to
it (412) may also mean an earlier try of ours whose reply was lost, so callers look at what is there.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, BinaryIO, TypeVar

from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.storage.patience import Passing, patiently
from fcn_ray.storage.uris import Entry, is_hidden, split

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Longest wait for a connection, and for the next byte of an answer."""

READ_AHEAD = 1 << 18
"""Bytes that a small read of an open object fetches."""

_HINTS = {
    "InvalidAccessKeyId": "the store does not know this access key",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "AccessDenied": "these credentials may not do that",
    "403": "these credentials may not do that",
    "ExpiredToken": "the credentials have expired: renew them",
    "NoSuchBucket": "there is no such bucket",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "301": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_REGION",
}
_PASSING = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "OperationAborted", "ConditionalRequestConflict"}


class _Missing(StorageError):
    pass


class _Taken(Exception):  # noqa: N818
    pass


@cache
def _client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=32,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1},  # patience is ours
        # Trailing checksums come out as part of the object on stores that do not know them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    return session.client("s3", region_name=session.region_name or "us-east-1", config=config)


def _ask(uri: str, request: Callable[[Any], T]) -> T:
    """`request(client)`, patiently. Raises StorageError with a way out, _Missing or _Taken."""
    return patiently(uri, lambda: _try(uri, request))


def _try(uri: str, request: Callable[[Any], T]) -> T:
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError

    try:
        return request(_client())
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= 500 or status in (409, 429) or code in _PASSING:
            raise Passing(f"the store answers {code or status}") from error
        if status == 412:
            raise _Taken from error
        if code in ("NoSuchKey", "404", "NotFound"):
            raise _Missing(f"{uri} does not exist") from error
        hint = _HINTS.get(code) or error.response.get("Error", {}).get("Message") or "see the store's documentation"
        raise StorageError(f"{uri}: {code or status}: {hint}") from error
    except NoCredentialsError as error:
        raise ConfigError(
            f"{uri}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the "
            "machine a role"
        ) from error
    except HTTPClientError as error:
        raise Passing(f"the store cannot be reached ({type(error).__name__}: {error})") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def is_file(uri: str) -> bool:
    """True when `uri` is one object."""
    if not split(uri)[1]:
        return False
    try:
        _head(uri)
    except _Missing:
        return False
    return True


def exists(uri: str) -> bool:
    """True when `uri` is an object, or others lie below it."""
    return is_file(uri) or next(_keys(uri), None) is not None


def stat(uri: str) -> Entry:
    """Size and version of one object."""
    head = _head(uri)
    return Entry(split(uri)[1].rpartition("/")[2], head["ContentLength"], _version(head["ContentLength"], head["ETag"]))


def _head(uri: str) -> Any:
    bucket, key = split(uri)
    return _ask(uri, lambda client: client.head_object(Bucket=bucket, Key=key))


def _version(size: int, etag: str) -> str:
    return f"{size}-{etag.strip(chr(34))}"


def absolute(uri: str) -> str:
    """The URI without a slash at its end. Raises ConfigError for one with a query: it might carry a signature."""
    if "?" in uri:
        raise ConfigError(f"{uri.partition('?')[0]}?...: give the plain URI, without a query")
    return uri.rstrip("/")


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below, sorted."""
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    found = []
    for page in _pages(uri, Bucket=bucket, Prefix=prefix, Delimiter="/"):
        found += [common["Prefix"][len(prefix) : -1] for common in page.get("CommonPrefixes", ())]
    return found


def list_files(uri: str, on_skip: Callable[[str], None] | None = None) -> Iterator[Entry]:
    """Every object below `uri`, in the order of its key's UTF-8 bytes, a page at a time in memory."""
    for path, found in _keys(uri):
        if is_hidden(path):
            if on_skip:
                on_skip(path)
            continue
        yield Entry(path, found["Size"], _version(found["Size"], found["ETag"]))


def _keys(uri: str) -> Iterator[tuple[str, Any]]:
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    for page in _pages(uri, Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            yield found["Key"][len(prefix) :], found


def _pages(uri: str, **request: str) -> Iterator[Any]:
    token: dict[str, str] = {}
    while True:
        page = _ask(uri, lambda client: client.list_objects_v2(**request, **token))  # noqa: B023 (used at once)
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def read_bytes(uri: str) -> bytes:
    """All of one object."""
    bucket, key = split(uri)
    return _ask(uri, lambda client: _body(client.get_object(Bucket=bucket, Key=key)))


def _body(answer: Any) -> bytes:
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    try:
        data: bytes = answer["Body"].read()
    except (HTTPClientError, IncompleteReadError, HTTPError, OSError) as error:
        raise Passing(f"the answer broke off ({type(error).__name__})") from error
    if len(data) != answer["ContentLength"]:
        raise Passing(f"the answer had {len(data)} of {answer['ContentLength']} bytes")
    return data


def open_file(uri: str) -> BinaryIO:
    """One object, open for reading anywhere in it: every read is of the version that was there when it was opened."""
    head = _head(uri)
    return io.BufferedReader(_Object(uri, head["ContentLength"], head["ETag"]), READ_AHEAD)


class _Object(io.RawIOBase):
    """Reads ranges of one version of an object."""

    def __init__(self, uri: str, size: int, etag: str) -> None:
        super().__init__()
        self._uri, self._size, self._etag, self._at = uri, size, etag, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = min(len(view), self._size - self._at)
        if count <= 0:
            return 0
        bucket, key = split(self._uri)
        about = {"Bucket": bucket, "Key": key, "IfMatch": self._etag}
        wanted = f"bytes={self._at}-{self._at + count - 1}"
        try:
            data = _ask(self._uri, lambda client: _body(client.get_object(**about, Range=wanted)))
        except _Taken as error:
            raise StorageError(f"{self._uri} changed while it was read") from error
        view[:count] = data
        self._at += count
        return count


def put_if_absent(uri: str, data: bytes) -> bool:
    """Store `data` whole under `uri` unless something is there: True when written, False when it was there already."""
    try:
        _put(uri, data, IfNoneMatch="*")
    except _Taken:
        return False
    if (stored := stat(uri).size) != len(data):
        raise StorageError(
            f"{uri} has {stored} bytes after {len(data)} were sent: this store does not keep what it is given"
        )
    return True


def replace(uri: str, data: bytes) -> None:
    """Store `data` whole under `uri`, over what is there."""
    _put(uri, data)


def _put(uri: str, data: bytes, **condition: str) -> None:
    bucket, key = split(uri)
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    _ask(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data, ContentMD5=md5, **condition))


def remove_folder(uri: str) -> None:
    """Delete all below `uri`, as far as it can be deleted."""
    bucket, _ = split(uri)
    try:
        for _, found in _keys(uri):
            _ask(uri, lambda client, key=found["Key"]: client.delete_object(Bucket=bucket, Key=key))
    except StorageError:
        return
