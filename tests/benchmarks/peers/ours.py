"""fcn_ray itself, with its defaults: `segment()`, Ray started for the job.

python -m tests.benchmarks.peers.ours BUNDLE IMAGES OUT [--model null] [--precision bfloat16]

A chunk counts as finished when its masks are committed: written, synchronised, named.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from fcn_ray import SegmentConfig, load_config
from fcn_ray.inference import execution, job
from fcn_ray.inference.labelling import Labelling
from tests.benchmarks import null_model
from tests.benchmarks.peers.shared import mark, read_task, report


def main() -> None:
    """Label all images."""
    task = read_task(__doc__)

    class MarkedLabelling(Labelling):
        def follow(self, receipts: Generator[Any], *rest: Any) -> None:
            super().follow(self._mark(receipts), *rest)

        def _mark(self, receipts: Generator[Any]) -> Generator[Any]:
            for receipt in receipts:
                mark(task.out, sum(receipt.statuses.values()))
                yield receipt

    job.Labelling = MarkedLabelling  # type: ignore[misc]
    if task.model == "null":
        execution.Predictor = null_model.NullPredictor  # type: ignore[assignment,misc]
    flags = {"input": str(task.images), "output": str(task.out / "masks"), "model": task.bundle}
    job.segment(load_config(SegmentConfig, None, [f"predict.precision={task.precision}"], flags))
    report(task.out)


if __name__ == "__main__":
    main()
