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
from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import SegmentConfig
from fcn_ray.errors import ConfigError
from fcn_ray.inference.execution import count_actors, predictor_arguments
from fcn_ray.inference.job import segment
from fcn_ray.inference.memory import reserve
from fcn_ray.inference.precision import settle_precision
from fcn_ray.inference.report import SegmentReport
from fcn_ray.inference.stages import PIXELS_ROOM
from fcn_ray.tables.current import read_masks
from fcn_ray.tables.schema import HEIGHT, OK, STATUS, WIDTH

SECONDS = 10.0
"""For which every actor predicts, at least, once it is warm."""

LEAST_CHUNKS = 3
"""Fewer say too little of a rate, which is between the first and the last that was stored."""

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

    Raises ConfigError when the output had masks before, or when there is too little to tell a rate of all actors; else
    what `segment` raises, and what an image of noise fails with.
    """
    report = segment(config, verbose=verbose)
    if report.skipped or report.found or not report.labelled:
        raise ConfigError(f"{report.run} had masks before, so nothing was measured: choose another output folder")
    least = LEAST_CHUNKS * config.chunk.rows
    if not report.images_per_second or report.labelled < least:
        raise ConfigError(
            f"{report.labelled} images tell no rate: take {least} and more, {LEAST_CHUNKS} chunks, or lower chunk.rows"
        )
    bundle = load_bundle(config.model)
    actors = count_actors(config.predict, reserve(config, bundle))
    if report.labelled < actors * least:
        raise ConfigError(
            f"{report.labelled} images do not keep {actors} actors busy: take {actors * least} and more, "
            f"{LEAST_CHUNKS} chunks for each, or lower chunk.rows"
        )
    sizes = _sample(config, report.run)
    rates = _predict_alone(config, bundle, actors, sizes)
    return BenchmarkReport(report, tuple(rates), sum(height * width for height, width in sizes) / len(sizes) / 1e6)


def _sample(config: SegmentConfig, run: str) -> list[Size]:
    """Sizes of the first images with a mask: a chunk's, in no more memory than a chunk has."""
    rows = read_masks(config.output, run.rpartition("/")[2]).head(
        config.chunk.rows, columns=[HEIGHT, WIDTH], filter=ds.field(STATUS) == OK
    )
    if not len(rows):
        raise ConfigError(f"no image of {config.input} has a mask: {run} says why (columns status and error)")
    sizes: list[Size] = list(zip(rows[HEIGHT].to_pylist(), rows[WIDTH].to_pylist(), strict=True))
    room = np.cumsum([3 * height * width for height, width in sizes])
    return sizes[: max(1, int(np.searchsorted(room, PIXELS_ROOM, side="right")))]


def _predict_alone(config: SegmentConfig, bundle: Bundle, actors: int, sizes: Sequence[Size]) -> list[float]:
    """Images per second of each actor, while all of them predict."""
    predict = config.predict
    arguments = predictor_arguments(predict, bundle, settle_precision(predict.precision, bundle), actors)
    alone = ray.remote(num_cpus=predict.cpus, num_gpus=predict.gpus, memory=reserve(config, bundle).predict)(_Alone)
    workers = [alone.remote(arguments, sizes) for _ in range(actors)]
    with cluster.own_errors():
        ray.get([worker.predict.remote() for worker in workers])  # once over all images, so that every size was there
        rates: list[float] = ray.get([worker.measure.remote(SECONDS) for worker in workers])
    return rates


class _Alone:
    """A predictor with images of noise in its memory."""

    def __init__(self, arguments: dict[str, Any], sizes: Sequence[Size]) -> None:
        from fcn_ray.inference.predictor import Predictor

        noise = np.random.default_rng(0)
        self._predictor = Predictor(**arguments)
        self._images = [noise.integers(0, 255, (*size, 3), np.uint8) for size in sizes]

    def predict(self) -> None:
        """Once over all images. Raises what an image fails with: only masks are to be counted."""
        for outcome in self._predictor.predict(self._images):
            if isinstance(outcome, Exception):
                raise outcome

    def measure(self, seconds: float) -> float:
        """Images per second over so long, or a bit longer."""
        start, count = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            self.predict()
            count += len(self._images)
        return count / (time.monotonic() - start)
