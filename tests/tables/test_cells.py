"""What a machine cannot ask for is no fact about an image."""

import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from fcn_ray.errors import UnequippedError
from fcn_ray.storage import azure, s3
from fcn_ray.tables.cells import read_cells
from fcn_ray.tables.lists import stat_listed
from fcn_ray.tables.places import Places


@pytest.fixture(params=["s3", "az"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of a store that this machine has no credentials for, and one of which it has no package."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(sys.modules, "azure.storage.blob", None)
    for store in (s3, azure):
        store.forget()
    return f"{request.param}://bucket"


def test_a_machine_that_cannot_ask_makes_no_row_of_a_path(place: str) -> None:
    column = pa.chunked_array([[f"{place}/a.png"]])
    with pytest.raises(UnequippedError):
        read_cells(column, "/in", Places(("/in", place)))


def test_a_machine_that_cannot_ask_makes_nothing_of_a_list(place: str) -> None:
    with pytest.raises(UnequippedError):
        list(stat_listed(iter(["a.png"]), partial("{}/{}".format, place)))
