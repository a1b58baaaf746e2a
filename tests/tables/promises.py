"""What must hold of a run's objects at every moment, and at the end of a job. Shares no code with writer and audit."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256

import pyarrow.parquet as pq

Content = Mapping[str, bytes]
"""Every object by its URI."""
Row = tuple[str, int]
"""Path, and row in it."""


class BrokenError(Exception):
    """A promise is broken."""


def check_store(run: str, content: Content) -> None:
    """Every input version is in one chunk, every chunk has at most one object, and manifests speak the truth."""
    plans = _named(run, content, "plans", ".parquet")
    if list(plans) != [f"{number:06}" for number in range(1, len(plans) + 1)]:
        raise BrokenError(f"plans {list(plans)}")
    by_plan = [read_plan(data) for data in plans.values()]
    _check_planned_once(by_plan)
    planned = {name: rows for plan in by_plan for name, rows in plan.items()}
    masks = _named(run, content, "masks", ".parquet")
    for name, data in masks.items():
        if name not in planned:
            raise BrokenError(f"object {name} is in no plan")
        chunk, rows = read_mask_file(data)
        if (chunk, rows) != (name, tuple((path, row) for path, _, row in planned[name])):
            raise BrokenError(f"object {name} is chunk {chunk} with rows {rows}, planned {planned[name]}")
    for number, data in _named(run, content, "manifests", ".json").items():
        _check_manifest(
            data, [f"masks/{name}.parquet" for plan in by_plan[: int(number)] for name in plan], run, content
        )
    _check_success(run, content)


def check_end(run: str, content: Content, inputs: Sequence[tuple[str, str]]) -> None:
    """All chunks of all plans are there, `_SUCCESS` says so, and the (path, version) of all inputs are planned."""
    plans = [read_plan(data) for data in _named(run, content, "plans", ".parquet").values()]
    planned = {(path, version) for plan in plans for rows in plan.values() for path, version, _ in rows}
    if not planned >= set(inputs):
        raise BrokenError(f"{sorted(set(inputs) - planned)} are in no chunk")
    missing = {name for plan in plans for name in plan} - set(_named(run, content, "masks", ".parquet"))
    if missing:
        raise BrokenError(f"chunks {sorted(missing)} have no object")
    success = json.loads(content.get(f"{run}/_SUCCESS", b"{}"))
    if success.get("plan") != len(plans):
        raise BrokenError(f"_SUCCESS is {success}, expected plan {len(plans)}")


def _named(run: str, content: Content, folder: str, suffix: str) -> dict[str, bytes]:
    prefix = f"{run}/{folder}/"
    return {uri[len(prefix) :].removesuffix(suffix): content[uri] for uri in sorted(content) if uri.startswith(prefix)}


@cache
def read_plan(data: bytes) -> dict[str, tuple[tuple[str, str, int], ...]]:
    """(path, version, row) of the images of each chunk."""
    chunks: dict[str, tuple[tuple[str, str, int], ...]] = {}
    for row in pq.read_table(io.BytesIO(data)).to_pylist():
        rows = range(row["first_row"], row["first_row"] + row["n_rows"])
        images = tuple((row["path"], row["version"], number) for number in rows)
        chunks[row["chunk_id"]] = chunks.get(row["chunk_id"], ()) + images
    return chunks


@cache
def read_mask_file(data: bytes) -> tuple[str, tuple[Row, ...]]:
    """The chunk that it says it is, and (path, row) of its images."""
    table = pq.read_table(io.BytesIO(data))
    rows = zip(table["path"].to_pylist(), table["row"].to_pylist(), strict=True)
    return table.schema.metadata[b"fcn_ray.chunk"].decode(), tuple(rows)


def _check_planned_once(plans: Sequence[Mapping[str, Sequence[tuple[str, str, int]]]]) -> None:
    names = Counter(name for plan in plans for name in plan)
    images = Counter(image for plan in plans for rows in plan.values() for image in rows)
    twice = [item for item, count in (names | images).items() if count > 1]
    if twice:
        raise BrokenError(f"{twice} planned twice")


def _check_manifest(data: bytes, planned: Sequence[str], run: str, content: Content) -> None:
    """Exactly the chunks of its plans, with the sizes and digests of what is there."""
    manifest = json.loads(data)
    listed = manifest["objects"]
    if [item["name"] for item in listed] != sorted(planned):
        raise BrokenError(
            f"manifest {manifest['plan']} lists {[item['name'] for item in listed]}, planned {sorted(planned)}"
        )
    for item in listed + manifest["files"]:
        there = content.get(f"{run}/{item['name']}")
        if there is None or (item["size"], item["sha256"]) != (len(there), _digest(there)):
            raise BrokenError(f"manifest {manifest['plan']} does not describe {item['name']}")


def _check_success(run: str, content: Content) -> None:
    """It names a manifest, whose chunks are all there by what was checked before."""
    success = content.get(f"{run}/_SUCCESS")
    if success is None:
        return
    said = json.loads(success)
    manifest = content.get(f"{run}/{said['manifest']}")
    if manifest is None or said["sha256"] != _digest(manifest):
        raise BrokenError(f"_SUCCESS names {said['manifest']}, which is not there, or another one")


@cache
def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
