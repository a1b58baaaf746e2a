"""Every knob once: its default, its unit, its check.

A job is one frozen pydantic model, read as: defaults < YAML file < `--set a.b=1` and named flags (config_text.py). An
unknown key is an error that names the nearest valid one. Below this file functions take plain values, so that rooms
stay reusable.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STRIDE = 32
"""Pixels: the coarsest stride of an FCN backbone, and the grid that images are padded to (paper, section 4.1)."""

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


# ----------------------------------------------------------------------------------------------------- the network


Backbone = Literal["vgg16", "alexnet", "alexnet_torchvision", "resnet50", "mobilenetv3_large", "mobilenetv3_small"]

FC6_SIZE = {"vgg16": 7, "alexnet": 6, "alexnet_torchvision": 6}
"""Cells of the last features that the classifier's first dense layer spans, on a side: 7x7x512 for VGG16, 6x6x256 for
AlexNet. It becomes fc6 (paper, section 3.1)."""

PAPER_BACKBONES = tuple(FC6_SIZE)
"""Backbones whose classifier has dense layers: fc6 and fc7 are those, and the paper's geometry is defined for them."""


VARIANTS = ("32s", "16s", "8s")
"""Coarse to fine."""


class Architecture(Section):
    """Which FCN: all that shapes the network but the number of classes."""

    backbone: Backbone = "vgg16"
    """Classifier that is turned into a dense predictor. "alexnet" is the network of the paper (groups, local response
    normalisation), "alexnet_torchvision" the single tower that torchvision has weights for."""
    variant: Literal["32s", "16s", "8s"] = "8s"
    """Output stride: 32s has one score layer, 16s adds the skip at stride 16, 8s the one at stride 8 too."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Factor on the channels of every backbone layer; 1.0 is the published network."""
    fc_channels: Positive | None = None
    """Channels of fc6 and fc7; by default the classifier's 4096, and 512 for resnet50 and mobilenetv3."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Rate after fc6 and fc7, while training only."""
    fusion: Literal["sum", "concat"] = "sum"
    """How a skip joins the coarser scores: added (the paper), or side by side into a 1x1 convolution."""
    upsampling: Literal["bilinear", "deconv_fixed", "deconv_learned"] = "bilinear"
    """Bilinear resize, the paper's deconvolution with its bilinear kernel fixed, or learned from there."""
    geometry: Literal["same", "paper"] = "same"
    """"same" pads to a multiple of 32 and keeps sizes; "paper" pads by 100 and crops as the authors' release does."""
    output_stride: Literal[32, 16] = 32
    """Coarsest stride of the backbone; 16 dilates the last stage of resnet50 instead of striding."""

    @model_validator(mode="after")
    def _check_architecture(self) -> Architecture:
        if self.geometry == "paper" and self.backbone not in PAPER_BACKBONES:
            raise ValueError(f"geometry paper is for {', '.join(PAPER_BACKBONES)}, found {self.backbone}: use same")
        if self.backbone == "resnet50" and self.width != 1.0:
            raise ValueError(f"resnet50 has one width, found width {self.width:g}: leave it out")
        if self.output_stride == 16 and (self.backbone != "resnet50" or self.variant == "32s"):
            raise ValueError("output_stride 16 is for backbone resnet50 with variant 16s or 8s")
        return self

    @property
    def grid(self) -> int:
        """Pixels: images that pad to equal multiples of it may share a batch; 1 where only equal sizes may."""
        return STRIDE if self.geometry == "same" else 1


