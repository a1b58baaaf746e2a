"""Every knob once: its default, its unit, its check.

A job is one frozen pydantic model, read as: defaults < YAML file < `--set a.b=1` and named flags. An unknown key is an
error that names the nearest valid one. Below this file functions take plain values, so that rooms stay reusable.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fcn_ray.errors import ConfigError

STRIDE = 32
"""Pixels: the coarsest stride of an FCN backbone, and the grid that images are padded to (paper, section 4.1)."""

MAX_CONFIG_BYTES = 1_000_000
"""Larger config files are refused before they are parsed."""

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


# ----------------------------------------------------------------------------------------------------- the network


class Architecture(Section):
    """Which FCN: all that shapes the network but the number of classes."""

    backbone: Literal["vgg16"] = "vgg16"
    """Classifier that is turned into a dense predictor."""
    variant: Literal["32s", "16s", "8s"] = "8s"
    """Output stride: 32s has one score layer, 16s adds the pool4 skip, 8s the pool3 skip too."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Factor on the channels of every backbone layer; 1.0 is VGG16."""
    fc_channels: Positive = 4096
    """Channels of fc6 and fc7."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Rate after fc6 and fc7, while training only."""


class ModelConfig(Architecture):
    """The network of a training job, and the weights it starts from."""

    weights: str | None = None
    """Backbone weights: a .npz or .h5 file with keras-applications layer names, "imagenet" (needs a network), or null
    for a random start."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.weights and self.width != 1.0:
            raise ValueError(f"weights are for width 1.0, found width {self.width:g}: leave one of the two out")
        return self


class ModelSpec(Architecture):
    """All that is needed to build a network again; stored in a bundle (closed: no code, no class path)."""

    num_classes: int = Field(ge=2, le=255)

    @classmethod
    def from_config(cls, config: ModelConfig, num_classes: int) -> ModelSpec:
        """The network of a training job, once the number of classes is known."""
        return cls(**config.model_dump(exclude={"weights"}), num_classes=num_classes)


class Preprocessing(Section):
    """How uint8 RGB becomes the network's float input: channel order, then (x - mean) / std. Goes with the weights."""

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """In the order of `channels`, in units of 0..255."""
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    """In the order of `channels`, in units of 0..255."""


