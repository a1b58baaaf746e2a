"""Training, and the check of a data set before it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fcn_ray.config.network import ModelConfig, Precision
from fcn_ray.config.section import Positive, Section

Channel = Annotated[int, Field(ge=0, le=255)]


class AugmentConfig(Section):
    """Random changes to each training image, seeded by (seed, epoch, image)."""

    crop: tuple[Positive, Positive] = (256, 320)
    """Height and width in pixels of every training crop; smaller images are padded, see `fill`, with void labels."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest factor on the image's size before the crop."""
    flip: bool = True
    """Mirror left and right for half of the images."""
    colour: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation."""
    fill: Literal["mean"] | tuple[Channel, Channel, Channel] = "mean"
    """Colour (RGB) of the padding. The mean of the network's preprocessing is what a prediction pads with."""

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
    precision: Precision = "float32"
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