class ModelConfig(Architecture):
    """The network of a training job, and the weights it starts from."""

    weights: str | None = None
    """Classifier weights to start from: a .npz, .h5, .keras or .safetensors file with the layer names of
    keras-applications, torchvision or Caffe, "imagenet" (needs a network), or null for a random start."""
    start: str | None = None
    """Bundle to start from, instead of weights: of the same network, or of a coarser variant, which is grown."""
    scales: Literal["features", "paper"] = "features"
    """Factor on each level that is new before it is scored: one over the magnitude of pretrained features, or the
    release's at-once 1, 0.01 and 0.0001."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.weights and self.width != 1.0:
            raise ValueError(f"weights are for width 1.0, found width {self.width:g}: leave one of the two out")
        if self.weights and self.start:
            raise ValueError("weights and start are two ways to begin: leave one of them out")
        if self.scales == "paper" and not (self.weights or self.start):
            raise ValueError("scales paper is for pretrained features: give weights or start too, or leave it out")
        return self


class ModelSpec(Architecture):
    """All that is needed to build a network again; stored in a bundle (closed: no code, no class path)."""

    fc_channels: Positive = 4096
    """Channels of fc6 and fc7."""
    num_classes: int = Field(ge=2, le=255)

    @model_validator(mode="before")
    @classmethod
    def _default_fc_channels(cls, data: Any) -> Any:
        """The head is as wide as the classifier's own: 4096, or a quarter of ResNet50's channels."""
        if isinstance(data, dict) and data.get("backbone", "vgg16") not in PAPER_BACKBONES:
            return {"fc_channels": 512} | data
        return data

    @classmethod
    def from_config(cls, config: ModelConfig, num_classes: int) -> ModelSpec:
        """The network of a training job, once the number of classes is known."""
        shape = config.model_dump(exclude={"weights", "start", "scales"}, exclude_none=True)
        return cls(**shape, num_classes=num_classes)


class Preprocessing(Section):
    """How uint8 RGB becomes the network's float input: channel order, then (x - mean) / std. Goes with the weights."""

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """In the order of `channels`, in units of 0..255."""
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    """In the order of `channels`, in units of 0..255."""


