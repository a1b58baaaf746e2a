"""Requests to Google Cloud Storage (gs://BUCKET) and Azure Blob Storage (az://CONTAINER), by obstore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from fcn_ray.errors import StorageError
from fcn_ray.storage.requests import Found, Missing, Passing, Taken, Unavailable, patiently
from fcn_ray.storage.uris import scheme_of, split

T = TypeVar("T")


def head(uri: str) -> Found:
    """What the store says of the object. Raises Missing."""
    import obstore

    return _found(_ask(uri, lambda store, key: obstore.head(store, key)))


def _found(meta: Any) -> Found:
    return Found(meta["size"], meta["e_tag"])


def keys(uri: str) -> Iterator[tuple[str, Found]]:
    """Path below the folder, and what there is, of every object below it, sorted by the key's UTF-8 bytes."""
    import obstore

    prefix = split(uri)[1]
    below = len(prefix) + 1 if prefix else 0
    after: str | None = None
    pages = None
    while True:
        try:
            pages = pages or iter(obstore.list(_store(uri), prefix or None, offset=after))
            page = next(pages, None)
        except obstore.exceptions.GenericError as error:  # goes on after the last key that came
            pages = None
            _ask(uri, lambda store, _: obstore.list_with_delimiter(store, prefix or None))
            if after is None:
                raise StorageError(f"{uri} cannot be listed: {error}") from error
            continue
        if page is None:
            return
        for meta in page:
            after = meta["path"]
            yield meta["path"][below:], _found(meta)


def folders(uri: str) -> Iterator[str]:
    """Names of the folders directly below."""
    import obstore

    prefix = split(uri)[1]
    answer = _ask(uri, lambda store, _: obstore.list_with_delimiter(store, prefix or None))
    for found in answer["common_prefixes"]:
        yield found.rpartition("/")[2]


def get(uri: str, part: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
    """The object, or (first byte, bytes) of it; raises Taken when it has another tag than `etag`."""
    import obstore

    options: dict[str, Any] = {"if_match": etag} if etag else {}
    if part:
        options["range"] = (part[0], part[0] + part[1])
    return _ask(uri, lambda store, key: bytes(obstore.get(store, key, options=options).bytes()))


def fetch(uri: str, limit: int) -> tuple[Found, bytes | None]:
    """What the store says of the object, and its bytes unless they are more than `limit`. Raises Missing."""
    import obstore

    def request(store: Any, key: str) -> tuple[Found, bytes | None]:
        answer = obstore.get(store, key)
        found = _found(answer.meta)
        return found, bytes(answer.bytes()) if found.size <= limit else None

    return _ask(uri, request)


def put(uri: str, data: bytes, *, if_absent: bool) -> None:
    """Store the object whole; with `if_absent` raises Taken when there is one."""
    import obstore

    mode = "create" if if_absent else "overwrite"
    _ask(uri, lambda store, key: obstore.put(store, key, data, mode=mode, use_multipart=False))


def delete(uri: str) -> None:
    """Delete the object, if it is there."""
    import obstore

    _ask(uri, lambda store, key: obstore.delete(store, key))


# ------------------------------------------------------------------------------------------------------------ asking


@cache
def _open(scheme: str, bucket: str) -> Any:
    from obstore.store import from_url

    patience = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}  # patience is ours
    return from_url(f"{scheme}://{bucket}", retry_config=patience, client_options={"timeout": "60s"})


def _store(uri: str) -> Any:
    return _open(scheme_of(uri), split(uri)[0])


def _ask(uri: str, request: Callable[[Any, str], T]) -> T:
    return patiently(uri, lambda: _try(uri, request))


def _try(uri: str, request: Callable[[Any, str], T]) -> T:
    from obstore import exceptions

    try:
        return request(_store(uri), split(uri)[1])
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise Missing(f"{uri} does not exist") from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise Taken from error
    except exceptions.UnauthenticatedError as error:
        raise Unavailable(f"{uri}: the store does not know these credentials ({_first_line(error)})") from error
    except exceptions.GenericError as error:
        raise Passing(f"the store does not answer ({_first_line(error)})") from error
    except exceptions.BaseError as error:
        raise StorageError(f"{uri}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
