"""The end of a run: a manifest of its objects with their digests, and `_SUCCESS`, which names the newest manifest."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import AuditError, IncompleteError, OutOfReachError, StorageError
from fcn_ray.failpoints import fail_at
from fcn_ray.tables import seal
from fcn_ray.tables.commit import Receipt, read_receipt
from fcn_ray.tables.plan import PlanLog, count_chunks
from fcn_ray.tables.planfile import read_refs
from fcn_ray.tables.runs import Run
from fcn_ray.tables.schema import OK

_MANIFEST_NAME = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished run up to a plan: where its manifest is and its sha256, chunks, images, images by status."""

    uri: str
    sha256: str
    plan: int
    chunks: int
    rows: int
    statuses: Mapping[str, int]

    @property
    def bad_rows(self) -> int:
        """Images without a mask."""
        return self.rows - self.statuses.get(OK, 0)


def finish(run: Run, log: PlanLog, receipts: Iterable[Receipt] = ()) -> Manifest:
    """Write the manifest of a run that has no chunk pending, then `_SUCCESS`, which names it.

    Objects that neither an earlier manifest nor `receipts` (of this job's own commits) describe are read for their
    digests. Raises IncompleteError while chunks are pending, AuditError when the stored manifest says something else.
    """
    totals = count_chunks(log)
    if totals.done_chunks < totals.chunks:
        pending = totals.chunks - totals.done_chunks
        raise IncompleteError(f"{pending} of {totals.chunks} chunks are pending in {run.uri}; run the command again")
    uri = _manifest_uri(run, log.newest)
    fail_at("manifest.counted")
    if not storage.is_file(uri):
        data = _manifest_json(run, log, _known_lines(run, log, receipts))
        fail_at("manifest.drafted")
        if not storage.put_if_absent(uri, data) and storage.read_bytes(uri) != data:
            raise AuditError(f"{uri} does not describe the objects that are there; run `fcn-ray audit`")
    fail_at("manifest.put")
    manifest = _read_manifest(uri)
    _announce(run)
    return manifest


def read_published(run_uri: str) -> dict[str, dict[str, int]]:
    """Images by status of each chunk in the newest manifest, by chunk id; none before the first manifest."""
    newest = _newest_manifest(run_uri)
    if newest is None:
        return {}
    objects = _read_json(storage.join(run_uri, newest))["objects"]
    return {item["name"].removeprefix("masks/").removesuffix(".parquet"): item["statuses"] for item in objects}


def _newest_manifest(run_uri: str) -> str | None:
    """Name of the newest manifest below its run."""
    names = (entry.path for entry in storage.list_files(storage.join(run_uri, "manifests")))
    numbers = [int(match[1]) for match in map(_MANIFEST_NAME.fullmatch, names) if match]
    return f"manifests/{max(numbers):06}.json" if numbers else None


def _manifest_uri(run: Run, plan: int) -> str:
    return storage.join(run.uri, "manifests", f"{plan:06}.json")


def _known_lines(run: Run, log: PlanLog, receipts: Iterable[Receipt]) -> dict[str, str]:
    """Name -> manifest line of what need not be read again."""
    lines = dict(_line(receipt) for receipt in receipts)
    for plan in range(log.newest - 1, -1, -1):
        uri = _manifest_uri(run, plan)
        if storage.is_file(uri):
            earlier = _read_json(uri)
            items = earlier["files"] + earlier["objects"]
            return lines | {item["name"]: json.dumps(item) for item in items}  # what is published stays as it is
    return lines


def _line(receipt: Receipt) -> tuple[str, str]:
    name = f"masks/{receipt.chunk_id}.parquet"
    item = {
        "name": name,
        "size": receipt.size,
        "sha256": receipt.sha256,
        "rows": receipt.n_rows,
        "statuses": receipt.statuses,
    }
    return name, json.dumps(item)


def _file_line(run: Run, name: str) -> str:
    uri = storage.join(run.uri, name)
    data = storage.read_bytes(uri)
    if name.endswith(".parquet") and seal.is_broken(data):
        raise AuditError(f"{uri} is damaged: it is not what was written; run `fcn-ray audit`")
    return json.dumps({"name": name, "size": len(data), "sha256": storage.digest(data)})


def _manifest_json(run: Run, log: PlanLog, known: dict[str, str]) -> bytes:
    """What the run rests on (`files`), and its results (`objects`), a line each, sorted by name.

    The same files always give the same bytes.
    """
    names = ["run.json", *(f"plans/{plan:06}.parquet" for plan in range(1, log.newest + 1))]
    files = sorted(known.get(name) or _file_line(run, name) for name in names)
    objects, statuses = [], Counter[str]()
    for plan in range(1, log.newest + 1):
        for refs in read_refs(run.uri, plan):
            for ref in refs:
                line = known.get(f"masks/{ref.chunk_id}.parquet") or _line(read_receipt(run, ref.chunk_id))[1]
                statuses.update(json.loads(line)["statuses"])
                objects.append(line)
    totals = {"chunks": len(objects), "rows": statuses.total(), "statuses": dict(sorted(statuses.items()))}
    head = json.dumps({"run": run.run_id, "plan": log.newest, **totals}).removesuffix("}")
    return f"{head},\n{_list('files', files)},\n{_list('objects', sorted(objects))}}}\n".encode()


def _list(name: str, lines: list[str]) -> str:
    body = ",\n".join(lines)
    return f'"{name}": [\n{body}\n]'


def _read_manifest(uri: str) -> Manifest:
    found = _read_json(uri)
    sha256 = storage.digest(storage.read_bytes(uri))
    return Manifest(uri, sha256, found["plan"], found["chunks"], found["rows"], dict(found["statuses"]))


def _read_json(uri: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
        missing = {"plan", "chunks", "rows", "statuses", "files", "objects"} - found.keys()
    except (ValueError, AttributeError) as error:
        raise AuditError(f"{uri} is damaged ({error}); run `fcn-ray audit`") from error
    if missing:
        raise AuditError(f"{uri} is damaged: it lacks {sorted(missing)}; run `fcn-ray audit`")
    return found


def _announce(run: Run) -> None:
    """Point `_SUCCESS` at the newest manifest. It informs, and follows every later manifest, so it is replaced.

    A slow job may put an older manifest over a newer one that came in between, so it looks again after it has written:
    the last to write is then one that has seen the newest.
    """
    uri = storage.join(run.uri, "_SUCCESS")
    while _said(uri) != (text := _success_text(run)):
        fail_at("success.drafted")
        storage.replace(uri, text)
        fail_at("success.replaced")


def _said(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except OutOfReachError:
        raise
    except StorageError:  # there is none yet
        return None


def _success_text(run: Run) -> bytes:
    """What `_SUCCESS` says of the newest manifest."""
    name = _newest_manifest(run.uri)
    if name is None:
        raise StorageError(f"{run.uri} has no manifest, though this job has put one")
    manifest = _read_manifest(storage.join(run.uri, name))
    totals = {"chunks": manifest.chunks, "rows": manifest.rows, "statuses": dict(manifest.statuses)}
    success = {"manifest": name, "sha256": manifest.sha256, "plan": manifest.plan, **totals}
    return f"{json.dumps(success, indent=1)}\n".encode()
