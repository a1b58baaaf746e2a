"""Labelling a collection."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fcn_ray.config.network import Precision
from fcn_ray.config.section import Positive, Section


class ChunkConfig(Section):
    """How the input is cut into chunks, the unit of work and of commit."""

    rows: Positive = 64
    """Most images in one chunk."""
    bytes: Positive = 64_000_000
    """Most encoded bytes in one chunk, of tables about, so that huge images do not gather in one; a larger image is
    alone. What paths in a table name is not counted, nor what images take when they are decoded."""


class PredictConfig(Section):
    """The actors that apply the network."""

    actors: int = Field(default=0, ge=0)
    """How many, no more than there are chunks; 0 takes as many as the cluster's GPUs hold when `gpus` asks for some,
    else one for each node."""
    gpus: float = Field(default=0, ge=0)
    """GPUs for each actor; may be a fraction."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that each actor reserves from Ray."""
    memory: int = Field(default=0, ge=0)
    """Bytes of memory that each actor reserves from Ray; 0 takes what the network, its weights and a batch may need."""
    threads: int = Field(default=0, ge=0)
    """TensorFlow threads of each actor; 0 takes all cores of its node, or its share when it has several actors. On CPUs
    it makes as many passes at once, as far as `batch_pixels` has room for them, of 800,000 pixels or one image each."""
    batch_pixels: Positive = 1_600_000
    """Padded pixels in one forward pass, on CPUs in all those that an actor makes at once; at least one image or tile
    goes through whatever its size."""
    tile_pixels: int = Field(default=2_097_152, ge=524_288)
    """Padded pixels of the largest image that is predicted whole; larger ones go in tiles of at most so many, which
    give the same mask up to rounding. It bounds the memory of an actor; raise it on GPUs that have more. Another value
    is another run: networks without tiles refuse larger images."""
    precision: Literal["auto"] | Precision = "auto"
    """Of the network up to its scores. "auto" takes what the bundle was validated in: bfloat16 when its training had it
    and float32 would have been better by less than 0.1 of mean IoU, in percent. bfloat16 is another run."""
    max_restarts: int = Field(default=20, ge=0)
    """Times that a dead actor is started again before the job gives up; an image that kills its process takes two."""


class SegmentConfig(Section):
    """`fcn-ray segment`."""

    input: str
    """A Parquet file, a tar of images, an image, or a folder that is searched for all of them, below it too; a pattern
    of such files, as photos/**/*.jpg (* and ? within a name, ** for folders); or @FILE, a text file that names one on
    each line. Paths of rows are relative to the folder, to the pattern's folder, or as the list has them."""
    output: str
    """Folder for the masks; every model and setting gets its own `run=<fingerprint>` folder in it."""
    model: str
    """Bundle folder, as `fcn-ray train` leaves it."""
    image_column: str | None = None
    """Parquet column with image bytes, HF image structs or paths; by default "image", else the only one that fits."""
    id_column: str | None = None
    """Parquet column that names each image; by default the file and row do."""
    carry: Literal["plain", "none"] | tuple[str, ...] = "plain"
    """Input columns copied into the result rows: all but binary ones ("plain"), none, or those named. Images of a tar
    have one, `key`, which is WebDataset's; beside columns of paths there is `image_version`, of the file that was
    read."""
    allow_paths: tuple[str, ...] = ()
    """Prefixes beside the input's folder or bucket that a table's paths and links may lead to; others: another run."""
    max_pixels: Positive = 100_000_000
    """Larger images become `too_big` from their header, before they are decoded."""
    chunk: ChunkConfig = ChunkConfig()
    predict: PredictConfig = PredictConfig()
    decode_cpus: float = Field(default=0.5, gt=0)
    """CPUs that each decoding task reserves from Ray."""
    decode_seconds: float = Field(default=20, gt=0)
    """Seconds that one image may be decoded; then its process is ended, and at the second time it becomes `timeout`."""
    decode_memory: int = Field(default=4_000_000_000, ge=500_000_000)
    """Bytes that decoding one image may add to its process; what needs more is `too_big` or `crash`."""
    max_bad_fraction: float = Field(default=1.0, ge=0, le=1)
    """More bad images of the run than this end a job with code 3, early when they can no longer be made up for."""
    max_bad_consecutive: int = Field(default=0, ge=0)
    """So many bad images in a row, as chunks complete, end a job early with code 3; 0 is no limit."""
    since: Annotated[str, BeforeValidator(lambda v: v.isoformat() if isinstance(v, date) else v)] | None = None
    """Plan new inputs only that were modified then or later: an ISO 8601 date or time, or 7d or 12h ago."""
    retry_failed: Literal["none", "passing", "all"] = "none"
    """Bad images to try again: none, those whose error may pass (unreadable, changed, crash, timeout, predict), all."""
    if_running: Literal["join", "fail"] = "join"
    """When another job works on the run: warn and work beside it, which does no harm, or end with code 5."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else Ray is started on this machine."""
