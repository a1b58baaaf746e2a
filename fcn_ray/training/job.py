"""train(config): check, connect, run the workers until they are done, and say what came out."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fcn_ray import cluster, storage
from fcn_ray.config import TrainConfig
from fcn_ray.config_text import dump_config
from fcn_ray.errors import IncompleteError
from fcn_ray.reports.progress import format_duration
from fcn_ray.training.checkpoints import load_newest
from fcn_ray.training.frequencies import find_class_weights
from fcn_ray.training.preflight import Job, prepare

logger = logging.getLogger(__name__)

INGEST_CPUS = 1
"""CPUs that must be free beside the workers, to read and decode their input."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training job left behind."""

    bundle: str
    digest: str
    epoch: int
    """Epoch of the best checkpoint, which the bundle holds; counted from 1."""
    metrics: dict[str, Any]
    seconds: float

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield f"trained in {format_duration(self.seconds)}; best epoch {self.epoch}"
        yield f"next:  fcn-ray segment IMAGES MASKS --model {self.bundle}"


def train(
    config: TrainConfig, on_record: Callable[[dict[str, Any]], None] | None = None, *, verbose: bool = False
) -> TrainReport:
    """Train an FCN on Ray Train workers; the best checkpoint becomes the bundle at `<out>/bundle`.

    `on_record` is called on the driver with {"kind": "start" | "step" | "epoch" | "bundle", ...} as things happen.
    A worker that dies brings all of them back from the last checkpoint, `workers.max_failures` times.
    Raises FcnRayError subclasses; IncompleteError means that the same command with `resume` goes on.
    """
    job = prepare(config)
    start = time.monotonic()
    workers = job.config.workers
    wanted = workers.count * workers.cpus + INGEST_CPUS
    cluster.connect(job.config.address, cpus=wanted, verbose=verbose)
    cluster.require(workers.count, cpus=workers.cpus, gpus=workers.gpus, spare_cpus=INGEST_CPUS, purpose="workers")
    job = _with_class_weights(job)
    storage.replace(storage.join(job.config.out, "config.yaml"), dump_config(job.config).encode())
    told: dict[str, dict[str, Any]] = {}

    def hear(record: dict[str, Any]) -> None:
        told[record["kind"]] = record
        if record["kind"] == "epoch":
            _keep_curve(job.config.out, record)
        if on_record:
            on_record(record)

    hear(
        {
            "kind": "start",
            "network": f"FCN-{job.spec.variant} {job.spec.backbone}",
            "images": sum(piece.n_rows for piece in job.train_pieces),
            "steps": job.config.epochs * job.steps_per_epoch,
            "class_weights": job.class_weights,
        }
    )
    for failures in range(workers.max_failures + 1):
        try:
            with _Listener(hear) as tell:
                _interruptible(lambda: _run_workers(job, tell))
            break
        except Exception as error:
            own = cluster.find_own_error(error)
            if own is not None:
                raise own from error
            if failures == workers.max_failures:
                raise IncompleteError(
                    f"the workers failed {failures + 1} times, the last time with: {cluster.last_line(error)}. "
                    f"Checkpoints are in {job.config.out}: the same command with --resume goes on"
                ) from error
            logger.warning("workers failed (%s); starting again from the last checkpoint", cluster.last_line(error))
    done = told.get("bundle")
    if done is None:
        raise IncompleteError(f"the workers ended without a bundle in {job.config.out}: the same with --resume goes on")
    return TrainReport(done["folder"], done["digest"], done["epoch"], done["metrics"], time.monotonic() - start)


def _with_class_weights(job: Job) -> Job:
    """The job with the class weights that its training labels give, when it asks for those."""
    kind = job.config.loss.class_weights
    if isinstance(kind, tuple) or kind == "none":
        return job
    try:
        return replace(job, class_weights=find_class_weights(kind, job.train_pieces, job.columns, job.labels))
    except Exception as error:
        if own := cluster.find_own_error(error):
            raise own from error
        raise


def _keep_curve(out: str, record: dict[str, Any]) -> None:
    """`metrics.jsonl`: one line for each epoch; a resumed run goes on with it, from the epoch it does again."""
    uri = storage.join(out, "metrics.jsonl")
    before = storage.read_bytes(uri).decode().splitlines() if storage.is_file(uri) else []
    kept = [line for line in before if json.loads(line)["epoch"] < record["epoch"]]
    storage.replace(uri, "".join(f"{line}\n" for line in [*kept, json.dumps(record)]).encode())


def _run_workers(job: Job, tell: Callable[[dict[str, Any]], None]) -> None:
    from ray.train.tensorflow import TensorflowTrainer  # imports TensorFlow: 7 s that a refused job need not wait

    workers = job.config.workers
    newest = load_newest(job.config.out)
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    TensorflowTrainer(
        _work,
        train_loop_config={"job": job, "resume_from": newest[0] if newest else None, "tell": tell},
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(name=f"run-{time.time_ns()}", storage_path=storage.join(job.config.out, "ray")),
    ).fit()


def _interruptible(work: Callable[[], None]) -> None:
    """Run `work` in a thread, so that SIGINT and SIGTERM reach this one: Ray Train would take them for itself."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if raised:
        raise raised[0]


def _work(loop_config: dict[str, Any]) -> None:
    """Entry point on a worker; TensorFlow and Keras are imported there, not on the driver."""
    from fcn_ray.training.loop import run_worker

    try:
        run_worker(loop_config["job"], loop_config["resume_from"], loop_config["tell"])
    except Exception as error:
        own = cluster.find_own_error(error)  # looked for here: causes do not survive the way to the driver
        if own is not None:
            raise own from None
        raise


class _Listener:
    """Carries the workers' records to a function on the driver, from any node. Lives on the driver's node."""

    def __init__(self, hear: Callable[[dict[str, Any]], None]) -> None:
        self._hear = hear
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self._thread.start()
        put: Callable[[dict[str, Any]], None] = self._queue.put_nowait
        return put

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._queue.shutdown(force=True)

    def _listen(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                record = self._queue.get(timeout=0.2)
            except Empty:
                if stopping:
                    return
                continue
            try:
                self._hear(record)
            except Exception:  # a closed terminal or a caller's mistake must not cost the training
                logger.exception("a record of the training could not be passed on")
