"""What we use of Azure Blob Storage, over HTTP on this machine: strict, in memory. Credentials are not looked at."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

from tests.bucket import Bucket, forward, read_range, reply
from tests.s3 import BUCKET, Shim, serve

ACCOUNT, KEY = "account", base64.b64encode(b"no secret").decode()


class Azure:
    """The WSGI application of a container. Keys are in the order of UTF-16, as in Azure."""

    def __init__(self) -> None:
        self.bucket = Bucket(order=lambda key: key.encode("utf-16-be"))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        from werkzeug import Request

        try:
            answer = self.answer(Request(environ))
        except Exception as error:  # else it would be asked again and again
            answer = refusal(400, "NotKnown", escape(f"not known here: {error!r}"))
        return answer(environ, start_response)

    def answer(self, request: Any) -> Any:
        assert request.headers["x-ms-version"] >= "2021-02-12"
        container, _, key = request.path.removeprefix(f"/{ACCOUNT}/").partition("/")
        assert container == BUCKET
        answers = {"PUT": self.put, "HEAD": self.read, "GET": self.read if key else self.list, "DELETE": self.delete}
        return answers[request.method](request, key)

    def put(self, request: Any, key: str) -> Any:
        data = request.get_data()
        assert request.headers["x-ms-blob-type"] == "BlockBlob"
        if (said := request.headers.get("Content-MD5")) not in (None, _md5(data)):
            return refusal(400, "Md5Mismatch", f"The MD5 value {said} specified in the request did not match.")
        if_absent = request.headers.get("If-None-Match")
        assert if_absent in (None, "*")
        if self.bucket.put(key, data, if_absent=if_absent is not None) is None:
            return refusal(409, "BlobAlreadyExists", "The specified blob already exists.")
        return reply(201, b"", {"ETag": self.etag(key), "Content-MD5": _md5(data)})

    def etag(self, key: str) -> str:
        return f'"0x{self.bucket.objects[key][1]:X}"'

    def read(self, request: Any, key: str) -> Any:
        if key not in self.bucket.objects:
            return refusal(404, "BlobNotFound", "The specified blob does not exist.")
        data, _, metadata, time = self.bucket.objects[key]
        if request.headers.get("If-Match") not in (None, self.etag(key)):
            return refusal(412, "ConditionNotMet", "The condition specified is not met.")
        part = read_range(data, request.headers.get("x-ms-range"))
        if part is None:
            return refusal(416, "InvalidRange", "The range specified is invalid.")
        about = {f"x-ms-meta-{name}": value for name, value in metadata.items()} | {"x-ms-blob-type": "BlockBlob"}
        about |= {"ETag": self.etag(key), "Last-Modified": f"{time:%a, %d %b %Y %H:%M:%S GMT}"}
        about |= {"Content-Range": part[1]} if part[1] else {}
        answer = reply(206 if part[1] else 200, part[0], about)
        if request.method == "HEAD":
            answer.headers["Content-Length"] = str(len(data))
        return answer

    def delete(self, request: Any, key: str) -> Any:
        if self.bucket.objects.pop(key, None) is None:
            return refusal(404, "BlobNotFound", "The specified blob does not exist.")
        return reply(202, b"")

    def list(self, request: Any, key: str) -> Any:
        query = request.args.to_dict()
        assert (query.pop("restype"), query.pop("comp")) == ("container", "list")
        assert query.pop("include", "metadata") == "metadata"
        limit = int(query.pop("maxresults", 5000))
        prefix, delimiter, after = query.pop("prefix", ""), query.pop("delimiter", ""), query.pop("marker", "")
        assert not query, query
        names, groups, token = self.bucket.page(prefix, delimiter, after, limit)
        found = "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in groups)
        found += "".join(self.describe(name) for name in names)
        text = f"<Blobs>{found}</Blobs><NextMarker>{escape(token)}</NextMarker>"
        text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{text}</EnumerationResults>'
        return reply(200, text.encode(), {"Content-Type": "application/xml"})

    def describe(self, key: str) -> str:
        data, _, metadata, time = self.bucket.objects[key]
        about = f"<Etag>{self.etag(key)[1:-1]}</Etag><Content-Length>{len(data)}</Content-Length>"
        more = "".join(f"<{name}>{value}</{name}>" for name, value in metadata.items())
        about += f"<Last-Modified>{time:%a, %d %b %Y %H:%M:%S GMT}</Last-Modified><BlobType>BlockBlob</BlobType>"
        return f"<Blob><Name>{escape(key)}</Name><Properties>{about}</Properties><Metadata>{more}</Metadata></Blob>"


def refusal(status: int, code: str, message: str) -> Any:
    text = f"<Error><Code>{code}</Code><Message>{message}\nRequestId:1\nTime:2</Message></Error>"
    return reply(status, text.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def connection_string(address: str) -> str:
    """What AZURE_STORAGE_CONNECTION_STRING must say of a store at `address`."""
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={address}/{ACCOUNT};"


@contextmanager
def serving() -> Iterator[tuple[str, Shim]]:
    """Address and shim; FCN_RAY_TEST_AZ may name a server (with the container `BUCKET`) that is asked instead."""
    elsewhere = os.environ.get("FCN_RAY_TEST_AZ")
    shim = Shim(forward(elsewhere) if elsewhere else Azure(), "az")
    with serve(shim) as address:
        yield address, shim
