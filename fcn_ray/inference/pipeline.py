"""THE pipeline: chunks to do -> read and decode -> predict -> encode and commit, one function on one screen.

One block is one chunk from end to end: blocks are never split (`target_max_block_size=None`), batches are whole blocks
(`batch_size=None`), and the last stage refuses a chunk that is not whole. What comes out is one small receipt a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, Dataset

from fcn_ray.inference.preparing import PrepareChunks
from fcn_ray.inference.shares import Shares
from fcn_ray.inference.stages import CommitChunks
from fcn_ray.tables.planfile import ChunkRef

MAX_TASK_RETRIES = 2
"""A chunk that took its task down three times ends the job; Ray's own default is to try for ever."""

MAX_PREDICT_RETRIES = 10
"""The same for a chunk and its actor. More, since every second death settles one image, and chunks that wait for the
same actor are counted as tried too."""


CHUNKS_A_BLOCK = 1000
"""As many descriptors are put in Ray's store one by one, which takes a second. Those of larger jobs travel together,
until the pipeline is ready for them: putting each would delay the first image by half a minute."""


@dataclass(frozen=True, slots=True)
class Actors:
    """The stage with state: its class and constructor arguments, and how many actors."""

    stage: Callable[..., Any]
    arguments: Mapping[str, Any]
    count: int


def build_pipeline(
    chunks: Sequence[ChunkRef],
    prepare: PrepareChunks,
    predict: Actors,
    commit: CommitChunks,
    shares: Shares,
) -> Dataset:
    """The lazy dataset whose rows are receipts; running it labels and commits `chunks`.

    Decoding runs in tasks of its own: Ray would fuse it into the actors, on their nodes' time, but for the different
    arguments of the two.
    """
    options = ray.data.DataContext.get_current().copy()
    options.target_max_block_size = None
    options.enable_progress_bars = False
    options.raise_original_map_exception = True  # an error of ours must come out as one
    options.execution_options.preserve_order = False
    memory, cpus = shares.memory, shares.stage_cpus
    retried: dict[str, Any] = {"max_retries": MAX_TASK_RETRIES}
    restarts = {"max_restarts": shares.predict.max_restarts, "max_task_retries": MAX_PREDICT_RETRIES}
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    # One call at a time, but in the actor's own thread: in another one it would not know its attempt.
    actors = ActorPoolStrategy(size=predict.count, max_tasks_in_flight_per_actor=2, enable_true_multi_threading=True)
    # map_batches_internal: the public method refuses GPUs with whole blocks, and finite retries (DECISIONS 6).
    with ray.data.DataContext.current(options):
        described = describe(chunks)
    return (
        described.map_batches_internal(prepare, num_cpus=cpus, memory=memory.prepare, **whole, **retried)
        .map_batches_internal(
            predict.stage,
            fn_constructor_kwargs=dict(predict.arguments),
            compute=actors,
            num_cpus=shares.predict.cpus,
            num_gpus=shares.predict.gpus,
            memory=memory.predict,
            **whole,
            **restarts,
        )
        .map_batches_internal(commit, num_cpus=cpus, memory=memory.commit, **whole, **retried)
    )


def describe(chunks: Sequence[ChunkRef]) -> Dataset:
    """One descriptor a block. Where there are many a task cuts them apart, and its process is one more to start."""
    rows = [asdict(chunk) for chunk in chunks]
    if len(rows) <= CHUNKS_A_BLOCK:
        return ray.data.from_items(rows, override_num_blocks=len(rows))
    together = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // CHUNKS_A_BLOCK))
    split = together.repartition(target_num_rows_per_block=1)
    # No public way to say so: it would take a whole CPU. It lasts until the pipeline has taken the last of its
    # descriptors, and on a machine with two CPUs no chunk would be committed meanwhile.
    split._logical_plan.dag.ray_remote_args["num_cpus"] = 0
    return split
