"""Requests to Azure Blob Storage by azure-storage-blob: account and credentials as Azure's own tools set them.

The bucket of `az://CONTAINER/KEY` is the container; its account is that of the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from fcn_ray.errors import NotInstalledError, RefusedError, StorageError, UnavailableError, UnequippedError
from fcn_ray.storage.answers import Found, Missing, Passing, Taken, first_line, patiently
from fcn_ray.storage.uris import split, split_folder

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Longest wait for a connection, and for the next byte of an answer."""

PAGE_KEYS = 1000
"""Keys in a page of a listing; the store would give five times as many."""

READ_BYTES, PUT_BYTES = 32 << 20, 5000 << 20
"""Bytes that one request reads at most, and the most that the store takes in one."""

_ENDED = ("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation")
_NO_PLACE = {
    "ContainerNotFound": "there is no such container",
    "ContainerBeingDeleted": "the container is being deleted",
    "ContainerDisabled": "the container is disabled",
}
_REFUSALS = {
    "BlobArchived": "it is in the archive tier: bring it back to another tier first",
    "BlobBeingRehydrated": "it is on its way back from the archive tier",
}
_PASSING = ("Md5Mismatch", "OperationTimedOut", "ServerBusy")
_TAKEN = ("BlobAlreadyExists", "ConditionNotMet")


def head(uri: str) -> Found:
    """What the store says of the object. Raises Missing."""
    return _ask(uri, lambda service: _found(uri, _blob(service, uri).get_blob_properties()))


def _blob(service: Any, uri: str) -> Any:
    container, key = split(uri)
    return service.get_blob_client(container, key)


def _found(uri: str, properties: Any) -> Found:
    if _is_folder(properties):
        raise Missing(f"{uri} does not exist")
    return _describe(properties)


def _describe(properties: Any) -> Found:
    time = properties.last_modified
    return Found(properties.size, properties.etag, time and time.timestamp())


def _is_folder(properties: Any) -> bool:
    """Accounts whose names form a tree (hierarchical namespace) have objects for folders; some tools make them too."""
    about = properties.metadata or {}
    return any(name.lower() == "hdi_isfolder" and about[name] == "true" for name in about)


def keys(uri: str) -> Iterator[tuple[str, Found]]:
    """Path below the folder, and what there is, of every object below it, in the order of the store."""
    below = len(split_folder(uri)[1])
    for found in _listed(uri, "list_blobs", include=["metadata"]):
        if not _is_folder(found):
            yield found.name[below:], _describe(found)


def folders(uri: str) -> Iterator[str]:
    """Names of the folders directly below."""
    below = len(split_folder(uri)[1])
    for found in _listed(uri, "walk_blobs", delimiter="/"):
        if not hasattr(found, "etag"):  # what has one is an object
            yield found.name[below:-1]


def _listed(uri: str, how: str, **about: Any) -> Iterator[Any]:
    container, prefix = split_folder(uri)
    token: str | None = None

    def request(service: Any) -> tuple[list[Any], str | None]:
        ask = getattr(service.get_container_client(container), how)
        pages = ask(name_starts_with=prefix, results_per_page=PAGE_KEYS, **about).by_page(token)
        return list(next(pages)), pages.continuation_token

    while True:
        found, token = _ask(uri, request)
        yield from found
        if not token:
            return


