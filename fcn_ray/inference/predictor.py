"""Predictor: holds the network of a bundle in a Ray actor and gives every image of a chunk its mask.

One function takes uint8 images and gives back masks, pixel counts and confidences; float logits never leave the
device. Images go through it together only when they pad to the same size: no image changes another's mask.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fcn_ray.bundle import Bundle
from fcn_ray.config import Precision, PredictConfig
from fcn_ray.errors import FcnRayError
from fcn_ray.images.codec import decode_image, encode_mask
from fcn_ray.images.geometry import group_by_size, pad_batch
from fcn_ray.images.tiling import Tile, paste, plan_tiles, whole_image
from fcn_ray.inference import task
from fcn_ray.inference.lanes import Lanes
from fcn_ray.inference.network import compile_network, share_cores, try_out
from fcn_ray.inference.stages import replace_columns
from fcn_ray.tables.attempts import Attempts
from fcn_ray.tables.schema import (
    CHUNK_ID,
    CLASS_PIXELS,
    ENCODED,
    ERROR,
    HEIGHT,
    MASK,
    MASK_PNG,
    MEAN_CONFIDENCE,
    MIN_CLASS_CONFIDENCE,
    OK,
    PIXELS,
    STATUS,
    WIDTH,
    trim_error,
)

logger = logging.getLogger(__name__)


Part = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Mask of a window, class pixels and confidence of its core."""


class Window(NamedTuple):
    """A part of an image that goes through the network, and which of the images it is of."""

    number: int
    image: np.ndarray
    tile: Tile


class Prediction:
    """What the network says of one image, put together from its tiles."""

    def __init__(self, height: int, width: int, num_classes: int) -> None:
        self.mask = np.zeros((height, width), np.uint8)
        """(H, W) class ids."""
        self.class_pixels = np.zeros(num_classes, np.int64)
        """(num_classes,) pixels of each class."""
        self._confidence = np.zeros(num_classes)
        self.png: bytes | None = None
        """The mask as it will be stored, in the place of `mask`."""

    def add(self, tile: Tile, mask: np.ndarray, class_pixels: np.ndarray, class_confidence: np.ndarray) -> None:
        """Take in what was predicted of one tile."""
        paste(self.mask, tile, mask)
        self.class_pixels += class_pixels
        self._confidence += class_confidence

    def pack(self) -> None:
        """Encode the mask: that of a large image must not stay until its chunk is done."""
        self.png, self.mask = encode_mask(self.mask), np.zeros((0, 0), np.uint8)

    @property
    def mean_confidence(self) -> float:
        """Mean softmax probability of the class that each pixel was given."""
        return float(self._confidence.sum() / self.class_pixels.sum())

    @property
    def min_class_confidence(self) -> float:
        """The same mean by class, of the least certain class in the mask."""
        present = self.class_pixels > 0
        return float((self._confidence[present] / self.class_pixels[present]).min())


class _CrashError(Exception):
    """An image that killed the process which predicted it."""


