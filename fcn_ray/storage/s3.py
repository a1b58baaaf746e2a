"""Requests to S3, and to what speaks its protocol, by boto3: credentials, region and endpoint as AWS sets them.

Keys are used as they are, whatever they hold.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from fcn_ray.errors import RefusedError, StorageError, UnavailableError, UnequippedError
from fcn_ray.storage.answers import Found, Missing, Passing, Taken, patiently
from fcn_ray.storage.uris import split, split_folder

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Longest wait for a connection, and for the next byte of an answer."""

PAGE_KEYS = 1000
"""Keys in a page of a listing; no store gives more."""

_REGION = "the bucket is in another region: set AWS_REGION"
_ENDED = {
    "InvalidAccessKeyId": "the store does not know this access key",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "ExpiredToken": "the credentials have expired: renew them",
    "InvalidToken": "the store does not know this session token: renew the credentials",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
}
_NO_PLACE = {
    "NoSuchBucket": "there is no such bucket",
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
}
_REFUSALS = {
    "AccessDenied": "these credentials may not do that",
    "403": "these credentials may not do that",
    "NotImplemented": "the store lacks what results need: conditional writes (If-None-Match)",
}
_PASSING = {"BadDigest", "SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"}


def head(uri: str) -> Found:
    """What the store says of the object. Raises Missing."""
    bucket, key = split(uri)
    answer = _ask(uri, lambda client: _describe(client, bucket, key))
    return Found(answer["ContentLength"], answer["ETag"], _modified(answer))


def _describe(client: Any, bucket: str, key: str) -> Any:
    """What HEAD answers. An error of HEAD has no body, so GET is asked whether it is of the object or of the store."""
    from botocore.exceptions import ClientError

    try:
        return client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _status_of(error.response) not in (400, 403, 404):
            raise
        answer = client.get_object(Bucket=bucket, Key=key)
        answer["Body"].close()
        return answer


def keys(uri: str) -> Iterator[tuple[str, Found]]:
    """Path below the folder, and what there is, of every object below it, sorted by the key's UTF-8 bytes."""
    bucket, prefix = split_folder(uri)
    for page in _pages(uri, Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            yield found["Key"][len(prefix) :], Found(found["Size"], found["ETag"], _modified(found))


def folders(uri: str) -> Iterator[str]:
    """Names of the folders directly below."""
    bucket, prefix = split_folder(uri)
    for page in _pages(uri, Bucket=bucket, Prefix=prefix, Delimiter="/"):
        for found in page.get("CommonPrefixes", ()):
            yield found["Prefix"][len(prefix) : -1]


def _modified(answer: Any) -> float | None:
    time = answer.get("LastModified")
    return None if time is None else float(time.timestamp())


def _pages(uri: str, **request: Any) -> Iterator[Any]:
    token: dict[str, str] = {}
    while True:
        asked = request | token | {"MaxKeys": PAGE_KEYS}
        try:
            page = _ask(uri, lambda client: client.list_objects_v2(**asked))  # noqa: B023 (called at once)
        except Missing as error:  # a store would say that there is no such bucket
            raise RefusedError(f"{uri}: what answers there is no S3 store: is AWS_ENDPOINT_URL right?") from error
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def get(uri: str, part: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
    """The object, or (first byte, bytes) of it; raises Taken when it has another tag than `etag`."""
    bucket, key = split(uri)
    about = {"Bucket": bucket, "Key": key} | ({"IfMatch": etag} if etag else {})
    if part:
        about["Range"] = f"bytes={part[0]}-{part[0] + part[1] - 1}"
    return _ask(uri, lambda client: _body(client.get_object(**about)))


def fetch(uri: str, limit: int) -> tuple[Found, bytes | None]:
    """What the store says of the object, and its bytes unless they are more than `limit`. Raises Missing."""
    bucket, key = split(uri)

    def request(client: Any) -> tuple[Found, bytes | None]:
        answer = client.get_object(Bucket=bucket, Key=key)
        found = Found(answer["ContentLength"], answer["ETag"], _modified(answer))
        if found.size <= limit:
            return found, _body(answer)
        answer["Body"].close()
        return found, None

    return _ask(uri, request)


def _body(answer: Any) -> bytes:
    from botocore.exceptions import HTTPClientError
    from urllib3.exceptions import HTTPError

    try:
        data: bytes = answer["Body"].read()
    except (HTTPClientError, HTTPError, OSError) as error:
        raise Passing(f"the answer broke off ({type(error).__name__})") from error
    if len(data) != answer["ContentLength"]:
        raise Passing(f"the answer had {len(data)} of {answer['ContentLength']} bytes")
    return data


def put(uri: str, data: bytes, *, if_absent: bool) -> None:
    """Store the object whole; with `if_absent` raises Taken when there is one."""
    bucket, key = split(uri)
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    about = {"Bucket": bucket, "Key": key, "ContentMD5": md5} | ({"IfNoneMatch": "*"} if if_absent else {})
    _ask(uri, lambda client: client.put_object(**about, Body=data))


def delete(uri: str) -> None:
    """Delete the object, if it is there."""
    bucket, key = split(uri)
    _ask(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))


# ------------------------------------------------------------------------------------------------------------ asking


_making = Lock()


def _client() -> Any:
    with _making:  # threads that come at once would make one each
        return _make_client()


@cache
def _make_client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=32,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1},  # patience is ours
        # Trailing checksums end up inside the object on stores that do not know them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"  # boto3 reads AWS_DEFAULT_REGION only
    try:
        return session.client("s3", region_name=region, config=config)
    except ValueError as error:
        raise UnequippedError(
            "s3://: the endpoint is no address: expected AWS_ENDPOINT_URL to be one such as https://store.example:9000"
        ) from error


def forget() -> None:
    """Connect anew at the next request, with the settings of that moment."""
    _make_client.cache_clear()


def _ask(uri: str, request: Callable[[Any], T]) -> T:
    return patiently(uri, lambda: _try(uri, request))


def _try(uri: str, request: Callable[[Any], T]) -> T:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    try:
        return request(_client())
    except ClientError as error:
        raise _explain(uri, error.response) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UnequippedError(
            f"{uri}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give "
            "the machine a role"
        ) from error
    except (ConnectionError, HTTPClientError) as error:
        raise Passing(f"the store cannot be reached ({error})") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def _explain(uri: str, answer: Any) -> Exception:
    about, status = answer.get("Error", {}), _status_of(answer)
    code = str(about.get("Code") or status)
    if (status >= 500 and status != 501) or status in (409, 429) or code in _PASSING:
        return Passing(f"the store answers {code}")
    if status == 412:
        return Taken()
    if code in ("NoSuchKey", "404", "NotFound"):
        return Missing(f"{uri} does not exist")
    if code in _ENDED:
        return UnavailableError(f"{uri}: {code}: {_ENDED[code]}")
    if code in _NO_PLACE:
        return RefusedError(f"{uri}: {code}: {_NO_PLACE[code]}")
    return StorageError(f"{uri}: {code}: {_REFUSALS.get(code) or about.get('Message') or 'refused by the store'}")


def _status_of(answer: Any) -> int:
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
