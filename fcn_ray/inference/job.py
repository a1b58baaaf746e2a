"""segment(config): plan what is left to do, run the pipeline over it, finish the run, and say what came out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any

from fcn_ray import __version__, storage
from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import Precision, SegmentConfig
from fcn_ray.errors import EXIT_BAD_IMAGES, EXIT_COMPLETE, ForeignOutputError
from fcn_ray.inference.bad_limits import BadLimits, is_above
from fcn_ray.inference.labelling import Labelling
from fcn_ray.inference.memory import describe, reserve
from fcn_ray.inference.precision import SLOW, cpu_emulates_bfloat16, settle_precision
from fcn_ray.inference.report import SegmentReport
from fcn_ray.inference.status import JobStatus
from fcn_ray.inference.work import Work, finish_work, order_chunks, plan_work, preview_work
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import absolute_input
from fcn_ray.tables.lock import RunLock
from fcn_ray.tables.places import spell_places
from fcn_ray.tables.runs import Run, check_run, open_run
from fcn_ray.tables.schema import OK, trim_error
from fcn_ray.tables.since import parse_since

logger = logging.getLogger(__name__)

DECODER_VERSION = 2
"""Part of a run's fingerprint: changes when the pixels that the network sees of the same bytes do."""

NAMED_IN_STATUS = 20
"""Inputs that could not be read, in `status.json`: whoever is called at night has no terminal with the others."""


def segment(config: SegmentConfig, *, dry_run: bool = False, verbose: bool = False) -> SegmentReport:
    """Give every image of `config.input` exactly one result row in `config.output`; what is done is skipped.

    With `dry_run` nothing is written and Ray is not started. Too many bad images end it early, which the report says.
    Raises FcnRayError subclasses; IncompleteError means that the same call goes on. KeyboardInterrupt passes through:
    what is committed is safe.
    """
    start = time.monotonic()
    since = parse_since(config.since) if config.since else None
    bundle = load_bundle(config.model)
    columns = Columns(config.image_column, config.id_column, config.carry)
    precision = settle_precision(config.predict.precision, bundle)
    identity = _identify(config, bundle, columns, precision)
    _warn_of_emulation(config, precision)
    if dry_run:
        report = _preview(config, columns, identity, bundle, since)
        return replace(report, memory=describe(reserve(config, bundle)))
    about = {"fcn_ray": __version__, "ray": version("ray"), "config": config.model_dump(mode="json")}
    run = open_run(config.output, config.input, identity, bundle.labels, about)
    lock = RunLock(run.uri)
    _heed(lock.find_other(), run, config)
    labelling = Labelling(start)
    with JobStatus(run, lock) as status:
        try:
            status.write("planning")
            work = plan_work(run, config, columns, since)
            status.write("running", images=work.images, skipped=work.skipped, done=0)
            if work.pending:
                from fcn_ray.inference import execution  # Ray's imports: a second or two that others need not wait

                execution.connect(config, bundle, verbose)
                chunks = order_chunks(work.pending, lock.find_other())
                bad = config.max_bad_fraction, config.max_bad_consecutive
                limits = BadLimits(*bad, work.images, work.stale, fresh=not work.skipped)
                receipts = execution.run_chunks(config, bundle, precision, run, columns, chunks)
                labelling.follow(receipts, work.todo, limits, status)
            ended_early = labelling.stopped is not None and labelling.done < work.todo
            statuses = labelling.statuses if ended_early else finish_work(run, work, labelling.receipts)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            code = getattr(error, "exit_code", None if stopped else 1)
            status.write("stopped" if stopped else "failed", error=trim_error(str(error)), exit_code=code)
            raise
        report = _report(config, run, work, labelling, statuses, since)
        facts: dict[str, Any] = {"done": report.labelled, "bad": report.bad, "quarantined": report.n_quarantined}
        if report.quarantined:
            facts["not_read"] = {left.path: left.reason for left in report.quarantined[:NAMED_IN_STATUS]}
        why = {} if report.stopped is None else {"error": report.stopped}
        code = EXIT_BAD_IMAGES if report.too_bad else EXIT_COMPLETE
        status.write("stopped" if ended_early else "complete", **facts, **why, exit_code=code)
    return replace(report, seconds=time.monotonic() - start)