def get(uri: str, part: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
    """The object, or (first byte, bytes) of it; raises Taken when it has another tag than `etag`."""
    about: dict[str, Any] = {"offset": part[0], "length": part[1]} if part else {}

    def request(service: Any) -> bytes:
        from azure.core import MatchConditions

        condition = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
        answer = _download(service, uri, **about, **condition)
        _found(uri, answer.properties)
        return _body(answer)

    return _ask(uri, request)


def fetch(uri: str, limit: int) -> tuple[Found, bytes | None]:
    """What the store says of the object, and its bytes unless they are more than `limit`. Raises Missing."""

    def request(service: Any) -> tuple[Found, bytes | None]:
        answer = _download(service, uri)
        found = _found(uri, answer.properties)
        return found, _body(answer) if found.size <= limit else None

    return _ask(uri, request)


def _download(service: Any, uri: str, **about: Any) -> Any:
    """An answer whose first READ_BYTES have come; the rest is asked for, of the same version, when it is read."""
    return _blob(service, uri).download_blob(decompress=False, **about)


def _body(answer: Any) -> bytes:
    from azure.core.exceptions import ResourceModifiedError

    try:
        data: bytes = answer.readall()
    except ResourceModifiedError as error:
        raise Passing("the object changed while it was read") from error
    return data


def put(uri: str, data: bytes, *, if_absent: bool) -> None:
    """Store the object whole; with `if_absent` raises Taken when there is one."""
    about = {"length": len(data), "overwrite": not if_absent, "validate_content": True}
    _ask(uri, lambda service: _blob(service, uri).upload_blob(data, **about))


def delete(uri: str) -> None:
    """Delete the object, if it is there."""
    try:
        _ask(uri, lambda service: _blob(service, uri).delete_blob(delete_snapshots="include"))
    except Missing:
        return


# ------------------------------------------------------------------------------------------------------------ asking


_making = Lock()


def _client() -> Any:
    with _making:  # threads that come at once would make one each
        return _make_client()


@cache
def _make_client() -> Any:
    try:
        from azure.storage.blob import BlobServiceClient
    except ImportError as error:
        raise NotInstalledError(f'az:// needs a package: {error}; pip install "fcn_ray[azure]"') from error
    about: dict[str, Any] = {
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retry_total": 0,  # patience is ours
        "max_single_get_size": READ_BYTES,
        "max_chunk_get_size": READ_BYTES,
        "max_single_put_size": PUT_BYTES,
    }
    if connection := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        try:
            return BlobServiceClient.from_connection_string(connection, **about)
        except ValueError as error:
            raise UnequippedError(
                "AZURE_STORAGE_CONNECTION_STRING is no connection string of a storage account"
            ) from error
    account = os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise UnequippedError("az://: no account found: set AZURE_STORAGE_ACCOUNT, or AZURE_STORAGE_CONNECTION_STRING")
    return BlobServiceClient(f"https://{account}.blob.core.windows.net", _credential(account), **about)


def _credential(account: str) -> Any:
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

    if key := os.environ.get("AZURE_STORAGE_KEY"):
        return AzureNamedKeyCredential(account, key)
    if token := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        return AzureSasCredential(token)
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise UnequippedError(
            "az://: no credentials found: set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN; for az login, and for the "
            "roles of machines, pip install azure-identity"
        ) from error
    return DefaultAzureCredential()


def forget() -> None:
    """Connect anew at the next request, with the settings of that moment."""
    _make_client.cache_clear()


def _ask(uri: str, request: Callable[[Any], T]) -> T:
    """What `request` returns, called with the client of the account."""
    return patiently(uri, lambda: _try(uri, request))


def _try(uri: str, request: Callable[[Any], T]) -> T:
    service = _client()
    from azure.core import exceptions

    try:
        return request(service)
    except exceptions.HttpResponseError as error:
        raise _explain(uri, error) from error
    except (exceptions.ServiceRequestError, exceptions.ServiceResponseError) as error:
        raise Passing(f"the store cannot be reached ({first_line(error)})") from error
    except (exceptions.AzureError, ValueError) as error:  # ValueError: of a name that the client refuses
        raise StorageError(f"{uri}: {first_line(error)}") from error


def _explain(uri: str, error: Any) -> Exception:
    from azure.core.exceptions import ClientAuthenticationError

    named, status, message = getattr(error, "error_code", None), error.status_code or 0, first_line(error.message)
    code = str(getattr(named, "value", named) or status)
    if code in _TAKEN:
        return Taken()
    if code in _ENDED:
        return UnavailableError(
            f"{uri}: {code}: the store does not accept these credentials, or not any more: renew them"
        )
    if isinstance(error, ClientAuthenticationError) and not named:
        return UnequippedError(f"{uri}: the credentials cannot be used: {message}")
    if code in _NO_PLACE:
        return RefusedError(f"{uri}: {code}: {_NO_PLACE[code]}")
    if status < 400:  # the client gives an answer that breaks off this form
        return Passing(f"the answer broke off ({message})")
    if status >= 500 or status in (408, 429) or code in _PASSING:
        return Passing(f"the store answers {code}")
    if status == 404:
        return Missing(f"{uri} does not exist")
    hint = "these credentials may not do that" if status in (401, 403) else _REFUSALS.get(code, message)
    return StorageError(f"{uri}: {code}: {hint}")
