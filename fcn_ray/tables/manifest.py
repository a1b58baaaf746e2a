"""The end of a run: a manifest of its objects with their digests, and `_SUCCESS`, which names the newest manifest.

A manifest has a line for each chunk and never changes, so a job reads it once and hands on what it has.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
    """A finished run up to a plan: where its manifest is and its bytes, chunks, images, images by status."""

    uri: str
    data: bytes = field(repr=False)
    plan: int
    chunks: int
    rows: int
    statuses: Mapping[str, int]

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return storage.digest(self.data)

    @property
    def bad_rows(self) -> int:
        """Images without a mask."""
        return self.rows - self.statuses.get(OK, 0)

    def read_published(self) -> dict[str, dict[str, int]]:
        """Images by status of each chunk, by chunk id."""
        objects = _parse(self.uri, self.data)["objects"]
        return {item["name"].removeprefix("masks/").removesuffix(".parquet"): item["statuses"] for item in objects}


def finish(run: Run, log: PlanLog, receipts: Iterable[Receipt] = (), known: Manifest | None = None) -> Manifest:
    """Write the manifest of a run that has no chunk pending, then `_SUCCESS`, which names it.

    Objects that neither an earlier manifest (`known`, if the caller has read one) nor `receipts` (of this job's own
    commits) describe are read for their digests. Raises IncompleteError while chunks are pending, AuditError when the
    stored manifest says something else.
    """
    totals = count_chunks(log)
    if totals.done_chunks < totals.chunks:
        pending = totals.chunks - totals.done_chunks
        raise IncompleteError(f"{pending} of {totals.chunks} chunks are pending in {run.uri}; run the command again")
    uri = _manifest_uri(run, log.newest)
    fail_at("manifest.counted")
    if known is not None and known.uri == uri:
        manifest = known
    elif storage.is_file(uri):
        manifest = _read_manifest(uri)
    else:
        earlier = known or _find_earlier(run, log)
        data = _manifest_json(run, log, _known_lines(earlier, receipts))
        fail_at("manifest.drafted")
        if not storage.put_if_absent(uri, data) and storage.read_bytes(uri) != data:
            raise AuditError(f"{uri} does not describe the objects that are there; run `fcn-ray audit`")
        manifest = _describe(uri, data)
    fail_at("manifest.put")
    _announce(run, manifest)
    return manifest


def read_newest(run_uri: str) -> Manifest | None:
    """The newest manifest; None before the first."""
    name = _newest_manifest(run_uri)
    return None if name is None else _read_manifest(storage.join(run_uri, name))


def _newest_manifest(run_uri: str) -> str | None:
    """Name of the newest manifest below its run."""
    names = (entry.path for entry in storage.list_files(storage.join(run_uri, "manifests")))
    numbers = [int(match[1]) for match in map(_MANIFEST_NAME.fullmatch, names) if match]
    return f"manifests/{max(numbers):06}.json" if numbers else None


def _manifest_uri(run: Run, plan: int) -> str:
    return storage.join(run.uri, "manifests", f"{plan:06}.json")


def _find_earlier(run: Run, log: PlanLog) -> Manifest | None:
    """The newest manifest before that of the log."""
    earlier = (_manifest_uri(run, plan) for plan in range(log.newest - 1, -1, -1))
    uri = next(filter(storage.is_file, earlier), None)
    return None if uri is None else _read_manifest(uri)


def _known_lines(earlier: Manifest | None, receipts: Iterable[Receipt]) -> dict[str, str]:
    """Name -> manifest line of what need not be read again."""
    lines = dict(_line(receipt) for receipt in receipts)
    if earlier is None:
        return lines
    found = _parse(earlier.uri, earlier.data)
    items = found["files"] + found["objects"]
    return lines | {item["name"]: json.dumps(item) for item in items}  # what is published stays as it is


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
                line = (
                    known.get(f"masks/{ref.chunk_id}.parquet") or _line(read_receipt(run, ref.chunk_id, ref.n_rows))[1]
                )
                statuses.update(json.loads(line)["statuses"])
                objects.append(line)
    totals = {"chunks": len(objects), "rows": statuses.total(), "statuses": dict(sorted(statuses.items()))}
    head = json.dumps({"run": run.run_id, "plan": log.newest, **totals}).removesuffix("}")
    return f"{head},\n{_list('files', files)},\n{_list('objects', sorted(objects))}}}\n".encode()


def _list(name: str, lines: list[str]) -> str:
    body = ",\n".join(lines)
    return f'"{name}": [\n{body}\n]'


def _read_manifest(uri: str) -> Manifest:
    return _describe(uri, storage.read_bytes(uri))


def _describe(uri: str, data: bytes) -> Manifest:
    found = _parse(uri, data)
    return Manifest(uri, data, found["plan"], found["chunks"], found["rows"], dict(found["statuses"]))


def _parse(uri: str, data: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(data)
        missing = {"plan", "chunks", "rows", "statuses", "files", "objects"} - found.keys()
    except (ValueError, AttributeError) as error:
        raise AuditError(f"{uri} is damaged ({error}); run `fcn-ray audit`") from error
    if missing:
        raise AuditError(f"{uri} is damaged: it lacks {sorted(missing)}; run `fcn-ray audit`")
    return found


def _announce(run: Run, known: Manifest) -> None:
    """Point `_SUCCESS` at the newest manifest. It informs, and follows every later manifest, so it is replaced.

    A slow job may put an older manifest over a newer one that came in between, so it looks again after it has written:
    the last to write is then one that has seen the newest.
    """
    uri = storage.join(run.uri, "_SUCCESS")
    while _said(uri) != (text := _success_text(run, known)):
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


def _success_text(run: Run, known: Manifest) -> bytes:
    """What `_SUCCESS` says of the newest manifest, which is `known` unless another job has put one since."""
    name = _newest_manifest(run.uri)
    if name is None:
        raise StorageError(f"{run.uri} has no manifest, though this job has put one")
    uri = storage.join(run.uri, name)
    manifest = known if known.uri == uri else _read_manifest(uri)
    totals = {"chunks": manifest.chunks, "rows": manifest.rows, "statuses": dict(manifest.statuses)}
    success = {"manifest": name, "sha256": manifest.sha256, "plan": manifest.plan, **totals}
    return f"{json.dumps(success, indent=1)}\n".encode()