class Predictor:
    """Stage with state, one in each actor.

    Reads: pixels, encoded, height, width, status. Adds: mask (raw ids) or mask_png, class_pixels, confidences. Drops:
    pixels, encoded.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: PredictConfig,
        precision: Precision = "float32",
        sharers: int = 1,
        run_uri: str = "",
    ) -> None:
        """Build the network, from weights that are still those that were loaded; the first image finds it warm.

        Without a number of threads in `config` it takes its share of the cores, which `sharers` actors have. In the
        folder `run_uri` it leaves marks when a chunk has taken an actor down.
        """
        self._config, self._run_uri = config, run_uri
        self._refused: FcnRayError | None = None
        try:
            self._network = compile_network(bundle, config.threads or share_cores(sharers), precision)
            self._lanes = Lanes(self._network.lanes, config.batch_pixels)
        except FcnRayError as error:  # kept for the first chunk: Ray makes mere text of what a constructor raises
            self._refused = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """One chunk, in its order; an image that cannot be predicted becomes a row with status `predict` or `crash`."""
        if self._refused is not None:
            raise self._refused
        status, errors = table[STATUS].to_pylist(), table[ERROR].to_pylist()
        good = [i for i, s in enumerate(status) if s == OK]
        images = take_images(table, good)
        if task.attempt() == 0:
            outcomes = self._predict_all(images)
        else:
            outcomes = self._predict_one_by_one(images, good, table[CHUNK_ID][0].as_py())
        found: list[Prediction | None] = [None] * len(table)
        for row, outcome in zip(good, outcomes, strict=True):
            if isinstance(outcome, Prediction):
                found[row] = outcome
            elif isinstance(outcome, _CrashError):
                status[row], errors[row] = "crash", str(outcome)
            else:
                status[row], errors[row] = "predict", describe(outcome)
        added = {STATUS: status, ERROR: errors} | prediction_columns(found)
        return replace_columns(table, added, drop=[PIXELS, ENCODED])

    def _predict_all(self, images: list[np.ndarray | bytes]) -> list[Prediction | Exception]:
        """Those that are decoded together, the others one after the other."""
        outcomes = iter(self.predict([image for image in images if not isinstance(image, bytes)]))
        return [self._predict_encoded(image) if isinstance(image, bytes) else next(outcomes) for image in images]

    def _predict_encoded(self, data: bytes) -> Prediction | Exception:
        """An image that was decoded before, and had no room in its chunk."""
        try:
            image = decode_image(data, sys.maxsize).pixels
        except Exception as error:  # the row border: for want of memory, since it could be decoded
            return error
        (outcome,) = self.predict([image])
        if isinstance(outcome, Prediction):
            outcome.pack()
        return outcome

    def _predict_one_by_one(
        self, images: list[np.ndarray | bytes], rows: list[int], chunk_id: str
    ) -> list[Prediction | Exception]:
        """The same for a chunk that took an actor down, with a mark before each image; killers are left out."""
        place = task.here()
        attempts = Attempts(self._run_uri, chunk_id, place.job, place.node, place.alive)
        logger.warning("chunk %s, or one beside it, took its actor down: its images are predicted one by one", chunk_id)
        outcomes: list[Prediction | Exception] = []
        for row, image in zip(rows, images, strict=True):
            if row in attempts.crashed:
                outcomes.append(_CrashError("the process that predicted it, and nothing else, died"))
                continue
            attempts.begin(row)
            outcomes += self._predict_all([image])
        attempts.end()
        return outcomes

    def predict(self, images: list[np.ndarray]) -> list[Prediction | Exception]:
        """What each image (H, W, 3) uint8 RGB is given, or what went wrong with it."""
        if self._refused is not None:
            raise self._refused
        found: list[Prediction | Exception] = []
        windows: list[Window] = []
        for index, image in enumerate(images):
            try:
                windows += [Window(index, image, tile) for tile in self._plan(*image.shape[:2])]
                height, width = image.shape[:2]
                found.append(Prediction(height, width, self._network.num_classes))
            except Exception as error:  # the row border: too large for tiles, or for memory
                found.append(error)
        groups = group_by_size([window.tile.size for window in windows], self._lanes.pass_pixels)
        passes = [[windows[place] for place in group] for group in groups]
        outcomes = self._lanes.map(self._try_pass, passes, [count_pixels(together) for together in passes])
        failed: list[tuple[list[Window], Exception]] = []
        for together, outcome in zip(passes, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failed.append((together, outcome))
            else:
                self._take(together, outcome, found)
        for together, outcome in failed:  # when nothing goes on beside them: memory may be what was missing
            self._try_again(together, outcome, found, was_alone=len(passes) == 1)
        return found

    def _plan(self, height: int, width: int) -> list[Tile]:
        """The image as a whole, or the tiles of one that is too large for that."""
        whole = whole_image(height, width, self._network.grid)
        if whole.size[0] * whole.size[1] <= self._config.tile_pixels:
            return [whole]
        if self._network.halo is None:
            raise ValueError(
                f"an image of {width}x{height} pixels is larger than predict.tile_pixels {self._config.tile_pixels}, "
                f"and this network has no tiles: {self._network.untileable}"
            )
        return plan_tiles(height, width, self._network.halo, self._config.tile_pixels)

    def _take(self, together: list[Window], parts: list[Part], found: list[Prediction | Exception]) -> None:
        """Take in what windows of one size were given."""
        for window, part in zip(together, parts, strict=True):
            prediction = found[window.number]
            if isinstance(prediction, Prediction):  # else another tile of the image has failed
                prediction.add(window.tile, *part)

    def _try_again(
        self, together: list[Window], error: Exception, found: list[Prediction | Exception], was_alone: bool
    ) -> None:
        """Each half of windows that failed together has a try, and a single one that failed beside others."""
        middle = len(together) // 2
        if middle:
            logger.warning("a batch of %d images failed (%s); trying its halves", len(together), describe(error))
        elif was_alone:
            try_out(self._network.predict)  # when nothing works any more it is the device, and no image's fault
            found[together[0].number] = error
            return
        for half in (together[:middle], together[middle:]):
            if not half:
                continue
            outcome = self._try_pass(half)
            if isinstance(outcome, Exception):
                self._try_again(half, outcome, found, was_alone=True)
            else:
                self._take(half, outcome, found)

    def _try_pass(self, together: list[Window]) -> list[Part] | Exception:
        """What was predicted, or what went wrong: the row border, for what the network raises belongs to its images."""
        try:
            return self._predict_pass(together)
        except Exception as error:
            return error.with_traceback(None)  # its frames hold the batch, and memory may be what is missing

    def _predict_pass(self, together: list[Window]) -> list[Part]:
        """(mask of the window, class pixels and confidence of the core) of each window."""
        cuts = [window.tile.cut(window.image) for window in together]
        sizes = np.array([cut.shape[:2] for cut in cuts], np.int32)
        cores = np.array([window.tile.core_in_window() for window in together], np.int32)
        outcome = self._network.predict(pad_batch(cuts, *together[0].tile.size), sizes, cores)
        masks, pixels, confidence = (np.asarray(part) for part in outcome)
        return list(zip(masks, pixels, confidence, strict=True))


def count_pixels(together: list[Window]) -> int:
    """Padded pixels of windows of one size."""
    height, width = together[0].tile.size
    return len(together) * height * width


def describe(error: Exception) -> str:
    """Kind and words of what went wrong, in a line. TensorFlow's own words come behind where the graph was made."""
    text = str(error)
    if "(most recent call last):" in text:
        first = re.search(r"^ *\(0\) (.*)", text, re.MULTILINE)  # of several at once
        text = first[1] if first else text.rpartition("\n\n")[2]
    return trim_error(f"{type(error).__name__}: {text}")