def _identify(config: SegmentConfig, bundle: Bundle, columns: Columns, precision: Precision) -> dict[str, Any]:
    """All that can change a row or a mask, for the fingerprint. Settings that came later are in it only where they are
    not what all runs had before: those stay what they are."""
    identity = {
        "model": bundle.digest,
        "decoder": DECODER_VERSION,
        "max_pixels": config.max_pixels,
        "tile_pixels": config.predict.tile_pixels,  # of a network without tiles, larger images have no mask
        "columns": asdict(columns),  # other images, ids or carried columns are other rows
    }
    if config.allow_paths:
        identity["allow_paths"] = spell_places(config.allow_paths)
    if precision != "float32":
        identity["precision"] = precision
    return identity


def _warn_of_emulation(config: SegmentConfig, precision: Precision) -> None:
    """When the CPU that will predict is this one, and computes in bfloat16 by way of float32."""
    if precision == "bfloat16" and not config.predict.gpus and cpu_emulates_bfloat16():
        from fcn_ray.cluster import find_address  # imports Ray

        if not find_address(config.address):
            logger.warning(SLOW, "the CPU")


def _heed(other: str | None, run: Run, config: SegmentConfig) -> None:
    """Raise ForeignOutputError, or warn, when another job works on the run."""
    if other is None:
        return
    if config.if_running == "fail":
        raise ForeignOutputError(f"{run.uri} is worked on by {other}; wait for its end, or set if_running to join")
    logger.warning("%s is worked on by %s; they share the work, and each chunk is stored once", run.uri, other)


def _report(
    config: SegmentConfig,
    run: Run,
    work: Work,
    labelling: Labelling,
    statuses: Mapping[str, int],
    since: datetime | None,
) -> SegmentReport:
    listing = work.log.listing
    bad = sum(statuses.values()) - statuses.get(OK, 0)
    too_many = is_above(config.max_bad_fraction, bad, work.images) or 0 < bad == sum(statuses.values())
    return SegmentReport(
        run=run.uri,
        images=work.images,
        labelled=labelling.done,
        skipped=work.skipped,
        statuses=statuses,
        quarantined=tuple(listing.quarantined),
        n_quarantined=listing.n_quarantined,
        skipped_files=listing.skipped,
        older=listing.older,
        since=_format(since),
        first_commit_seconds=labelling.first_commit_seconds,
        images_per_second=labelling.images_per_second,
        too_bad=too_many or listing.n_quarantined > 0 or bool(labelling.stopped),
        stopped=labelling.stopped,
        left=work.todo - labelling.done,
        found=labelling.found,
    )


def _preview(
    config: SegmentConfig, columns: Columns, identity: Mapping[str, Any], bundle: Bundle, since: datetime | None
) -> SegmentReport:
    """What a job would do: the stored plan's pending chunks and what the input has beyond the plan."""
    output, input_uri = storage.absolute(config.output), absolute_input(config.input)
    uri = check_run(output, input_uri, identity, bundle.labels)
    work, todo = preview_work(uri, input_uri, config, columns, since)
    listing = work.log.listing
    return SegmentReport(
        run=uri,
        images=work.images,
        labelled=0,
        skipped=work.images - todo,
        statuses={},
        quarantined=tuple(listing.quarantined),
        n_quarantined=listing.n_quarantined,
        skipped_files=listing.skipped,
        older=listing.older,
        since=_format(since),
        dry_run=True,
        too_bad=listing.n_quarantined > 0,
    )


def _format(since: datetime | None) -> str:
    return since.isoformat(" ", "seconds") if since else ""
