"""S3 against a real server of its protocol, and a shim before it that fails as stores do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from fcn_ray import storage
from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.storage import s3

pytestmark = pytest.mark.s3


class Shim:
    """A WSGI application before another: `faults` are taken one for each request to a key, the first first."""

    def __init__(self, app: Any) -> None:
        self.app, self.faults, self.seen = app, [], []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        fault = self.faults.pop(0) if self.faults else None
        return fault(self.app, environ, start_response) if fault else self.app(environ, start_response)


def answer(status: str, code: str) -> Callable[..., Any]:
    """A fault: the store answers `status` without doing anything."""

    def fail(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    return fail


def apply_then_fail(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A fault: the store does it, and its reply is lost."""
    b"".join(app(environ, lambda *_: None))
    return answer("500 Internal Server Error", "InternalError")(app, {"wsgi.input": _Nothing()}, start_response)


def cut(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A fault: half of the answer."""
    body = b"".join(app(environ, start_response))
    return [body[: len(body) // 2]]


class _Nothing:
    def read(self, size: int) -> bytes:
        return b""
