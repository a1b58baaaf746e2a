"""What is peculiar to Azure Blob Storage; what it has in common with the other stores is in test_object_stores.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fcn_ray import storage
from fcn_ray.errors import ConfigError, OutOfReachError, RefusedError, StorageError, UnavailableError, UnequippedError
from fcn_ray.storage import answers, azure
from tests import s3 as faults
from tests.azure import Azure
from tests.s3 import Fault, Shim, answer

URI = "az://bucket/folder/object"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FIRST_PAUSE", 0.01)


PASSING: dict[str, Fault] = {
    "408": answer("408 Request Timeout", "RequestTimeout"),
    "400 of a body that was changed on its way": faults.garble,
    "500 of a slow store": answer("500 Oops", "OperationTimedOut"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(az: Shim, fault: Fault) -> None:
    az.fail("PUT", fault, fault)
    assert storage.put_if_absent(URI, b"data")
    assert az.count("PUT") == 3
    assert storage.read_bytes(URI) == b"data"


REFUSALS: dict[str, tuple[str, type[Exception], str]] = {
    "AuthenticationFailed": ("403 Forbidden", UnavailableError, "renew them"),
    "NoAuthenticationInformation": ("401 Unauthorized", UnavailableError, "renew them"),
    "AuthorizationPermissionMismatch": ("403 Forbidden", StorageError, "may not do that"),
    "ContainerNotFound": ("404 Not Found", RefusedError, "there is no such container"),
    "ContainerBeingDeleted": ("409 Conflict", RefusedError, "the container is being deleted"),
    "LeaseIdMissing": ("412 Precondition Failed", StorageError, "LeaseIdMissing"),
    "BlobArchived": ("409 Conflict", StorageError, "archive tier"),
    "InvalidResourceName": ("400 Bad Request", StorageError, "InvalidResourceName"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals_come_with_a_hint_and_are_not_repeated(az: Shim, code: str) -> None:
    status, raised, hint = REFUSALS[code]
    az.fail("PUT", always=answer(status, code))
    with pytest.raises(StorageError, match=f"{URI}: {code}: .*{hint}") as error:
        storage.put_if_absent(URI, b"data")
    assert type(error.value) is raised
    assert "\n" not in str(error.value)
    assert az.count("PUT") == 1


def test_a_container_that_is_not_there_is_no_missing_object(az: Shim) -> None:
    for method, ask in (("HEAD", storage.stat), ("GET", storage.read_bytes), ("GET", storage.list_folders)):
        az.fail(method, answer("404 Not Found", "ContainerNotFound"))
        with pytest.raises(RefusedError, match="no such container"):
            ask(URI)


def test_an_object_of_many_requests_is_of_one_version(az: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "READ_BYTES", 1000)
    azure.forget()
    storage.put_if_absent(URI, bytes(range(250)) * 10)
    az.fail("none")
    assert storage.fetch(URI, 5000)[1] == bytes(range(250)) * 10
    assert az.count("GET") == 3
    az.fail("none")
    assert storage.fetch(URI, 2000) == (storage.stat(URI), None)
    assert az.count("GET") == 1

    def changed(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ.get("HTTP_X_MS_RANGE", "").startswith("bytes=1000-") and environ["HTTP_IF_MATCH"]:
            az.fail("none")
            storage.replace(URI, b"x" * 2500)
        return app(environ, start_response)

    az.fail("GET", always=changed)
    assert storage.read_bytes(URI) == b"x" * 2500


def test_an_answer_that_breaks_off_is_asked_for_again_when_the_client_gives_up(
    az: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azure.storage.blob._download.time", SimpleNamespace(sleep=lambda _: None))
    storage.put_if_absent(URI, b"0123456789" * 1000)
    az.fail("GET", *[faults.cut] * 4)
    assert storage.read_bytes(URI) == b"0123456789" * 1000
    assert az.count("GET") == 5


def test_a_content_that_was_stored_compressed_is_read_as_it_is(az: Shim) -> None:
    """Else its bytes would not be as many as the store says."""

    def say_gzip(app: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return app(environ, lambda status, headers: start_response(status, [*headers, ("Content-Encoding", "gzip")]))

    storage.put_if_absent(URI, b"\x1f\x8b no gzip at all")
    az.fail("GET", always=say_gzip)
    assert storage.fetch(URI, 100)[1] == storage.read_bytes(URI) == b"\x1f\x8b no gzip at all"


# ----------------------------------------------------------------------------------------------------- names as trees


@pytest.fixture
def ours(az: Shim) -> Azure:
    """The store itself, which is made to do what an account with a flat namespace cannot."""
    if not isinstance(az.app, Azure):
        pytest.skip("asks another server")
    return az.app


def test_objects_that_stand_for_folders_are_folders(ours: Azure) -> None:
    for path in ("in", "in/a"):
        ours.bucket.put(path, b"", if_absent=True, metadata={"hdi_isfolder": "true"})
    storage.put_if_absent("az://bucket/in/a/image", b"x")
    skipped: list[storage.Skipped] = []
    assert [entry.path for entry in storage.list_files("az://bucket", skipped.append)] == ["in/a/image"]
    assert (skipped, storage.list_folders("az://bucket/in")) == ([], ["a"])
    assert (storage.is_file("az://bucket/in/a"), storage.exists("az://bucket/in/a")) == (False, True)
    for ask in (storage.read_bytes, storage.stat, lambda uri: storage.fetch(uri, 10)):
        with pytest.raises(StorageError, match="az://bucket/in/a does not exist"):
            ask("az://bucket/in/a")


def test_a_listing_out_of_order_is_refused(ours: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a/x", "a-b/x")
    for name in names:
        storage.put_if_absent(f"az://bucket/{name}", b"x")
    assert [entry.path for entry in storage.list_files("az://bucket")] == ["a-b/x", "a/x"]
    monkeypatch.setattr(ours.bucket, "order", lambda key: key.split("/"))  # of accounts with real folders
    listing = storage.list_files("az://bucket")
    assert next(listing).path == "a/x"
    with pytest.raises(StorageError, match="az://bucket: this store lists 'a-b/x' after 'a/x', not in the order of"):
        next(listing)
    storage.remove_folder("az://bucket")
    assert not storage.exists("az://bucket")


def test_the_order_of_azure_is_not_that_of_bytes_for_a_few_names(az: Shim) -> None:
    """Azure sorts by UTF-16, where what is beyond 16 bits comes before U+E000 to U+FFFF."""
    for name in ("\uff5e", "\U0001f600"):
        storage.put_if_absent(f"az://bucket/{name}", b"x")
    with pytest.raises(StorageError, match="not in the order of bytes"):
        list(storage.list_files("az://bucket"))


# -------------------------------------------------------------------------------------------------------- credentials


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any setting of Azure."""
    for name in ("CONNECTION_STRING", "ACCOUNT", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    azure.forget()
    return monkeypatch


def test_no_account(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="no account found: set AZURE_STORAGE_ACCOUNT"):
        storage.read_bytes(URI)


def test_no_credentials(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AZURE_STORAGE_ACCOUNT", "account")
    with pytest.raises(RefusedError, match="no credentials found: set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN"):
        storage.read_bytes(URI)


def test_a_connection_string_that_is_none_is_not_repeated(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKey:secret")
    with pytest.raises(UnequippedError, match="AZURE_STORAGE_CONNECTION_STRING is no connection string") as error:
        storage.read_bytes(URI)
    assert "secret" not in str(error.value)


def test_what_the_environment_names_is_used(bare: pytest.MonkeyPatch) -> None:
    class DefaultAzureCredential:
        def get_token(self, *_: Any, **__: Any) -> None:
            raise AssertionError

    def used() -> Any:
        azure.forget()
        return azure._client()

    bare.setenv("AZURE_STORAGE_ACCOUNT", "account")
    identity = ModuleType("azure.identity")
    identity.DefaultAzureCredential = DefaultAzureCredential
    bare.setitem(sys.modules, "azure.identity", identity)
    assert isinstance(used().credential, DefaultAzureCredential)
    bare.setenv("AZURE_STORAGE_SAS_TOKEN", "?sig=secret")
    assert used().credential.signature == "?sig=secret"
    bare.setenv("AZURE_STORAGE_KEY", "c2VjcmV0")
    assert used().credential.account_key == "c2VjcmV0"
    assert used().url == "https://account.blob.core.windows.net/"
    bare.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint=http://127.0.0.1:9/other;AccountName=o;AccountKey=bw=="
    )
    assert used().url == "http://127.0.0.1:9/other/"
    azure.forget()


def test_credentials_that_cannot_be_used(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AZURE_STORAGE_ACCOUNT", "account")
    bare.setenv("AZURE_STORAGE_KEY", "x")
    with pytest.raises(RefusedError, match=f"{URI}: the credentials cannot be used: "):
        storage.read_bytes(URI)
    azure.forget()


def test_the_package_is_an_extra(bare: pytest.MonkeyPatch) -> None:
    bare.setitem(sys.modules, "azure.storage.blob", None)
    with pytest.raises(ConfigError, match=r'az:// needs a package: .*; pip install "fcn_ray\[azure\]"') as error:
        storage.read_bytes(URI)
    assert error.value.exit_code == 2
    assert isinstance(error.value, OutOfReachError), "a worker without it must not take the object for unreadable"
