"""Ray Data as its documentation has it: read_parquet, map, map_batches with an actor, map, write_parquet.

python -m tests.benchmarks.peers.naive_ray_data BUNDLE IMAGES OUT [--model null] [--precision bfloat16]

After Ray's guide to offline batch inference and its own benchmark of image classification (ray-project/ray,
release/nightly_tests/multimodal_inference_benchmarks): the network is loaded by the actor's constructor, the encoded
image is dropped when it is decoded, the image when it is labelled; small masks leave the actor, no logits. Decoding
and the actor ask for equal resources, so Ray decodes in the actor. Blocks stay as large as Ray makes them: with smaller
ones (override_num_blocks) Ray 2.60 was seen to stand still on two cores, "not enough to run any task". A batch counts
as finished when the actor has labelled it, before it is encoded, for blocks of hundreds are encoded at once.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.peers import shared
from tests.benchmarks.peers.shared import BATCH, Task, read_task, report


def decode_row(row: dict[str, Any]) -> dict[str, Any]:
    """Pixels in the place of the JPEG."""
    return {"name": row["name"], "pixels": shared.decode(row["image"])}


def encode_row(row: dict[str, Any]) -> dict[str, Any]:
    """PNG in the place of the class ids."""
    return row | {"mask": shared.encode(row["mask"])}


class Segmenter:
    """The network in an actor."""

    def __init__(self, task: Task) -> None:
        self._label = shared.load_label_function(task)
        self._out = task.out

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Class ids in the place of the pixels."""
        masks = shared.label_images(self._label, batch.pop("pixels"))
        shared.mark(self._out, len(masks))
        return batch | {"mask": masks}


def main() -> None:
    """Label all images."""
    task = read_task(__doc__)
    import ray

    ray.init(address="local", log_to_driver=False)  # no other Ray of this machine
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_parquet(str(task.images), columns=["name", "image"])
    masks = (
        images.map(decode_row)
        .map_batches(
            Segmenter,
            batch_size=BATCH,
            fn_constructor_args=(task,),
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .map(encode_row)
    )
    masks.write_parquet(str(task.out / "masks"))
    report(task.out)


if __name__ == "__main__":
    main()
