"""S9: credentials are in no message, no setting, no result, no log, whoever quotes them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from fcn_ray import cluster, storage
from fcn_ray.config import CheckConfig, SegmentConfig, TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ConfigError, FcnRayError, redact
from fcn_ray.storage import answers
from fcn_ray.storage import s3 as s3_store
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.schema import trim_error
from fcn_ray.training.promotion import _command
from tests.images.labelling import label
from tests.s3 import Shim
from tests.tables.making import png

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARYCANA",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+key/of/the/environment",
    "AWS_SESSION_TOKEN": "canary-session-token==",
    "AZURE_STORAGE_KEY": "not-a-canary",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-password",
}


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return [value for name, value in CANARIES.items() if name != "AZURE_STORAGE_KEY"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/a.png is not there", "s3://***@bucket/a.png is not there"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("https://b/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab12&x=1", "https://b/k?X-Amz-Credential=***&X-Amz-Signature=***&x=1"),
        ("https://a.blob.core.windows.net/c/k?sv=2024&sig=ab%3D&se=2026", "https://a.blob.core.windows.net/c/k?sv=2024&sig=***&se=2026"),
        ("https://storage.googleapis.com/b/k?X-Goog-Signature=0a", "https://storage.googleapis.com/b/k?X-Goog-Signature=***"),
        ("?AWSAccessKeyId=AKIDEXAMPLE&Signature=x%2B", "?AWSAccessKeyId=***&Signature=***"),
        ("Protocol=https;AccountKey=abc/==;EndpointSuffix=x", "Protocol=https;AccountKey=***;EndpointSuffix=x"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AK, Signature=ff\nHost: x", "Authorization: ***\nHost: x"),
        ("{'Authorization': 'Bearer abc', 'Host': 'x'}", "{'Authorization': '***', 'Host': 'x'}"),
        ("x-amz-security-token: FwoG", "x-amz-security-token: ***"),
        ("access_token=abc refresh_token=def", "access_token=*** refresh_token=***"),
        ("train.py --api-key abc --db-password=def --epochs 3", "train.py --api-key *** --db-password=*** --epochs 3"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "the key *** is unknown"),
        # what is no secret
        ("s3://bucket/folder/a@b.png and mail@host", "s3://bucket/folder/a@b.png and mail@host"),
        ("columns: key = 3, carry=[token]", "columns: key = 3, carry=[token]"),
        ("https://host:8080/path?x=1&versionId=2", "https://host:8080/path?x=1&versionId=2"),
        ("a signature of two classes", "a signature of two classes"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_left_out(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert str(FcnRayError(text)) == expected
    assert trim_error(text) == expected.replace("\n", "\\n")


def test_secrets_of_the_environment_are_left_out_wherever_they_are(canaries: list[str]) -> None:
    for value in canaries:
        assert redact(f"the store says: {value}!") == "the store says: ***!"
    assert redact("not-a-canary") == "***", "its name says that it is a key"


def test_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert redact("no secrets") == "no secrets"


def test_the_command_that_a_bundle_remembers_has_none(monkeypatch: pytest.MonkeyPatch, canaries: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/mine.py", "--token", "abc", f"--note={canaries[1]}", "https://u:p@h/", "-v"])
    assert not [part for part in ("abc", canaries[1], "u:p") if part in _command()]
    assert _command().startswith("mine.py --token ***")


# ------------------------------------------------------------------------------------------------------------ settings

PLACES = ["s3://key:hunter22@bucket/x", "https://bucket/x?X-Amz-Signature=hunter22", "s3://b/x?sig=hunter22"]
SEGMENT = {"input": "in", "output": "out", "model": "model"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *[(SegmentConfig, key) for key in ("input", "output", "model", "allow_paths")],
        *[(TrainConfig, key) for key in ("data", "val", "out", "model.weights", "model.start", "track.mlflow")],
        *[(CheckConfig, key) for key in ("data", "val", "address")],
    ],
)
def test_no_setting_holds_a_secret(kind: Any, key: str, place: str) -> None:
    flags = SEGMENT if kind is SegmentConfig else {"data": "data"} | ({"out": "out"} if kind is TrainConfig else {})
    with pytest.raises(ConfigError, match="must hold no secrets") as caught:
        load_config(kind, flags=flags | {key: [place] if key == "allow_paths" else place})
    assert caught.value.exit_code == 2
    assert "hunter22" not in str(caught.value)
    assert "hunter22" not in repr(caught.value)


def test_a_file_and_a_command_line_with_secrets_are_refused_unquoted(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"input: '{PLACES[0]}'\noutput: {tmp_path}/out\nmodel: model\n")
    for arguments in (["-c", str(file)], [PLACES[1], str(tmp_path / "out"), "--model", "m"]):
        command = [sys.executable, "-m", "fcn_ray", "segment", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
        assert run.returncode == 2
        assert "must hold no secrets" in run.stderr
        assert "hunter22" not in run.stdout + run.stderr
    assert not (tmp_path / "out").exists()


def test_an_address_with_a_password_is_not_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:hunter22@store:9000")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL_S3 = http://\*\*\*@store:9000: ") as caught:
        cluster.connect()
    assert "hunter22" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- stores


def _quoting(environ: dict[str, Any], status: str) -> bytes:
    """What a store or a proxy says that gives back all it was told, and more."""
    told = f"{environ.get('HTTP_AUTHORIZATION')} {environ.get('HTTP_X_AMZ_SECURITY_TOKEN')} {list(CANARIES.values())}"
    told += f" http://x/?X-Amz-Signature=canary-signature Authorization: {environ.get('HTTP_AUTHORIZATION')}"
    return f"<Error><Code>{status}</Code><Message>{told}</Message></Error>".encode()


@pytest.mark.s3
@pytest.mark.parametrize("status", ["400 Bad", "403 Forbidden", "418 Teapot", "500 Broken"])
def test_what_a_store_quotes_is_not_repeated(
    s3: Shim, canaries: list[str], monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    def fault(app: Any, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = _quoting(environ, "Weird" + CANARIES["AWS_SESSION_TOKEN"])
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    s3_store.forget()
    s3.fail("any", always=fault)
    with pytest.raises(FcnRayError) as caught:
        storage.read_bytes("s3://bucket/a.png")
    assert s3.count("GET") >= 1
    for secret in [*canaries, "canary-signature"]:
        assert secret not in str(caught.value)
    s3.fail("none")
    monkeypatch.undo()
    s3_store.forget()


def test_an_address_that_does_not_answer_is_named_without_its_secrets(
    canaries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import EndpointConnectionError

    def fail(uri: str) -> bytes:
        url = f"http://user:{canaries[1]}@host/key?X-Amz-Signature=canary-signature"
        raise answers.Passing(f"the store cannot be reached ({EndpointConnectionError(endpoint_url=url)})")

    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    with pytest.raises(FcnRayError, match=r"http://\*\*\*@host/key\?X-Amz-Signature=\*\*\*") as caught:
        answers.patiently("s3://bucket/key", lambda: fail("s3://bucket/key"))
    assert "canary-signature" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- results


def _find(folder: Path, secrets: list[str]) -> list[str]:
    """Files below the folder that hold one of the secrets, packed or not."""
    found = []
    for file in (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        data = file.read_bytes()
        if file.suffix == ".parquet":
            parquet = pq.ParquetFile(io.BytesIO(data))
            data += repr((parquet.read().to_pylist(), parquet.metadata.metadata)).encode()
        found += [f"{file}: {secret}" for secret in secrets if secret.encode() in data]
    return found


def test_a_run_over_tables_that_hold_secrets_repeats_none(tmp_path: Path, canaries: list[str]) -> None:
    (tmp_path / "in").mkdir()
    paths = [
        f"s3://{canaries[0]}:{canaries[1]}@bucket/a.png",
        f"https://bucket/a.png?X-Amz-Signature=canary-signature&X-Amz-Security-Token={canaries[2]}",
        f"s3://bucket/a.png?sig={canaries[1]}",
        f"{canaries[1]}.png",
    ]
    pq.write_table(pa.table({"image": paths}), tmp_path / "in" / "t.parquet")
    (tmp_path / "in" / "a.png").write_bytes(png())
    (tmp_path / "in" / f"{canaries[2]}.parquet").write_bytes(b"")
    found = label(tmp_path / "in", tmp_path / "out", Columns(carry="none"))
    assert found.statuses[("t.parquet", 0)] == "unreadable"
    assert _find(tmp_path / "out", [*canaries, "canary-signature"]) == []
    pq.write_table(pa.table({"a": [f"x{canaries[1]}"]}), tmp_path / "out" / "control.parquet")
    assert len(_find(tmp_path / "out", canaries)) == 1, "nothing was looked for"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A short path: sockets in Ray's folder have names of 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="fcn-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_job_leaves_no_secret_anywhere(
    s3: Shim, tmp_path: Path, tiny_bundle: Path, ray_folder: Path, canaries: list[str]
) -> None:
    for path in tiny_bundle.iterdir():
        storage.put_if_absent(f"s3://bucket/model/{path.name}", path.read_bytes())
    storage.put_if_absent("s3://bucket/in/a.png", png())
    named = pa.table({"image": ["a.png", f"s3://{canaries[0]}:{canaries[1]}@bucket/a.png", "s3://bucket/none.png"]})
    pq.write_table(named, tmp_path / "t.parquet")
    storage.put_if_absent("s3://bucket/in/t.parquet", (tmp_path / "t.parquet").read_bytes())
    command = [sys.executable, "-m", "fcn_ray", "segment", "s3://bucket/in", "s3://bucket/out"]
    command += ["--model", "s3://bucket/model", "--verbose", "--set", "carry=none", "--set", "predict.threads=1"]
    environment = os.environ | {"RAY_TMPDIR": str(ray_folder), "TMPDIR": str(ray_folder)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)
    assert run.returncode == 0, run.stderr
    assert "4 images labelled" in run.stdout
    for entry in storage.list_files("s3://bucket/out"):
        (tmp_path / "found" / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "found" / entry.path).write_bytes(storage.read_bytes(f"s3://bucket/out/{entry.path}"))
    (status,) = (tmp_path / "found").glob("run=*/status.json")
    assert json.loads(status.read_text())["bad"] == 2
    (tmp_path / "found" / "printed").write_text(run.stdout + run.stderr)
    assert list(ray_folder.rglob("*.log")), "Ray's own notes are looked at too"
    assert _find(tmp_path / "found", canaries) + _find(ray_folder, canaries) == []
