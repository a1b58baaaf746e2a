"""A shim before an object store on this machine that fails as stores and networks do; and an S3 server (moto)."""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "bucket"
Fault = Callable[[Any, dict[str, Any], Callable[..., Any]], Any]


class Shim:
    """A WSGI application before another. Requests of `method` (or "any") meet `faults`, one each, then `always`.

    `scheme` is that of the store's URIs; `put` and `head` are the methods by which it stores and describes an object.
    """

    def __init__(self, app: Any, scheme: str = "s3", put: str = "PUT", head: str = "HEAD") -> None:
        self.app, self.scheme, self.put, self.head = app, scheme, put, head
        self.root = f"{scheme}://{BUCKET}"
        self.method = "PUT"
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def fail(self, method: str, *faults: Fault, always: Fault | None = None) -> None:
        """From now on."""
        self.method, self.faults, self.always = method, list(faults), always
        self.seen.clear()

    def count(self, method: str) -> int:
        """Requests since `fail` was called."""
        return sum(seen == method for seen, _ in self.seen)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with self._lock:
            method = environ["REQUEST_METHOD"]
            self.seen.append((method, environ["PATH_INFO"]))
            meant = self.method in (method, "any")
            fault = self.faults.pop(0) if meant and self.faults else self.always if meant else None
        if fault is None:
            return self.app(environ, start_response)
        return fault(self.app, environ, start_response)


def answer(status: str, code: str) -> Fault:
    """The store answers `status` without doing anything."""

    def fault(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("x-ms-error-code", code)] if code else []
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return fault


def reset(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The connection breaks in the middle of the request."""
    if environ.get("CONTENT_LENGTH"):
        environ["wsgi.input"].read(1)
    return _hang_up(environ)


def lose_reply(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The store does as it is asked, and the connection breaks before it can say so."""
    b"".join(app(environ, lambda *_: None))
    return _hang_up(environ)


def stall(seconds: float) -> Fault:
    """The store does not answer for that long."""

    def fault(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        time.sleep(seconds)
        return _hang_up(environ)

    return fault


def cut(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Half of the answer, then the connection breaks."""
    body = b"".join(app(environ, start_response))
    yield body[: len(body) // 2]
    _hang_up(environ)


def ignore_range(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """The store answers with the whole object to whom asks for a part."""
    del environ["HTTP_X_MS_RANGE" if "HTTP_X_MS_RANGE" in environ else "HTTP_RANGE"]
    return app(environ, start_response)


def garble(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """The word "data" in the body of the request changes on its way."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).replace(b"data", b"dada")
    return app(environ | {"wsgi.input": io.BytesIO(body)}, start_response)


def keep_half(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """The store keeps half of what it is given and says that all is well."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    half = body[: len(body) // 2]
    environ = {name: value for name, value in environ.items() if name != "HTTP_CONTENT_MD5"}

    def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        return start_response(status, [pair for pair in headers if pair[0] != "Content-MD5"], *more)

    return app(environ | {"wsgi.input": io.BytesIO(half), "CONTENT_LENGTH": str(len(half))}, start)


def _hang_up(environ: dict[str, Any]) -> list[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("as the test wants it")


@contextmanager
def serve(shim: Shim) -> Iterator[str]:
    """The address at which the shim answers."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, shim, threaded=True)
    server.log = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()


@contextmanager
def serving() -> Iterator[tuple[str, Shim]]:
    """The server's address and its shim, with the bucket `BUCKET`; credentials are not checked."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    shim = Shim(DomainDispatcherApplication(create_backend_app))
    with serve(shim) as address:
        yield address, shim
