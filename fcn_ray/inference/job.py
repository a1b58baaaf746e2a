"""segment(config): plan what is left to do, run the pipeline over it, finish the run, and say what came out."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray

from fcn_ray import __version__, cluster, storage
from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import PredictConfig, SegmentConfig
from fcn_ray.errors import EXIT_BAD_IMAGES, EXIT_COMPLETE, IncompleteError, StorageError
from fcn_ray.inference.pipeline import Actors, build_pipeline
from fcn_ray.inference.predictor import Predictor
from fcn_ray.inference.report import SegmentReport
from fcn_ray.inference.stages import CommitChunks, DecodeImages, ReadChunks, read_receipts
from fcn_ray.reports.progress import Progress
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import extend_plan, pending_chunks, preview_plan
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run, check_output, fingerprint, open_run, run_uri, write_status
from fcn_ray.tables.schema import OK, trim_error

logger = logging.getLogger(__name__)

DECODER_VERSION = 2
"""Part of a run's fingerprint: changes when the pixels that the network sees of the same bytes do."""


def segment(config: SegmentConfig, *, dry_run: bool = False, verbose: bool = False) -> SegmentReport:
    """Give every image of `config.input` exactly one result row in `config.output`; what is done is skipped.

    With `dry_run` nothing is written and Ray is not started. Raises FcnRayError subclasses; IncompleteError means that
    the same call goes on. KeyboardInterrupt passes through: what is committed is safe.
    """
    start = time.monotonic()
    bundle = load_bundle(config.model)
    columns = Columns(config.image_column, config.id_column, config.carry)
    identity = {
        "model": bundle.digest,
        "decoder": DECODER_VERSION,
        "max_pixels": config.max_pixels,
        "tile_pixels": config.predict.tile_pixels,  # of a network without tiles, larger images have no mask
        "columns": asdict(columns),  # other images, ids or carried columns are other rows
    }
    if config.allow_paths:  # so are paths that are read; runs from before there was this setting stay what they are
        identity["allow_paths"] = _allowed(config)
    if dry_run:
        return _preview(config, columns, fingerprint(identity, bundle.labels))
    about = {"fcn_ray": __version__, "ray": ray.__version__, "config": config.model_dump(mode="json")}
    run = open_run(config.output, config.input, identity, bundle.labels, about)
    status = _Status(run)
    labelling = _Labelling(start)
    try:
        status.write("planning")
        log = extend_plan(run.uri, run.input, config.chunk, columns)
        pending = list(pending_chunks(log))
        todo = sum(chunk.n_rows for chunk in pending)
        status.write("running", images=log.rows, skipped=log.rows - todo, done=0)
        if pending:
            _connect(config, verbose)
            labelling.follow(_receipts(config, bundle, run, columns, pending), todo, status)
        manifest = finish(run, log, labelling.receipts)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        code = getattr(error, "exit_code", None if stopped else 1)
        status.write("stopped" if stopped else "failed", error=trim_error(str(error)), exit_code=code)
        raise
    bad = manifest.bad_rows
    too_bad = bad > config.max_bad_fraction * log.rows or log.listing.n_quarantined > 0
    code = EXIT_BAD_IMAGES if too_bad else EXIT_COMPLETE
    status.write("complete", done=todo, bad=bad, quarantined=log.listing.n_quarantined, exit_code=code)
    return SegmentReport(
        run=run.uri,
        images=log.rows,
        labelled=todo,
        skipped=log.rows - todo,
        statuses=manifest.statuses,
        quarantined=tuple(log.listing.quarantined),
        skipped_files=log.listing.skipped,
        seconds=time.monotonic() - start,
        first_commit_seconds=labelling.first_commit_seconds,
        images_per_second=labelling.images_per_second,
        too_bad=too_bad,
    )


def _preview(config: SegmentConfig, columns: Columns, run_id: str) -> SegmentReport:
    """What a job would do: the stored plan's pending chunks and what the input has beyond the plan."""
    output, input_uri = storage.absolute(config.output), storage.absolute(config.input)
    check_output(output, input_uri)
    uri = run_uri(output, run_id)
    log = preview_plan(uri, input_uri, config.chunk, columns)
    todo = log.new_rows + sum(chunk.n_rows for chunk in pending_chunks(log))
    return SegmentReport(
        run=uri,
        images=log.rows,
        labelled=0,
        skipped=log.rows - todo,
        statuses={},
        quarantined=tuple(log.listing.quarantined),
        skipped_files=log.listing.skipped,
        dry_run=True,
    )


