"""How places are spelled, and which are refused before anything is asked of them."""

import pytest

from fcn_ray import storage
from fcn_ray.errors import ConfigError
from fcn_ray.storage.uris import is_hidden, scheme_of, split, split_folder

REFUSED = {
    "http://example.com/a.jpg": "use a path, file://, s3://, gs:// or az://",
    "https://example.com/a.jpg": "use a path",
    "ftp://example.com/a.jpg": "use a path",
    "hdfs://name/a": "use a path",
    "x://169.254.169.254/latest/meta-data": "use a path",
    "s3://": "names no bucket",
    "s3:///key": "names no bucket",
    "gcs://bucket/a": "use a path",
    "abfs://container/a": "use a path",
    "az://": "names no bucket",
    "s3://key:secret@bucket/a": "credentials do not belong into a URI",
    "s3://user@bucket/a": "credentials do not belong into a URI",
    "s3://bucket:9000/a": "credentials do not belong into a URI",
    "az://container@account.blob.core.windows.net/a": "credentials do not belong into a URI",
    "file://host/share/a": "names another machine",
    "file://a": "names another machine",
}


@pytest.mark.parametrize("uri", REFUSED)
@pytest.mark.parametrize("ask", [storage.exists, storage.stat, storage.read_bytes, storage.absolute])
def test_places_that_are_refused(uri: str, ask) -> None:
    with pytest.raises(ConfigError, match=REFUSED[uri]) as refused:
        ask(uri)
    assert "secret" not in str(refused.value)


def test_a_signed_uri_is_refused_without_its_signature() -> None:
    with pytest.raises(ConfigError, match="without a query") as refused:
        storage.absolute("s3://bucket/a?X-Amz-Signature=secret")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("a/b", "file"),
        ("FILE:///a", "file"),
        ("S3://b/k", "s3"),
        ("gs://b/k", "gs"),
        ("az://b/k", "az"),
        ("C:/a", "file"),
    ],
)
def test_schemes(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


def test_bucket_and_key() -> None:
    assert split("s3://bucket/a/b c") == ("bucket", "a/b c")
    assert split("s3://bucket/a/") == ("bucket", "a")
    assert split("s3://bucket") == split("s3://bucket/") == ("bucket", "")
    assert storage.join("s3://bucket/", "a", "b") == "s3://bucket/a/b"
    assert storage.absolute("S3://bucket/a/") == "s3://bucket/a"
    assert storage.absolute("GS://bucket/a//b/") == "gs://bucket/a//b"
    assert split_folder("az://bucket/a/") == split_folder("az://bucket/a") == ("bucket", "a/")
    assert split_folder("az://bucket/") == ("bucket", "")


@pytest.mark.parametrize("path", ["", "a/", ".a", "a/.b", ".a/b", "_a/b", "a/_b/c"])
def test_hidden_names(path: str) -> None:
    assert is_hidden(path)


@pytest.mark.parametrize("path", ["a", "_a", "a/_b", "a//b", "a.b"])
def test_names_in_view(path: str) -> None:
    assert not is_hidden(path)
