"""benchmark(config): a labelling job, and beside it the network alone on the same actors: how near the one comes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import ray

from fcn_ray import cluster
from fcn_ray.bundle import load_bundle
from fcn_ray.config import SegmentConfig
from fcn_ray.errors import ConfigError
from fcn_ray.inference.job import count_actors, segment
from fcn_ray.inference.memory import reserve
from fcn_ray.inference.precision import settle_precision
from fcn_ray.inference.report import SegmentReport
from fcn_ray.tables.current import read_masks
from fcn_ray.tables.schema import HEIGHT, OK, STATUS, WIDTH

SECONDS = 10.0
"""For which every actor predicts, at least, once it is warm."""

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """What a labelling job came to, and what its network does alone."""

    job: SegmentReport
    network: tuple[float, ...]
    """Images per second of each actor's network, all at the same time, images in its memory."""
    megapixels: float
    """Of an image, on average."""

    @property
    def ratio(self) -> float:
        """Images per second of the job, once it had started, over those of all networks."""
        return (self.job.images_per_second or math.nan) / sum(self.network)

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield from self.job.lines()
        if self.job.first_commit_seconds is not None:
            yield f"start: {self.job.first_commit_seconds:.1f} s to the first chunk"
        each = ", ".join(f"{rate:.1f}" for rate in self.network)
        yield (
            f"the network alone: {sum(self.network):.1f} images/s of {self.megapixels:.2f} megapixels "
            f"on {len(self.network)} actors ({each})"
        )
        yield f"the job reached {self.ratio:.2f} of it"


def benchmark(config: SegmentConfig, *, verbose: bool = False) -> BenchmarkReport:
    """Label `config.input` into an output that is new, then predict noise of the same sizes on as many actors.

    Raises ConfigError when nothing was labelled, or too little to tell a rate; what `segment` raises else.
    """
    report = segment(config, verbose=verbose)
    if not report.labelled:
        raise ConfigError(f"{report.run} has all its masks, so nothing was measured: choose another output folder")
    if report.images_per_second is None:
        raise ConfigError(f"{report.labelled} images are one chunk, and tell no rate: take more, or lower chunk.rows")
    sizes = _sample(config, report.run)
    rates = _predict_alone(config, sizes)
    return BenchmarkReport(report, tuple(rates), sum(height * width for height, width in sizes) / len(sizes) / 1e6)


def _sample(config: SegmentConfig, run: str) -> list[Size]:
    """Sizes of as many images with a mask as a chunk has."""
    rows = read_masks(config.output, run.rpartition("/")[2]).head(
        config.chunk.rows, columns=[HEIGHT, WIDTH], filter=ds.field(STATUS) == OK
    )
    if not len(rows):
        raise ConfigError(f"no image of {config.input} has a mask: {run} says why (columns status and error)")
    return list(zip(rows[HEIGHT].to_pylist(), rows[WIDTH].to_pylist(), strict=True))


def _predict_alone(config: SegmentConfig, sizes: Sequence[Size]) -> list[float]:
    """Images per second of each actor, while all of them predict."""
    predict, bundle = config.predict, load_bundle(config.model)
    actors = count_actors(predict)
    arguments = {
        "bundle": bundle.folder,
        "digest": bundle.digest,
        "config": predict,
        "sharers": math.ceil(actors / max(1, cluster.count_nodes(cpus=predict.cpus))),
        "precision": settle_precision(predict.precision, bundle),
    }
    alone = ray.remote(num_cpus=predict.cpus, num_gpus=predict.gpus, memory=reserve(config, bundle).predict)(_Alone)
    workers = [alone.remote(arguments, sizes) for _ in range(actors)]
    ray.get([worker.warm_up.remote() for worker in workers])
    rates: list[float] = ray.get([worker.measure.remote(SECONDS) for worker in workers])
    return rates


class _Alone:
    """A predictor with images of noise in its memory."""

    def __init__(self, arguments: dict[str, Any], sizes: Sequence[Size]) -> None:
        from fcn_ray.inference.predictor import Predictor

        noise = np.random.default_rng(0)
        self._predictor = Predictor(**arguments)
        self._images = [noise.integers(0, 255, (*size, 3), np.uint8) for size in sizes]

    def warm_up(self) -> None:
        """Once over all images, so that every size was there."""
        self._predictor.predict(self._images)

    def measure(self, seconds: float) -> float:
        """Images per second over so long, or a bit longer."""
        start, count = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            self._predictor.predict(self._images)
            count += len(self._images)
        return count / (time.monotonic() - start)