CAFFE_PREPROCESSING = Preprocessing(channels="BGR", mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
"""What the ImageNet VGG16 kernels of keras-applications were trained with (fcn.md 2.5)."""


# -------------------------------------------------------------------------------------------------------- training


class AugmentConfig(Section):
    """Random changes to each training image, seeded by (seed, epoch, image)."""

    crop: tuple[Positive, Positive] = (256, 320)
    """Height and width in pixels of every training crop; smaller images are padded with void."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest factor on the image's size before the crop."""
    flip: bool = True
    """Mirror left and right for half of the images."""
    colour: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be [smallest, largest] above 0, found {list(self.scale)}")
        return self


class OptimizerConfig(Section):
    """SGD with momentum; the rate falls as (1 - step/steps)^power after a linear warm-up."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest rate, for a loss that is the mean over valid pixels."""
    backbone_rate: float = Field(default=0.1, ge=0)
    """Factor on the rate of a backbone that starts from weights: its features need a nudge, the new layers a push."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the last step that goes into the next."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Decoupled decay of kernels, times the rate; biases do not decay."""
    power: float = Field(default=0.9, gt=0)
    """Exponent of the schedule; 1 falls in a straight line."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which the rate rises from almost 0."""


class WorkersConfig(Section):
    """The Ray Train workers, each one replica of MultiWorkerMirroredStrategy."""

    count: Positive = 1
    """How many."""
    gpus: float = Field(default=0, ge=0, le=1)
    """GPUs for each worker, which is one replica on one device: 0 or 1, or a share of one."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that each worker reserves from Ray."""
    threads: int = Field(default=0, ge=0)
    """TensorFlow threads of each worker; 0 shares the cores of a node evenly."""
    max_failures: int = Field(default=3, ge=0)
    """Times that the group is started again from the last checkpoint after a worker died."""


class TrainConfig(Section):
    """`fcn-ray train`."""

    data: str
    """Training set: a Parquet file, or a folder of them, with an image and a mask column."""
    val: str | None = None
    """Validation set, in the same form; without one the last epoch is the best."""
    out: str
    """Folder for checkpoints, metrics and the bundle; workers on other machines must see it too."""
    image_column: str = "image"
    """Column with encoded images: bytes or HF image structs."""
    mask_column: str = "mask"
    """Column with single-channel PNGs of class ids, as large as the images; 255 = ignore."""
    classes: tuple[str, ...] | None = None
    """Class names by id; by default from the Parquet metadata."""
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    workers: WorkersConfig = WorkersConfig()
    epochs: Positive = 30
    """Passes over the training set."""
    val_every: Positive = 1
    """Epochs between two validations; the last epoch is always validated."""
    batch_size: Positive = 8
    """Images in one step, over all workers together."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers; weights, logits and the loss stay float32."""
    seed: int = Field(default=1337, ge=0)
    """Of the initial weights, the order of the images, the augmentation and dropout."""
    deterministic: bool = False
    """Only operations that give the same bits every time; slower on GPUs."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`."""
    keep_checkpoints: Positive = 3
    """Newest checkpoints that stay, beside the best one."""
    max_pixels: Positive = 64_000_000
    """Larger images are refused from their header."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else Ray is started on this machine."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_size % self.workers.count:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of workers.count {self.workers.count}: "
                "every worker takes the same share of a step"
            )
        return self


# ------------------------------------------------------------------------------------------------------- labelling


class ChunkConfig(Section):
    """How the input is cut into chunks, the unit of work and of commit."""

    rows: Positive = 64
    """Most images in one chunk."""
    bytes: Positive = 64_000_000
    """Most encoded bytes in one chunk of image files, so that huge images do not gather in one."""


class PredictConfig(Section):
    """The actors that apply the network."""

    actors: int = Field(default=0, ge=0)
    """How many; 0 takes as many as the cluster's GPUs hold when `gpus` asks for some, else one for each node."""
    gpus: float = Field(default=0, ge=0)
    """GPUs for each actor; may be a fraction."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that each actor reserves from Ray."""
    threads: int = Field(default=0, ge=0)
    """TensorFlow threads of each actor; 0 takes all cores of its node."""
    batch_pixels: Positive = 1_600_000
    """Padded pixels in one forward pass; at least one image goes through whatever its size."""
    max_restarts: int = Field(default=2, ge=0)
    """Times that a dead actor is started again before the job gives up."""


class SegmentConfig(Section):
    """`fcn-ray segment`."""

    input: str
    """A Parquet file, an image file, or a folder that is searched for both, below it too."""
    output: str
    """Folder for the masks; every model and setting gets its own `run=<fingerprint>` folder in it."""
    model: str
    """Bundle folder, as `fcn-ray train` leaves it."""
    image_column: str | None = None
    """Parquet column with image bytes, HF image structs or paths; by default "image", else the only one that fits."""
    id_column: str | None = None
    """Parquet column that names each image; by default the file and row do."""
    carry: Literal["plain", "none"] | tuple[str, ...] = "plain"
    """Input columns copied into the result rows: all but binary ones ("plain"), none, or those named."""
    max_pixels: Positive = 64_000_000
    """Larger images become `too_big` from their header, before they are decoded."""
    chunk: ChunkConfig = ChunkConfig()
    predict: PredictConfig = PredictConfig()
    decode_cpus: float = Field(default=0.5, gt=0)
    """CPUs that each decoding task reserves from Ray."""
    max_bad_fraction: float = Field(default=1.0, ge=0, le=1)
    """A finished job with more bad images than this ends with code 3."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else Ray is started on this machine."""


# --------------------------------------------------------------------------------------------------------- reading

Config = TypeVar("Config", bound=Section)


def load_config(
    kind: type[Config],
    file: str | None = None,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """A checked config of type `kind`: its defaults, then `file` (YAML), then "a.b=1" `settings`, then set `flags`.

    Flags that are None are not set. Raises ConfigError with the key, the value found and the way out.
    """
    data = _read_yaml(file) if file else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: expected KEY=VALUE, for example --set epochs=10")
        _put(data, key.strip(), _parse_yaml(text, f"--set {key}"))
    for key, value in (flags or {}).items():
        if value is not None:
            _put(data, key, value)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        where = f" in {file}" if file else ""
        lines = [f"{_describe(kind, dict(problem))}" for problem in error.errors()]
        raise ConfigError(f"configuration{where}: " + "; ".join(lines)) from None


def dump_config(config: Section) -> str:
    """YAML text of a resolved config; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def describe_config(kind: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every knob of a job, in the order of this file."""
    rows: list[tuple[str, str, str]] = []
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Section):
            rows += describe_config(type(field.default), f"{prefix}{name}.")
        else:
            default = (
                "(required)" if field.is_required() else yaml.safe_dump(_plain(field.default), default_flow_style=True)
            )
            rows.append(
                (prefix + name, default.replace("...", "").strip(), " ".join((field.description or "").split()))
            )
    return rows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read_yaml(file: str) -> dict[str, Any]:
    path = Path(file)
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"config file {file} has {size} bytes, more than {MAX_CONFIG_BYTES}: is it the right file?"
            )
        data = _parse_yaml(path.read_text(encoding="utf-8"), f"config file {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"config file {file} must hold 'key: value' lines, found {type(data).__name__}")
    return data


def _parse_yaml(text: str, where: str) -> Any:
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{where}: YAML aliases (*name) are not accepted; write the value out")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    return value


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{key}: {parent} is a single value, it has no {last}")
    data[last] = value


def _describe(kind: type[Section], problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location) or "settings"
    if problem["type"] == "extra_forbidden":
        valid = _fields_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"{name}: unknown key, {hint}"
    if problem["type"] == "missing":
        return f"{name}: required, but not given"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {reason}" if not location else f"{name} = {problem['input']!r}: {reason}"


def _fields_at(kind: type[Section], location: list[str]) -> list[str]:
    for part in location:
        default = kind.model_fields[part].default
        if not isinstance(default, Section):
            return []
        kind = type(default)
    return list(kind.model_fields)