def take_images(table: pa.Table, rows: list[int]) -> list[np.ndarray | bytes]:
    """The good images of `rows`: pixels as `decode_pixels` has them, or the encoded image where there are none."""
    encoded = table[ENCODED].to_pylist()
    decoded = iter(decode_pixels(table, [row for row in rows if encoded[row] is None]))
    return [next(decoded) if encoded[row] is None else encoded[row] for row in rows]


def decode_pixels(table: pa.Table, rows: list[int]) -> list[np.ndarray]:
    """(H, W, 3) uint8 views of the pixels of `rows`; nothing is copied."""
    height, width = table[HEIGHT].to_pylist(), table[WIDTH].to_pylist()
    pixels = table[PIXELS].combine_chunks()
    return [np.frombuffer(pixels[i].as_buffer(), np.uint8).reshape(height[i], width[i], 3) for i in rows]


def prediction_columns(found: list[Prediction | None]) -> dict[str, pa.Array]:
    """Columns mask (raw ids, row-major) or mask_png, class_pixels, confidences; null where there is no prediction."""
    return {
        MASK: pa.array([p.mask.tobytes() if p and p.png is None else None for p in found], pa.large_binary()),
        MASK_PNG: pa.array([p and p.png for p in found], pa.large_binary()),
        CLASS_PIXELS: pa.array([p and p.class_pixels for p in found], pa.list_(pa.int64())),
        MEAN_CONFIDENCE: pa.array([p and p.mean_confidence for p in found], pa.float32()),
        MIN_CLASS_CONFIDENCE: pa.array([p and p.min_class_confidence for p in found], pa.float32()),
    }
