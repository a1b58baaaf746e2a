"""The part of a labelling job that is Ray's: a cluster with room for it, and the pipeline over its chunks.

A job that has nothing to do never comes here, and does without the seconds that Ray's imports take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.data import Dataset

from fcn_ray import cluster, storage
from fcn_ray.bundle import Bundle
from fcn_ray.config import Precision, PredictConfig, SegmentConfig
from fcn_ray.errors import IncompleteError, ResourceError
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.memory import reserve
from fcn_ray.inference.pipeline import Actors, build_pipeline
from fcn_ray.inference.predictor import Predictor
from fcn_ray.inference.preparing import PrepareChunks
from fcn_ray.inference.shares import Memory, Shares
from fcn_ray.inference.stages import CommitChunks, DecodeImages, ReadChunks, read_receipts
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.places import spell_places
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run

CHUNKS_A_PASS = 20_000
"""Ray Data keeps some 9 kB about every block until the pipeline ends: 180 MB, and then new actors are started."""


def connect(config: SegmentConfig, bundle: Bundle, verbose: bool) -> None:
    """Ray, with room for the actors and for one decoding task at least. Raises ResourceError where there is none."""
    predict = config.predict
    cpus = max(predict.actors, 1) * predict.cpus + 2 * config.decode_cpus
    cluster.connect(config.address, cpus=cpus, verbose=verbose)
    memory = reserve(config, bundle)
    actors = count_actors(predict, memory)
    cluster.require(
        actors, cpus=predict.cpus, gpus=predict.gpus, spare_cpus=config.decode_cpus, purpose="prediction actors"
    )
    require_memory(memory, actors, predict)


def require_memory(memory: Memory, actors: int, predict: PredictConfig) -> None:
    """Raise ResourceError when the nodes cannot hold the actors, and on one of them a task before and one behind."""
    spare, purpose = memory.prepare + memory.commit, "prediction actors"
    try:
        cluster.require_memory(
            actors, memory.predict, cpus=predict.cpus, gpus=predict.gpus, spare=spare, purpose=purpose
        )
    except ResourceError as error:
        raise ResourceError(
            f"{error}: take fewer actors, lower predict.batch_pixels, predict.tile_pixels or chunk.bytes, "
            "or say with predict.memory what an actor really takes"
        ) from error


def count_actors(predict: PredictConfig, memory: Memory) -> int:
    """As asked for; else as many as the cluster's GPUs and memory hold, or one for each node that holds one."""
    if predict.actors:
        return predict.actors
    if predict.gpus:
        room = cluster.count_room(cpus=predict.cpus, gpus=predict.gpus, spare_cpus=0, memory=memory.predict)
        return max(1, room or cluster.count_gpu_shares(gpus=predict.gpus))
    return max(1, cluster.count_nodes(cpus=predict.cpus, memory=memory.predict))


def predictor_arguments(predict: PredictConfig, bundle: Bundle, precision: Precision, actors: int) -> dict[str, Any]:
    """What each of `actors` Predictors is made with, wherever it is."""
    return {
        "bundle": replace(bundle, folder=storage.absolute(bundle.folder)),
        "config": predict,
        "sharers": math.ceil(actors / max(1, cluster.count_nodes(cpus=predict.cpus))),
        "precision": precision,
    }


def run_chunks(
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
    actors = min(count_actors(config.predict, memory), len(pending))  # the cores for those that have something to do
    prepare = PrepareChunks(
        ReadChunks(run.uri, understand_input(run.input), columns, spell_places(config.allow_paths)),
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
