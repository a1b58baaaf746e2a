"""The audit: proves from what is stored that a run keeps its promises. Shares no code with the writer (DESIGN 5), but
in audit_source.py, which reads the input as the job does.

Checked: the run folder's fingerprint; each plan and each chunk's id, computed again; no input version in two chunks;
one whole mask file for each chunk and none outside the plan; every row's key, origin, status and mask; sizes and
digests as in the manifests; `_SUCCESS`. Reading verifies the checksum of every page. If asked for, the size of every
image, as it is in the input, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_ray import storage
from fcn_ray.errors import ConfigError, FcnRayError, OutOfReachError, StorageError, printable
from fcn_ray.failpoints import fail_at
from fcn_ray.tables.audit_ids import NamedIds
from fcn_ray.tables.audit_manifests import Planned, check_manifests, check_success
from fcn_ray.tables.audit_plans import PlanRow, check_coverage, check_plan, find_kinds, plan_file, read_chunks
from fcn_ray.tables.audit_rows import Expected, Seen, check_mask_file
from fcn_ray.tables.audit_source import Sources

MAX_FINDINGS = 100
"""Most findings that are kept; all are counted."""

_NAMES = {
    "plans": re.compile(r"plans/(\d{6,})\.parquet"),
    "masks": re.compile(r"masks/([0-9a-f]{32})\.parquet"),
    "manifests": re.compile(r"manifests/(\d{6,})\.json"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise: its kind, the file, and what was found and expected."""

    kind: str
    where: str
    message: str


@dataclass(slots=True)
class AuditReport:
    """What an audit saw: mask files that are there and checked, of all planned chunks, and their images by status.

    `findings` are broken promises (the first 100 of `n_findings`); `unfinished` says which runs are not at their end,
    which is no fault; `retried` counts rows that are there once more because they failed, `returned` those whose image
    came back, `shared_ids` values of a named id column that several images have; `leftovers` counts temporary files of
    killed writers, which are harmless. Against the source, `compared` counts the ok rows whose image was measured,
    `others` those whose image has changed since, cannot be had, or cannot be told; None when that was not asked for.
    """

    output: str
    runs: int = 0
    chunks: int = 0
    checked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    n_findings: int = 0
    unfinished: list[str] = field(default_factory=list)
    retried: int = 0
    returned: int = 0
    shared_ids: int = 0
    leftovers: int = 0
    compared: int | None = None
    others: int | None = None

    @property
    def incomplete(self) -> bool:
        """Work is left to do: the job's own command goes on with it."""
        return bool(self.unfinished)

    @property
    def ok(self) -> bool:
        """Everything is there and right."""
        return not self.n_findings and not self.incomplete

    def note(self, kind: str, where: str, message: str) -> None:
        """Add a finding."""
        self.n_findings += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind, where, message))

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common()) or "no images"
        yield f"audit of {self.output}: {self.runs} runs, {self.checked} of {self.chunks} chunks there, {counts}"
        yield from (f"BROKEN {found.kind}: {found.where}: {found.message}" for found in self.findings)
        if self.n_findings > len(self.findings):
            yield f"... and {self.n_findings - len(self.findings)} more"
        yield from (f"incomplete: {text}" for text in self.unfinished)
        if self.retried:
            yield f"{self.retried} of these rows are of images that had failed; fcn_ray.read_masks leaves the older out"
        if self.returned:
            yield f"{self.returned} of these rows are of images that came back as they were before a change"
        if self.shared_ids:
            yield f"{self.shared_ids} values of the id column belong to several images; path and row tell those apart"
        if self.compared is not None:
            yield f"{self.compared} images measured in the input; {self.others} changed, or cannot be had or told"
        if self.leftovers:
            yield f"{self.leftovers} temporary files of killed writers (.tmp-*): harmless, may be deleted"
        if self.ok:
            yield "ok: every image of the plan has exactly one whole, unchanged result row"


