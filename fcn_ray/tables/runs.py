"""The run folder `OUT/run=<fingerprint>`: one model and configuration over one collection, and nobody else's files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import ConfigError, ForeignOutputError, OutOfReachError, StorageError
from fcn_ray.failpoints import fail_at
from fcn_ray.labels import LabelSet
from fcn_ray.tables.inputs import absolute_input, check_input, reaches_into, understand_input
from fcn_ray.tables.schema import SCHEMA_VERSION

_FOLDER = re.compile(r"run=[0-9a-f]{16}")
_OTHER_OUTPUT = "choose another output folder"


@dataclass(frozen=True, slots=True)
class Run:
    """An opened run: its folder, its id (the fingerprint), its input (absolute), the meaning of its masks' ids."""

    uri: str
    run_id: str
    input: str
    labels: LabelSet


def fingerprint(identity: Mapping[str, Any], labels: LabelSet) -> str:
    """16 hexadecimal digits of all that can change a mask: `identity` (JSON values), labels, and the result schema."""
    return storage.digest(_canonical(_described(identity, labels)))[:16]


def run_uri(output: str, run_id: str) -> str:
    """Folder of a run."""
    return storage.join(output, f"run={run_id}")


def find_run(output: str, run: str | None = None) -> str:
    """Folder of the run in `output` called `run`, else of its only run; `output` itself when it holds none.

    Raises ConfigError when that run is not there, or when there are several to choose from.
    """
    runs = [name for name in storage.list_folders(output) if name.startswith("run=")]
    if run is not None:
        runs = [name for name in runs if name.removeprefix("run=") == run.removeprefix("run=")]
        if not runs:
            raise ConfigError(f"{output} holds no run {run}")
    if len(runs) > 1:
        raise ConfigError(
            f"{output} holds {len(runs)} runs, which may differ; name one: {', '.join(runs)} "
            f"(where a folder is asked for, {storage.join(output, runs[0])})"
        )
    return storage.join(output, *runs)


def read_labels(run_uri: str) -> LabelSet:
    """What the ids in the masks of a run mean. Raises ConfigError when there is no run."""
    uri = storage.join(run_uri, "run.json")
    try:
        return LabelSet.from_json(json.dumps(json.loads(storage.read_bytes(uri))["labels"]))
    except OutOfReachError:
        raise
    except (ValueError, KeyError, TypeError, StorageError) as error:
        raise ConfigError(f"{run_uri} is no run ({error}); expected the output folder of segment") from error


def open_run(
    output: str,
    input_uri: str,
    identity: Mapping[str, Any],
    labels: LabelSet,
    about: Mapping[str, Any] | None = None,
) -> Run:
    """The run of this job in the folder `output`, begun if it is not there: `run.json` says what it is.

    `about` (versions, settings that do not change masks) is kept from the job that began the run, for people to read.
    Writes nothing and raises ForeignOutputError when the folder, or the run in it, is another job's; ConfigError when
    there is no input, output and input lie in one another, or the store cannot put if absent.
    """
    output, input_uri = storage.absolute(output), absolute_input(input_uri)
    check_output(output, input_uri)
    described = _described(identity, labels)
    run = Run(run_uri(output, fingerprint(identity, labels)), fingerprint(identity, labels), input_uri, labels)
    document = {"run": run.run_id, "input": input_uri, **described, "about": dict(about or {})}
    uri = storage.join(run.uri, "run.json")
    data = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    fail_at("run.checked")
    if not storage.put_if_absent(uri, data):
        _check_same(uri, document)
    elif storage.put_if_absent(uri, data):
        raise ConfigError(
            f"output {output}: this store overwrites what it is asked to put if absent (If-None-Match), so two jobs "
            "could lose one another's results; choose a store that knows conditional writes"
        )
    fail_at("run.opened")
    return run


def check_run(output: str, input_uri: str, identity: Mapping[str, Any], labels: LabelSet) -> str:
    """Folder that `open_run` would take for this job (absolute both). Writes nothing, and raises as it does."""
    check_output(output, input_uri)
    run_id = fingerprint(identity, labels)
    uri = run_uri(output, run_id)
    document = storage.join(uri, "run.json")
    if storage.is_file(document):
        _check_same(document, {"run": run_id, "input": input_uri, **_described(identity, labels)})
    return uri


def check_output(output: str, input_uri: str) -> None:
    """Raise ForeignOutputError or ConfigError when a job over `input_uri` may not write to `output` (absolute both)."""
    check_input(input_uri)
    _check_apart(output, input_uri)
    _check_ours(output)


def write_status(run: Run, status: Mapping[str, Any]) -> None:
    """Put `status.json`, over the last one: what the job is doing, or how it ended. It informs; nothing rests on it."""
    fail_at("status.begun")
    storage.replace(storage.join(run.uri, "status.json"), (json.dumps(status, indent=1) + "\n").encode())
    fail_at("status.replaced")


def _described(identity: Mapping[str, Any], labels: LabelSet) -> dict[str, Any]:
    return {
        "identity": json.loads(_canonical(identity)),  # tuples become lists, as they are when read back
        "labels": json.loads(labels.to_json()),
        "schema_version": SCHEMA_VERSION,
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _check_apart(output: str, input_uri: str) -> None:
    if reaches_into(input_uri, output):
        raise ConfigError(
            f"output {output} and input {input_uri} lie in one another, so masks would become input; "
            f"choose an output folder beside the input, for example {_beside(input_uri)}-masks"
        )


def _beside(input_uri: str) -> str:
    return understand_input(input_uri).uri.rstrip("/")


def _check_ours(output: str) -> None:
    """A folder is ours when it holds a run; also when it holds no file, as after a crash before `run.json`."""
    if storage.is_file(output):
        raise ForeignOutputError(f"output {output} is a file, expected a folder; {_OTHER_OUTPUT}")
    if _holds_run(output):
        return
    found = next(storage.list_files(output), None)
    if found is not None and not _holds_run(output):  # else another job began it since
        raise ForeignOutputError(f"output {output} holds {found.path}, which fcn-ray did not write; {_OTHER_OUTPUT}")


def _holds_run(output: str) -> bool:
    runs = [name for name in storage.list_folders(output) if _FOLDER.fullmatch(name)]
    return any(storage.is_file(storage.join(output, name, "run.json")) for name in runs)


def _check_same(uri: str, document: Mapping[str, Any]) -> None:
    try:
        found = json.loads(storage.read_bytes(uri))
        differing = [key for key in document if key != "about" and found[key] != document[key]]
    except OutOfReachError:
        raise
    except (ValueError, KeyError, TypeError, StorageError) as error:
        raise ForeignOutputError(f"{uri} cannot be understood ({error!r}); {_OTHER_OUTPUT}") from error
    for key in differing:
        raise ForeignOutputError(
            f"{uri} is of another job: {key} is {found[key]}, not {document[key]}; {_OTHER_OUTPUT}"
        )
