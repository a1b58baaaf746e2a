"""Shared fixtures: one Ray for the session, one tiny bundle, and small pictures made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.s3 import BUCKET, Shim

# Before anything imports Ray: no token in the user's home, no bars, no chatter.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In several processes the slow files go first, so that none of them runs alone at the end."""
    if config.getoption("numprocesses", None) or "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray on this machine for all tests that need one."""
    import ray

    from fcn_ray.cluster import connect

    connect(cpus=4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a very small FCN-8s for three classes; its weights are random but always the same."""
    import numpy as np

    from fcn_ray.bundle import save_bundle
    from fcn_ray.config import ModelSpec, Preprocessing
    from fcn_ray.labels import LabelSet
    from fcn_ray.models.fcn import build_fcn

    spec = ModelSpec(width=0.05, fc_channels=8, num_classes=3)
    model = build_fcn(spec, seed=7)
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if layer.name.startswith("score"):  # they start at zero, which would make every mask class 0
            layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    save_bundle(str(folder), model, spec, LabelSet.from_names(["sky", "road", "car"]), Preprocessing(), {})
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, s3_server: tuple[str, Shim]) -> Iterator[Shim]:
    """An empty bucket `s3://bucket` for this process and those it starts; the shim can make its requests fail."""
    import boto3

    from fcn_ray.storage import s3 as module

    address, shim = s3_server
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    settings = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    module.forget()
    bucket = boto3.resource("s3", region_name="us-east-1").Bucket(BUCKET)
    bucket.create()
    shim.fail("none")
    yield shim
    shim.fail("none")
    bucket.objects.all().delete()
    bucket.delete()
    module.forget()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, Shim]]:
    """One server for the session."""
    from tests.s3 import serving

    with serving() as server:
        yield server


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch, gs_server: tuple[str, Shim]) -> Iterator[Shim]:
    """An empty bucket `gs://bucket`, as `s3`."""
    from fcn_ray.storage import gcs as module

    address, shim = gs_server

    def empty() -> None:
        bucket = module._client().bucket(BUCKET)
        for blob in bucket.list_blobs():
            bucket.delete_blob(blob.name)

    yield from _emptied(module, shim, lambda: monkeypatch.setenv("STORAGE_EMULATOR_HOST", address), empty)


@pytest.fixture(scope="session")
def gs_server() -> Iterator[tuple[str, Shim]]:
    from tests.gcs import serving

    with serving() as server:
        yield server


@pytest.fixture
def az(monkeypatch: pytest.MonkeyPatch, az_server: tuple[str, Shim]) -> Iterator[Shim]:
    """An empty container `az://bucket`, as `s3`."""
    from fcn_ray.storage import azure as module
    from tests.azure import connection_string

    address, shim = az_server
    named = "AZURE_STORAGE_CONNECTION_STRING", connection_string(address)

    def empty() -> None:
        container = module._client().get_container_client(BUCKET)
        for blob in container.list_blobs():
            container.delete_blob(blob.name)

    yield from _emptied(module, shim, lambda: monkeypatch.setenv(*named), empty)


@pytest.fixture(scope="session")
def az_server() -> Iterator[tuple[str, Shim]]:
    from tests.azure import serving

    with serving() as server:
        yield server


def _emptied(
    module: ModuleType, shim: Shim, connect: Callable[[], None], empty: Callable[[], object]
) -> Iterator[Shim]:
    connect()
    module.forget()
    shim.fail("none")
    yield shim
    shim.fail("none")
    connect()  # the test may have turned to another place
    module.forget()
    empty()
    module.forget()


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.s3), "gs", "az"])
def store(request: pytest.FixtureRequest) -> Shim:
    """An empty bucket of each kind of store: `s3`, `gs` or `az`."""
    shim: Shim = request.getfixturevalue(request.param)
    return shim
