"""segment(config): plan what is left to do, run the pipeline over it, finish the run, and say what came out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import Any

import ray
from ray.data import Dataset

from fcn_ray import __version__, cluster, storage
from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import Precision, PredictConfig, SegmentConfig
from fcn_ray.errors import EXIT_BAD_IMAGES, EXIT_COMPLETE, ForeignOutputError, IncompleteError
from fcn_ray.inference.bad_limits import BadLimits, is_above
from fcn_ray.inference.labelling import Labelling
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.memory import describe, require_memory, reserve
from fcn_ray.inference.pipeline import Actors, Memory, Shares, build_pipeline
from fcn_ray.inference.precision import SLOW, cpu_emulates_bfloat16, settle_precision
from fcn_ray.inference.predictor import Predictor
from fcn_ray.inference.preparing import PrepareChunks
from fcn_ray.inference.report import SegmentReport
from fcn_ray.inference.stages import CommitChunks, DecodeImages, ReadChunks, read_receipts
from fcn_ray.inference.status import JobStatus
from fcn_ray.inference.work import Work, finish_work, order_chunks, plan_work, preview_work
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.inputs import absolute_input, understand_input
from fcn_ray.tables.lock import RunLock
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run, check_output, fingerprint, open_run, run_uri
from fcn_ray.tables.schema import OK, trim_error
from fcn_ray.tables.since import parse_since

logger = logging.getLogger(__name__)

DECODER_VERSION = 2
"""Part of a run's fingerprint: changes when the pixels that the network sees of the same bytes do."""

CHUNKS_A_PASS = 20_000
"""Ray Data keeps some 9 kB about every block until the pipeline ends: 180 MB, and then new actors are started."""


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
    on_this_cpu = not config.predict.gpus and not cluster.find_address(config.address)
    if precision == "bfloat16" and on_this_cpu and cpu_emulates_bfloat16():
        logger.warning(SLOW, "the CPU")
    if dry_run:
        report = _preview(config, columns, fingerprint(identity, bundle.labels), since)
        return replace(report, memory=describe(reserve(config, bundle)))
    about = {"fcn_ray": __version__, "ray": ray.__version__, "config": config.model_dump(mode="json")}
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
                _connect(config, bundle, verbose)
                chunks = order_chunks(work.pending, lock.find_other())
                limits = BadLimits(config.max_bad_fraction, config.max_bad_consecutive, work.images, work.stale)
                receipts = _receipts(config, bundle, precision, run, columns, chunks)
                labelling.follow(receipts, work.todo, limits, status)
            ended_early = labelling.stopped is not None and labelling.done < work.todo
            statuses = labelling.statuses if ended_early else finish_work(run, work, labelling.receipts)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            code = getattr(error, "exit_code", None if stopped else 1)
            status.write("stopped" if stopped else "failed", error=trim_error(str(error)), exit_code=code)
            raise
        report = _report(config, run, work, labelling, statuses, since)
        facts = {"done": report.labelled, "bad": report.bad, "quarantined": work.log.listing.n_quarantined}
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
        identity["allow_paths"] = _allowed(config)
    if precision != "float32":
        identity["precision"] = precision
    return identity


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
    too_many = is_above(config.max_bad_fraction, bad, work.images)
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


def _preview(config: SegmentConfig, columns: Columns, run_id: str, since: datetime | None) -> SegmentReport:
    """What a job would do: the stored plan's pending chunks and what the input has beyond the plan."""
    output, input_uri = storage.absolute(config.output), absolute_input(config.input)
    check_output(output, input_uri)
    uri = run_uri(output, run_id)
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
    )


def _format(since: datetime | None) -> str:
    return since.isoformat(" ", "seconds") if since else ""


def _allowed(config: SegmentConfig) -> tuple[str, ...]:
    """The prefixes of `allow_paths`, spelled so that every worker takes them for the same places."""
    return tuple(sorted(storage.absolute(prefix) for prefix in config.allow_paths))


def _connect(config: SegmentConfig, bundle: Bundle, verbose: bool) -> None:
    """Ray, with room for the actors and for one decoding task at least."""
    predict = config.predict
    cpus = max(predict.actors, 1) * predict.cpus + 2 * config.decode_cpus
    cluster.connect(config.address, cpus=cpus, verbose=verbose)
    memory = reserve(config, bundle)
    actors = count_actors(predict, memory)
    cluster.require(
        actors, cpus=predict.cpus, gpus=predict.gpus, spare_cpus=config.decode_cpus, purpose="prediction actors"
    )
    require_memory(memory, actors, predict)


def count_actors(predict: PredictConfig, memory: Memory) -> int:
    """As asked for; else as many as the cluster's GPUs and memory hold, or one for each node that holds one."""
    if predict.actors:
        return predict.actors
    if predict.gpus:
        room = cluster.count_room(cpus=predict.cpus, gpus=predict.gpus, spare_cpus=0, memory=memory.predict)
        return max(1, room or cluster.count_gpu_shares(gpus=predict.gpus))
    return max(1, cluster.count_nodes(cpus=predict.cpus, memory=memory.predict))


def _receipts(
    config: SegmentConfig,
    bundle: Bundle,
    precision: Precision,
    run: Run,
    columns: Columns,
    pending: Sequence[ChunkRef],
) -> Generator[Receipt, None, None]:
    """Run the pipeline, once for each `CHUNKS_A_PASS`: the receipt of every chunk as soon as it is committed.

    Raises IncompleteError when Ray gives up, or the FcnRayError that a stage raised.
    """
    memory = reserve(config, bundle)
    actors = count_actors(config.predict, memory)
    prepare = PrepareChunks(
        ReadChunks(run.uri, understand_input(run.input), columns, _allowed(config)),
        DecodeImages(config.max_pixels),
        Limits(config.decode_seconds, config.decode_memory),
    )
    commit = CommitChunks(run, bundle.labels, bundle.digest)
    arguments = predictor_arguments(config.predict, bundle, precision, actors) | {"run_uri": run.uri}
    pool = Actors(Predictor, arguments, actors)
    shares = Shares(memory, config.predict, config.decode_cpus)
    for start in range(0, len(pending), CHUNKS_A_PASS):
        part = pending[start : start + CHUNKS_A_PASS]
        yield from _run(partial(build_pipeline, part, prepare, pool, commit, shares))


def predictor_arguments(predict: PredictConfig, bundle: Bundle, precision: Precision, actors: int) -> dict[str, Any]:
    """What each of `actors` Predictors is made with, wherever it is."""
    return {
        "bundle": storage.absolute(bundle.folder),
        "digest": bundle.digest,
        "config": predict,
        "sharers": math.ceil(actors / max(1, cluster.count_nodes(cpus=predict.cpus))),
        "precision": precision,
    }


def _run(build: Callable[[], Dataset]) -> Generator[Receipt, None, None]:
    """The receipts of one pass, as they come."""
    try:
        batches = iter(build().iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with closing(batches):  # takes the actors down, however it ends
            for batch in batches:
                yield from read_receipts(batch)
    except (ray.exceptions.RayError, RuntimeError) as error:
        own = cluster.find_own_error(error)
        if own is not None:
            raise own from error
        raise IncompleteError(
            f"the pipeline stopped: {cluster.last_line(error)}. What is committed is safe: the same command goes on"
        ) from error
