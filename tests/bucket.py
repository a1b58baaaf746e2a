"""A bucket in memory, and what stands for it in front of a store elsewhere: the ends of the fake stores."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit


class Bucket:
    """Key -> (content, version, metadata, when it was put). `order` is the store's order of keys."""

    def __init__(self, order: Callable[[str], Any]) -> None:
        self.order = order
        self.objects: dict[str, tuple[bytes, int, dict[str, str], datetime]] = {}
        self._versions = itertools.count(1_700_000_000_000_001)
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, *, if_absent: bool, metadata: dict[str, str] | None = None) -> int | None:
        """The new version; None when there is an object that must not be."""
        with self._lock:
            if if_absent and key in self.objects:
                return None
            self.objects[key] = data, next(self._versions), metadata or {}, datetime.now(UTC)
            return self.objects[key][1]

    def page(self, prefix: str, delimiter: str, after: str, limit: int) -> tuple[list[str], list[str], str]:
        """Keys that begin with `prefix`, what they have in common up to a later delimiter, and where to go on."""
        with self._lock:
            found = {self._group(key, prefix, delimiter) for key in self.objects if key.startswith(prefix)}
        names = sorted((name for name in found if not after or self.order(name) > self.order(after)), key=self.order)
        page = names[:limit]
        groups = [name for name in page if delimiter and delimiter in name[len(prefix) :]]
        return [name for name in page if name not in groups], groups, page[-1] if len(names) > limit else ""

    def _group(self, key: str, prefix: str, delimiter: str) -> str:
        first, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        return prefix + first + found if found else key


def read_range(data: bytes, said: str | None) -> tuple[bytes, str | None] | None:
    """What a Range header asks for, and the Content-Range of it (None without one); None when there is no such part."""
    if said is None:
        return data, None
    first, _, last = said.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last or len(data)) + 1, len(data))
    return (data[start:stop], f"bytes {start}-{stop - 1}/{len(data)}") if start < len(data) else None


def reply(status: int, body: bytes, headers: dict[str, str] | None = None) -> Any:
    """A WSGI application that answers this."""
    from werkzeug import Response

    return Response(body, status, headers or {})


def forward(address: str) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """The WSGI application that asks the server at `address` the same."""
    host = urlsplit(address).netloc

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
        if environ.get("CONTENT_TYPE"):
            headers["Content-Type"] = environ["CONTENT_TYPE"]
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body, headers | {"Connection": "close"})
        answer = connection.getresponse()
        data = answer.read()
        kept = [pair for pair in answer.getheaders() if pair[0].lower() not in ("transfer-encoding", "connection")]
        start_response(f"{answer.status} {answer.reason}", kept)
        return [data]

    return app