def audit(output: str, source: bool = False) -> AuditReport:
    """Check every run in a folder that `fcn-ray segment` wrote, or the run folder `output`.

    With `source`, also that each mask is as large as its image, upright, which reads the whole input: images that are
    no longer what was labelled are counted. Memory: one mask file, and 150 bytes for each chunk; where ids come from a
    named column, 16 bytes for each row, and a few times that at the end; with `source`, the encoded images of a chunk,
    and a PNG or TIFF decoded.

    Raises ConfigError when there is no run, StorageError when storage cannot be read; whatever is wrong with what is
    stored is a finding.
    """
    report = AuditReport(output, compared=0 if source else None, others=0 if source else None)
    own = output.rstrip("/").rpartition("/")[2]
    names = [name for name in storage.list_folders(output) if name.startswith("run=")]
    runs = [output] if own.startswith("run=") and not names else [storage.join(output, name) for name in names]
    for uri in runs:
        name = uri.rstrip("/").rpartition("/")[2]
        if next(storage.list_files(uri), None) is not None:  # else a writer was killed before its first file
            report.runs += 1
            _RunAudit(report, uri, name.removeprefix("run=")).check()
    if not report.runs:
        raise ConfigError(f"{output} holds no run to audit; expected the output folder of `fcn-ray segment`")
    return report