CAFFE_PREPROCESSING = Preprocessing(channels="BGR", mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
"""What the ImageNet kernels of VGG16 and ResNet50 in keras-applications were trained with."""


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


class LossConfig(Section):
    """What a step descends: one number from the logits of all workers' valid pixels."""

    kind: Literal["cross_entropy", "focal", "dice"] = "cross_entropy"
    """Cross entropy of every pixel (the paper); focal (Lin et al. 2017), which gives easy pixels less weight; or soft
    dice (Milletari et al. 2016, with plain sums), one minus the mean overlap of the classes."""
    reduction: Literal["mean_valid", "sum"] = "mean_valid"
    """Mean over the valid pixels of the whole step, or the paper's sum over the map. Dice has neither."""
    class_weights: (
        Literal["none", "inverse", "median"] | tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    ) = "none"
    """Factor on the pixels of each class: none, given by class id, one over the class's share of the training labels
    (inverse), or median frequency balancing (Eigen and Fergus 2015)."""
    gamma: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """Focusing exponent of the focal loss; 0 makes it cross entropy."""

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.kind == "dice" and self.reduction == "sum":
            raise ValueError("dice is a ratio and has no sum over the map: leave reduction out")
        return self


class OptimizerConfig(Section):
    """SGD with momentum; the rate falls as (1 - step/steps)^power after a linear warm-up."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest rate, for a loss that is the mean over valid pixels."""
    backbone_rate: float = Field(default=0.1, ge=0)
    """Factor on the rate of layers that start from weights: their features need a nudge, the new layers a push."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the last step that goes into the next."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Decoupled decay of kernels, times the rate; biases do not decay."""
    power: float = Field(default=0.9, ge=0)
    """Exponent of the schedule; 1 falls in a straight line, 0 stays as it is."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which the rate rises from almost 0."""


class WorkersConfig(Section):
    """The Ray Train workers, each one replica of MultiWorkerMirroredStrategy."""

    count: Positive = 1
    """How many; with `min_count` the most."""
    min_count: Positive | None = None
    """Fewest to go on with when nodes are lost; more join again as nodes come back. By default all of `count`."""
    gpus: float = Field(default=0, ge=0, le=1)
    """GPUs for each worker, which is one replica on one device: 0 or 1, or a share of one."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that each worker reserves from Ray."""
    threads: int = Field(default=0, ge=0)
    """TensorFlow threads of each worker; 0 shares the cores of a node evenly."""
    max_failures: int = Field(default=3, ge=0)
    """Times in a row that the group is started again from the last checkpoint after a worker died, without a new
    checkpoint in between."""
    wait_seconds: float = Field(default=0, ge=0)
    """Longest wait for a cluster that has room for the workers, at the start and after a loss; 0 refuses at once."""

    @model_validator(mode="after")
    def _check(self) -> WorkersConfig:
        if self.min_count and self.min_count > self.count:
            raise ValueError(f"min_count {self.min_count} must not be above count {self.count}")
        return self


class DivergenceConfig(Section):
    """What happens when a loss or a gradient is not finite."""

    skip: int = Field(default=3, ge=0)
    """Steps in a row that are left out, their gradients dropped, before the run goes back to its last checkpoint."""
    rollbacks: int = Field(default=2, ge=0)
    """Times that it goes back and on with half the learning rate, before it ends with code 7."""


class TrackConfig(Section):
    """Where the curves go, beside `metrics.jsonl` and `report.html` in the training folder."""

    tensorboard: bool = False
    """Write TensorBoard events below `<out>/tensorboard` (pip install "fcn_ray[tensorboard]")."""
    mlflow: str | None = None
    """MLflow tracking URI (pip install "fcn_ray[mlflow]")."""
    mlflow_experiment: str = "fcn_ray"
    """Name of the MLflow experiment."""


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
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    workers: WorkersConfig = WorkersConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    track: TrackConfig = TrackConfig()
    epochs: Positive = 30
    """Passes over the training set."""
    val_every: Positive = 1
    """Epochs between two validations; the last epoch is always validated."""
    batch_size: Positive = 8
    """Images in one step, over all workers together; it stays when the number of workers changes."""
    accumulate: Positive = 1
    """Parts that each worker's images of a step go through the network in, one after the other: less memory, the same
    step but for dropout and batch normalisation, which see one part at a time. Not for dice."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers; weights, logits and the loss stay float32."""
    seed: int = Field(default=1337, ge=0)
    """Of the initial weights, the order of the images, the augmentation and dropout."""
    deterministic: bool = False
    """Only operations that give the same bits every time; slower on GPUs."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`."""
    checkpoint_steps: int = Field(default=500, ge=0)
    """Steps between two checkpoints within an epoch, beside the one at its end; 0 writes only that."""
    keep_checkpoints: Positive = 3
    """Newest checkpoints that stay, beside the best one."""
    log_steps: Positive = 20
    """Steps between two lines of progress."""
    stop_seconds: float = Field(default=120, ge=0)
    """Longest wait for a checkpoint when the job is interrupted (SIGINT, SIGTERM)."""
    max_pixels: Positive = 64_000_000
    """Larger images are refused from their header."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else Ray is started on this machine."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        least = self.workers.count * self.accumulate
        if self.batch_size < least:
            raise ValueError(
                f"batch_size {self.batch_size} must be at least {least} (workers.count x accumulate): "
                "every worker takes a share of every step"
            )
        if self.loss.kind == "dice" and self.accumulate > 1:
            raise ValueError("dice is a ratio over the whole step, which parts do not add up to: accumulate must be 1")
        return self


class CheckConfig(Section):
    """`fcn-ray check`."""

    data: str
    """Training set: a Parquet file, or a folder of them, with an image and a mask column."""
    val: str | None = None
    """Validation set, in the same form."""
    image_column: str = "image"
    """Column with encoded images: bytes or HF image structs."""
    mask_column: str = "mask"
    """Column with single-channel PNGs of class ids."""
    classes: tuple[str, ...] | None = None
    """Class names by id; by default from the Parquet metadata. Without either, ids are only counted."""
    max_pixels: Positive = 64_000_000
    """Larger images are refused from their header, as training does."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else Ray is started on this machine."""


# ------------------------------------------------------------------------------------------------------- labelling


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
    """How many; 0 takes as many as the cluster's GPUs hold when `gpus` asks for some, else one for each node."""
    gpus: float = Field(default=0, ge=0)
    """GPUs for each actor; may be a fraction."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that each actor reserves from Ray."""
    threads: int = Field(default=0, ge=0)
    """TensorFlow threads of each actor; 0 takes all cores of its node."""
    batch_pixels: Positive = 1_600_000
    """Padded pixels in one forward pass; at least one image or tile goes through whatever its size."""
    tile_pixels: int = Field(default=2_097_152, ge=524_288)
    """Padded pixels of the largest image that is predicted whole; larger ones go in tiles of at most so many, which
    give the same mask up to rounding. It bounds the memory of an actor; raise it on GPUs that have more. Another value
    is another run: networks without tiles refuse larger images."""
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
    """A finished job with more bad images than this ends with code 3."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else Ray is started on this machine."""