def _allowed(config: SegmentConfig) -> tuple[str, ...]:
    """The prefixes of `allow_paths`, spelled so that every worker takes them for the same places."""
    return tuple(sorted(storage.absolute(prefix) for prefix in config.allow_paths))


def _connect(config: SegmentConfig, verbose: bool) -> None:
    """Ray, with room for the actors and for one decoding task at least."""
    predict = config.predict
    cpus = max(predict.actors, 1) * predict.cpus + 2 * config.decode_cpus
    cluster.connect(config.address, cpus=cpus, verbose=verbose)
    actors = _count_actors(predict)
    cluster.require(
        actors, cpus=predict.cpus, gpus=predict.gpus, spare_cpus=config.decode_cpus, purpose="prediction actors"
    )


def _count_actors(predict: PredictConfig) -> int:
    """As asked for; else as many as the cluster's GPUs hold, or one for each node."""
    if predict.actors:
        return predict.actors
    if predict.gpus:
        return max(1, cluster.count_gpu_shares(gpus=predict.gpus))
    return max(1, cluster.count_nodes(cpus=predict.cpus))


def _receipts(
    config: SegmentConfig, bundle: Bundle, run: Run, columns: Columns, pending: list[ChunkRef]
) -> Iterator[Receipt]:
    """Run the pipeline: the receipt of every chunk as soon as it is committed.

    Raises IncompleteError when Ray gives up, or the FcnRayError that a stage raised.
    """
    predict = config.predict
    arguments = {
        "bundle": storage.absolute(bundle.folder),
        "digest": bundle.digest,
        "threads": predict.threads,
        "batch_pixels": predict.batch_pixels,
        "tile_pixels": predict.tile_pixels,
    }
    dataset = build_pipeline(
        pending,
        ReadChunks(run.uri, run.input, columns, _allowed(config)),
        DecodeImages(config.max_pixels),
        Actors(Predictor, arguments, _count_actors(predict), predict),
        CommitChunks(run, bundle.labels, bundle.digest),
        config.decode_cpus,
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from read_receipts(batch)
    except (ray.exceptions.RayError, RuntimeError) as error:
        own = cluster.find_own_error(error)
        if own is not None:
            raise own from error
        raise IncompleteError(
            f"the pipeline stopped: {cluster.last_line(error)}. What is committed is safe: the same command goes on"
        ) from error


class _Status:
    """Keeps status.json current: the truth about a job for whoever cannot see its exit code."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._facts: dict[str, Any] = {"run": run.run_id, "input": run.input, "started": time.time()}

    def write(self, state: str, **facts: Any) -> None:
        """`state` is planning, running, complete, stopped or failed. A status that cannot be written stops no job."""
        self._facts |= facts
        try:
            write_status(self._run, {"state": state, "updated": time.time(), **self._facts})
        except StorageError as error:
            logger.warning("status.json is not current: %s", error)


class _Labelling:
    """What has come out of the pipeline so far."""

    def __init__(self, start: float) -> None:
        self.receipts: list[Receipt] = []
        self.first_commit_seconds: float | None = None
        self.images_per_second: float | None = None
        self._start = start

    def follow(self, receipts: Iterator[Receipt], todo: int, status: _Status) -> None:
        """Take receipts as they come; one progress line, and status.json, follow them."""
        done = bad = first = 0
        first_time = self._start
        statuses: Counter[str] = Counter()
        with Progress(todo, write_status=lambda facts: status.write("running", **facts)) as progress:
            for receipt in receipts:
                self.receipts.append(receipt)
                statuses.update(receipt.statuses)
                done, bad = statuses.total(), statuses.total() - statuses[OK]
                now = time.monotonic()
                if self.first_commit_seconds is None:
                    first, first_time = done, now
                    self.first_commit_seconds = now - self._start
                elif now > first_time:
                    self.images_per_second = (done - first) / (now - first_time)
                progress.update(done, bad)