class _RunAudit:
    """The audit of one run folder."""

    def __init__(self, report: AuditReport, uri: str, run_id: str) -> None:
        self.report, self.uri, self.run_id = report, uri, run_id
        self.classes: int | None = None
        self.ignore_id: int | None = None
        self.model_digest: str | None = None
        self.plans: list[int] = []
        self.retries: set[int] = set()
        self.returns: set[int] = set()
        self.manifests: list[int] = []
        self.published: dict[str, dict[str, Any]] = {}
        self.named: NamedIds | None = None
        self.sources: Sources | None = None

    def check(self) -> None:
        fail_at("audit.begun")
        self._check_run_file()
        stored = self._list()
        fail_at("audit.listed")
        intact = self._check_plans()
        fail_at("audit.planned")
        newest = max(self.manifests, default=None)
        whole = intact == self.plans  # else every chunk of a damaged plan would be missed
        planned = self._planned() if whole else None
        for name, (kind, message) in check_manifests(self.uri, self.run_id, self.manifests, self.published, planned):
            self._note(kind, name, message)
        fail_at("audit.manifests")
        pending = sum(self._check_plan_objects(number, newest) for number in intact)
        fail_at("audit.masks")
        if planned is not None:
            for chunk_id in np.setdiff1d(stored, planned[0]).tolist():
                self._note("stray", f"masks/{chunk_id.decode()}.parquet", "is in no plan")
        self._check_end(pending, newest)
        if self.named is not None:
            self.report.shared_ids += self.named.count_shared()
        if self.sources is not None:
            self.report.compared = (self.report.compared or 0) + self.sources.compared
            self.report.others = (self.report.others or 0) + self.sources.others

    def _note(self, kind: str, name: str, message: str) -> None:
        self.report.note(kind, storage.join(self.uri, name), message)

    def _check_run_file(self) -> None:
        try:
            found = json.loads(storage.read_bytes(storage.join(self.uri, "run.json")))
            parts = {key: found[key] for key in ("identity", "labels", "schema_version")}
            text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
            self.classes, self.ignore_id = len(found["labels"]["names"]), int(found["labels"]["ignore_id"])
            model = found["identity"].get("model")
            columns = found["identity"].get("columns", {})
            self.named = NamedIds() if columns.get("id") else None
        except OutOfReachError:
            raise
        except (StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._note("run", "run.json", f"cannot be understood: {error!r}")
            return
        computed = hashlib.sha256(text.encode()).hexdigest()[:16]
        if {self.run_id, found.get("run")} != {computed}:
            self._note("run", "run.json", f"says run {found.get('run')!r}, its identity gives {computed!r}")
        elif isinstance(model, str):
            self.model_digest = model
        if self.report.compared is not None:
            self._open_sources(found)

    def _open_sources(self, run: dict[str, Any]) -> None:
        try:
            self.sources = Sources(run)
        except OutOfReachError:
            raise
        except (FcnRayError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._note("run", "run.json", f"its input cannot be understood: {error!r}")

    def _list(self) -> npt.NDArray[np.bytes_]:
        """Sort the names in the folder; ids of the mask files."""

        def count_leftover(left: storage.Skipped) -> None:
            if left.fault:
                self._note("name", printable(left.path), left.why)
            self.report.leftovers += left.path.rpartition("/")[2].startswith(".tmp-")

        def mask_ids() -> Iterator[str]:
            for entry in storage.list_files(self.uri, count_leftover):
                folder, slash, _ = entry.path.partition("/")
                if not slash or folder not in _NAMES:
                    continue
                match = _NAMES[folder].fullmatch(entry.path)
                if match is None:
                    self._note("name", entry.path, "is none of ours")
                elif folder == "masks":
                    yield match[1]
                else:
                    (self.plans if folder == "plans" else self.manifests).append(int(match[1]))

        ids = np.fromiter(mask_ids(), dtype="S32")
        self.plans.sort()
        self.manifests.sort()
        return ids

    def _check_plans(self) -> list[int]:
        """Numbers of the plans that are as they should be."""
        missing = sorted(set(range(1, max(self.plans, default=0) + 1)) - set(self.plans))
        if missing:
            self._note("plan", "plans", f"plans {missing} are missing")
        intact = []
        for number in self.plans:
            before = self.report.n_findings
            for kind, message in check_plan(self.uri, number):
                self.report.note(kind, plan_file(self.uri, number), message)
            intact += [number] if self.report.n_findings == before else []
        self.retries, self.returns = find_kinds(self.uri, intact)
        for kind, message in check_coverage(self.uri, intact, self.retries, self.returns):
            self._note(kind, "plans", message)
        return intact

    def _check_plan_objects(self, number: int, newest_manifest: int | None) -> int:
        """Check the mask file of every chunk of a plan; how many are not there yet."""
        pending = 0
        finished = newest_manifest is not None and number <= newest_manifest
        for chunk_id, rows in read_chunks(self.uri, number):
            self.report.chunks += 1
            name = f"masks/{chunk_id}.parquet"
            if storage.is_file(storage.join(self.uri, name)):
                self._check_object(name, number, chunk_id, rows, finished)
            elif finished:
                self._note("missing", name, f"is gone, though plan {number} was finished")
            else:
                pending += 1
        return pending

    def _check_object(self, name: str, number: int, chunk_id: str, rows: list[PlanRow], finished: bool) -> None:
        self.report.checked += 1
        data = storage.read_bytes(storage.join(self.uri, name))
        keys = [(row.path, index) for row in rows for index in range(row.first_row, row.first_row + row.n_rows)]
        expected = Expected(self.run_id, chunk_id, number, keys, self.classes, self.ignore_id, self.model_digest)
        seen = Seen(named=self.named, labelled=[] if self.sources else None)
        problems = list(check_mask_file(data, expected, seen))
        if self.sources and seen.labelled is not None:
            problems += self.sources.check(rows, seen.labelled)
        for kind, message in problems:
            self._note(kind, name, message)
        self.report.statuses.update(seen.statuses)
        self.report.retried += seen.statuses.total() if number in self.retries else 0
        self.report.returned += seen.statuses.total() if number in self.returns else 0
        self.model_digest = self.model_digest or seen.model_digest
        found = {
            "name": name,
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "rows": seen.statuses.total(),
            "statuses": dict(seen.statuses),
        }
        if finished and self.published.get(name) != found:
            self._note("digest", name, f"is {found}, in the manifest {self.published.get(name)}")

    def _planned(self) -> Planned:
        """The ids of all chunks, sorted, and the plan that each is in."""
        chunks = ((chunk_id, number) for number in self.plans for chunk_id, _ in read_chunks(self.uri, number))
        table = np.unique(np.fromiter(chunks, dtype=[("id", "S32"), ("plan", "i4")]))
        return table["id"], table["plan"]

    def _check_end(self, pending: int, newest: int | None) -> None:
        name = f"run={self.run_id}"
        for kind, message in check_success(self.uri, newest):
            if kind == "unfinished":
                self.report.unfinished.append(f"{name}: {message}")
            else:
                self._note(kind, "_SUCCESS", message)
        if pending:
            self.report.unfinished.append(f"{name}: {pending} chunks are pending")
        elif newest is None or newest < max(self.plans, default=0):
            self.report.unfinished.append(f"{name}: plan {max(self.plans, default=0)} has no manifest yet")
