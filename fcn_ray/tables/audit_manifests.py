"""The audit of a run's manifests: does each add up, and keep what the one before it published.

Shares no code with the writer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_ray import storage
from fcn_ray.errors import OutOfReachError, StorageError

Problem = tuple[str, str]
"""Kind of finding, and what was found and expected."""

_OBJECT = re.compile(r"masks/[0-9a-f]{32}\.parquet")


Planned = tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32]]
"""The ids of all chunks, sorted, and the number of the plan that each is in."""


def manifest_name(number: int) -> str:
    """Name of a manifest below its run."""
    return f"manifests/{number:06}.json"


def check_manifests(
    run_uri: str,
    run_id: str,
    numbers: Iterable[int],
    published: dict[str, dict[str, Any]],
    planned: Planned | None,
) -> Iterator[tuple[str, Problem]]:
    """(name, problem) for all that is wrong with the manifests; `published` gets the newest one's objects by name.

    `planned` is None when the plans are damaged.
    """
    listed: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    for number in numbers:
        name = manifest_name(number)
        try:
            found = json.loads(storage.read_bytes(storage.join(run_uri, name)))
            files, objects = ({item["name"]: item for item in found[key]} for key in ("files", "objects"))
            problems = [*_check_totals(found, objects, run_id, number), *_check_kept(files | objects, listed)]
            problems += _check_listed(objects, planned, number) if planned is not None else []
        except (ValueError, KeyError, TypeError) as error:
            yield name, ("manifest", f"cannot be understood: {error!r}")
            continue
        yield from ((name, problem) for problem in problems)
        listed = files | objects
        published.clear()
        published.update(objects)
    yield from _check_files(run_uri, files)


def check_success(run_uri: str, newest: int | None) -> Iterator[Problem]:
    """What is wrong with `_SUCCESS`; that it is missing, or names an earlier manifest, is no fault but unfinished."""
    try:
        data = storage.read_bytes(storage.join(run_uri, "_SUCCESS"))
    except OutOfReachError:
        raise
    except StorageError:
        if newest is not None:
            yield "unfinished", "_SUCCESS is missing"
        return
    try:
        success = json.loads(data)
        named = str(success["manifest"])
        manifest = storage.read_bytes(storage.join(run_uri, named))
        found = json.loads(manifest)
        expected = {key: found[key] for key in ("plan", "chunks", "rows", "statuses")}
    except OutOfReachError:
        raise
    except (ValueError, KeyError, TypeError, StorageError) as error:
        yield "success", f"names no manifest: {error!r}"
        return
    expected |= {"manifest": named, "sha256": hashlib.sha256(manifest).hexdigest()}
    if success != expected:
        yield "success", f"says {success}, expected {expected}"
    elif newest is not None and named != manifest_name(newest):
        yield "unfinished", f"_SUCCESS names {named}, not {manifest_name(newest)}"


def _check_totals(
    found: dict[str, Any],
    objects: dict[str, dict[str, Any]],
    run_id: str,
    number: int,
) -> Iterator[Problem]:
    listed = [[item["name"] for item in found[key]] for key in ("files", "objects")]
    expected_files = sorted(["run.json", *(f"plans/{plan:06}.parquet" for plan in range(1, number + 1))])
    if listed != [expected_files, sorted(objects)]:
        yield "manifest", "its files or objects are not complete, sorted and all different"
    strange = [name for name in objects if not _OBJECT.fullmatch(name)]
    if strange:
        yield "manifest", f"it names {strange[:3]}, expected masks/<chunk id>.parquet"
    statuses: Counter[str] = Counter()
    for item in objects.values():
        statuses.update(item["statuses"])
        if sum(item["statuses"].values()) != item["rows"]:
            yield "manifest", f"{item['name']} has {item['rows']} rows, by status {item['statuses']}"
    totals = {"chunks": len(objects), "rows": statuses.total(), "statuses": dict(statuses)}
    expected = {"run": run_id, "plan": number, **totals}
    wrong = {key: found.get(key) for key, value in expected.items() if found.get(key) != value}
    if wrong:
        yield "manifest", f"says {wrong}, expected {expected}"


def _check_listed(objects: Iterable[str], planned: Planned, number: int) -> Iterator[Problem]:
    """The manifest lists exactly the chunks of the plans up to its own."""
    ids, plans = planned
    listed, expected = np.array([name[6:38] for name in objects], dtype="S32"), ids[plans <= number]
    for chunk_id in np.setdiff1d(listed, expected).tolist():
        yield "stray", f"it lists chunk {chunk_id.decode()}, which is in no plan up to {number}"
    for chunk_id in np.setdiff1d(expected, listed).tolist():
        yield "manifest", f"it lacks chunk {chunk_id.decode()}, which is in a plan up to {number}"


def _check_files(run_uri: str, files: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Problem]]:
    """run.json and the plans are as they were when the run was finished."""
    for name, item in files.items():
        try:
            data = storage.read_bytes(storage.join(run_uri, name))
        except OutOfReachError:
            raise
        except StorageError as error:
            yield name, ("digest", str(error))
            continue
        found = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if item != found:
            yield name, ("digest", f"is {found}, in the manifest {item}")


def _check_kept(objects: dict[str, dict[str, Any]], published: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    for name, item in published.items():
        if objects.get(name) != item:
            yield "manifest", f"{name} is {objects.get(name)}, but the manifest before has {item}"
