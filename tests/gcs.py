"""What we use of Google Cloud Storage, over HTTP on this machine: strict, in memory. Credentials are not looked at."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.bucket import Bucket, forward, read_range, reply
from tests.s3 import BUCKET, Fault, Shim, serve

OBJECTS = f"/storage/v1/b/{BUCKET}/o"


class Google:
    """The WSGI application."""

    def __init__(self) -> None:
        self.bucket = Bucket(order=str.encode)
        self.sessions: dict[str, tuple[dict[str, Any], Mapping[str, str]]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        from werkzeug import Request

        try:
            answer = self.answer(Request(environ))
        except Exception as error:  # else it would be asked again and again
            answer = refusal(400, f"not known here: {error!r}")
        return answer(environ, start_response)

    def answer(self, request: Any) -> Any:
        area, _, key = re.fullmatch(rf"(/upload|/download|){OBJECTS}(/(.*))?", request.path, re.S).groups()
        answers = {"/upload": self.upload, "/download": self.read, "": self.describe if key else self.list}
        if area == "" and request.method == "DELETE":
            answers[""] = self.delete
        query = request.args.to_dict()
        query.pop("prettyPrint", None)
        answer = answers[area](request, query, key or "")
        assert not query, query
        return answer

    def upload(self, request: Any, query: dict[str, str], key: str) -> Any:
        how = query.pop("uploadType")
        if how == "multipart":
            metadata, data = split_parts(request.content_type, request.get_data())
            return self.store(metadata, data, query)
        session = query.pop("upload_id", None)
        if session is None:
            session = uuid.uuid4().hex
            self.sessions[session] = request.get_json(), dict(query)
            query.clear()
            return reply(200, b"", {"Location": f"{request.base_url}?uploadType=resumable&upload_id={session}"})
        metadata, conditions = self.sessions.pop(session)
        data = request.get_data()
        assert request.headers["Content-Range"] == f"bytes 0-{len(data) - 1}/{len(data)}", "one piece is enough"
        kind, _, said = request.headers["X-Goog-Hash"].partition("=")
        return self.store(metadata | {kind: said}, data, dict(conditions))

    def store(self, metadata: dict[str, Any], data: bytes, query: dict[str, str]) -> Any:
        condition = query.pop("ifGenerationMatch", None)
        assert condition in (None, "0")
        right = digests(data)
        for kind in right.keys() & metadata.keys():
            if metadata[kind] != right[kind]:
                return refusal(400, f"Provided {kind} {metadata[kind]!r} doesn't match calculated {right[kind]!r}.")
        if self.bucket.put(metadata["name"], data, if_absent=condition is not None) is None:
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        return _json(self.about(metadata["name"]))

    def about(self, key: str) -> dict[str, str]:
        data, version, _, time = self.bucket.objects[key]
        about = {"name": key, "bucket": BUCKET, "size": str(len(data)), "generation": str(version)}
        return about | {"timeCreated": f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"} | digests(data)

    def describe(self, request: Any, query: dict[str, str], key: str) -> Any:
        query.pop("projection")
        if key not in self.bucket.objects:
            return refusal(404, f"No such object: {BUCKET}/{key}")
        return _json(self.about(key))

    def delete(self, request: Any, query: dict[str, str], key: str) -> Any:
        found = self.bucket.objects.pop(key, None)
        return reply(204, b"") if found else refusal(404, f"No such object: {BUCKET}/{key}")

    def read(self, request: Any, query: dict[str, str], key: str) -> Any:
        assert query.pop("alt") == "media"
        wanted = query.pop("ifGenerationMatch", None)
        if key not in self.bucket.objects:
            return reply(404, f"No such object: {BUCKET}/{key}".encode(), {"Content-Type": "text/html"})
        data, version, *_ = self.bucket.objects[key]
        if wanted not in (None, str(version)):
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        part = read_range(data, request.headers.get("Range"))
        if part is None:
            return refusal(416, "The requested range cannot be satisfied.")
        headers = {"X-Goog-Generation": str(version)} | ({"Content-Range": part[1]} if part[1] else {})
        return reply(206 if part[1] else 200, part[0], headers)

    def list(self, request: Any, query: dict[str, str], key: str) -> Any:
        assert query.pop("projection") == "noAcl"
        assert query.pop("fields", None) in (None, "items(name,size,generation,timeCreated),prefixes,nextPageToken")
        limit = int(query.pop("maxResults", 1000))
        prefix, delimiter, after = query.pop("prefix", ""), query.pop("delimiter", ""), query.pop("pageToken", "")
        names, groups, token = self.bucket.page(prefix, delimiter, after, limit)
        found = {"items": [self.about(name) for name in names], "prefixes": groups, "nextPageToken": token}
        return _json({name: value for name, value in found.items() if value})


def digests(data: bytes) -> dict[str, str]:
    """Checksums, as Google names and writes them."""
    from google_crc32c import value

    crc32c, md5 = value(data).to_bytes(4, "big"), hashlib.md5(data).digest()
    return {"crc32c": base64.b64encode(crc32c).decode(), "md5Hash": base64.b64encode(md5).decode()}


def split_parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Metadata and content of a multipart upload."""
    boundary = re.search(r'boundary="?([^"]+)', content_type)[1].encode()
    _, metadata, data, _ = body.split(b"--" + boundary)
    return json.loads(metadata.split(b"\r\n\r\n", 1)[1]), data.split(b"\r\n\r\n", 1)[1][:-2]


def refusal(status: int, message: str, reason: str = "") -> Any:
    about = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    return _json({"error": about}, status)


def _json(value: Any, status: int = 200) -> Any:
    return reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def refuse(status: int, message: str, reason: str = "") -> Fault:
    """The store answers `status` without doing anything."""

    def fault(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return refusal(status, message, reason)(environ, start_response)

    return fault


def keep_half(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """The store keeps half of what it is given and says that all is well."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    metadata, data = split_parts(environ["CONTENT_TYPE"], body)
    said = json.dumps({"name": metadata["name"]}).encode()
    body = b"--b\r\n\r\n" + said + b"\r\n--b\r\n\r\n" + data[: len(data) // 2] + b"\r\n--b--"
    new = {
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": 'multipart/related; boundary="b"',
    }
    return app(environ | new, start_response)


@contextmanager
def serving() -> Iterator[tuple[str, Shim]]:
    """Address and shim; FCN_RAY_TEST_GS may name a server (with the bucket `BUCKET`) that is asked instead."""
    elsewhere = os.environ.get("FCN_RAY_TEST_GS")
    shim = Shim(forward(elsewhere) if elsewhere else Google(), "gs", put="POST", head="GET")
    with serve(shim) as address:
        yield address, shim
