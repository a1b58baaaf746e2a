"""What a training shows of itself: the report, and the trackers that it feeds."""

from __future__ import annotations

from typing import Any

from fcn_ray import storage
from fcn_ray.models.metrics import scores
from fcn_ray.reports.page import Picture
from fcn_ray.reports.tracking import Tracker
from fcn_ray.reports.tracking_mlflow import MLflow
from fcn_ray.reports.tracking_tensorboard import TensorBoard
from fcn_ray.reports.training_page import write_training_page
from fcn_ray.training.curve import read_curve
from fcn_ray.training.preflight import Job
from fcn_ray.training.promotion import Example, Promotion

PAGE = "report.html"


def trackers(job: Job) -> list[Tracker]:
    """Those that `track` asks for. Raises ConfigError when a package is missing."""
    track, out = job.config.track, job.config.out
    found: list[Tracker] = []
    if track.tensorboard:
        found.append(TensorBoard(storage.join(out, "tensorboard")))
    if track.mlflow:
        found.append(MLflow(track.mlflow, track.mlflow_experiment, None, out))
    return found


def write_report(job: Job, promotion: Promotion) -> str:
    """Write `<out>/report.html`; its path."""
    path = storage.join(job.config.out, PAGE)
    rescored, config = promotion.rescored, job.config
    facts = [
        ("network", f"FCN-{job.spec.variant} on {job.spec.backbone}"),
        ("training images", f"{sum(piece.n_rows for piece in job.train_pieces):,} from {config.data}"),
        ("batch size", f"{config.batch_size}, {config.workers.count} workers, {config.precision}"),
        ("bundle", f"{promotion.bundle.folder} (digest {promotion.bundle.digest[:12]})"),
        ("best", f"epoch {promotion.checkpoint.epoch}, step {promotion.checkpoint.step}"),
        ("command", promotion.bundle.metadata["command"]),
    ]
    if rescored:
        result = scores(rescored.confusion)
        facts.insert(0, ("mean IoU", f"{100 * result.mean_iou:.1f} % of the validation set, in a fresh process"))
        facts.insert(1, ("pixel accuracy", f"{100 * result.pixel_accuracy:.1f} %"))
    write_training_page(
        path,
        f"fcn_ray training: {config.out.rstrip('/').rpartition('/')[2]}",
        facts,
        [_as_rescored(record, promotion) for record in read_curve(config.out)],
        job.labels,
        best=[_picture(example) for example in rescored.best] if rescored else (),
        worst=[_picture(example) for example in rescored.worst] if rescored else (),
    )
    return path


def _as_rescored(record: dict[str, Any], promotion: Promotion) -> dict[str, Any]:
    """The record of the best epoch with what a fresh process measured, and its confusion matrix."""
    if promotion.rescored is None or record["epoch"] != promotion.checkpoint.epoch:
        return record
    confusion = promotion.rescored.confusion
    return record | {"val": scores(confusion).to_dict() | {"confusion": confusion.tolist()}}


def _picture(example: Example) -> Picture:
    sample = example.sample
    caption = f"{sample.key}: mean IoU {100 * example.mean_iou:.1f} %"
    return Picture(caption, sample.image, sample.label, sample.mask)
