"""The model card: what a network is and how good it is, as Markdown for people (imports no Keras)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fcn_ray.config import ModelSpec, Preprocessing
from fcn_ray.errors import printable
from fcn_ray.labels import LabelSet

TEMPLATE = """---
library_name: fcn_ray
pipeline_tag: image-segmentation
tags: [semantic-segmentation, fcn, keras]
---

# FCN-{spec.variant} on {spec.backbone}, {spec.num_classes} classes

A fully convolutional network (Long, Shelhamer and Darrell 2015) for semantic segmentation: RGB images of any size in,
class maps of the same size out. To label a folder of images with it:

    fcn-ray segment IMAGES MASKS --model THIS_FOLDER

## Classes

Ids in the masks; {labels.ignore_id} means no class (void).

| id | class | IoU |
| --- | --- | --- |
{classes}

## Metrics

| metric | value |
| --- | --- |
{metrics}

## Network

- Backbone {spec.backbone}, width {spec.width:g}, {spec.fc_channels} channels in fc6 and fc7
- Input: {preprocessing.channels}, mean {preprocessing.mean}, std {preprocessing.std}
- Digest {digest}
- Written by {versions}

## Training

{training}
"""


def write_card(
    spec: ModelSpec,
    labels: LabelSet,
    preprocessing: Preprocessing,
    metadata: Mapping[str, Any],
    versions: Mapping[str, str],
    digest: str,
) -> str:
    """Markdown of a model card.

    Of `metadata`, what training tells: "metrics" are numbers by name, "class_iou" by class id, and groups of such
    metrics; "data", "epoch", "command" and "trained_with" say where the weights come from.
    """
    metrics = metadata.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    values = dict(metrics)
    for group in metrics.values():
        values |= group if isinstance(group, dict) else {}
    iou = values.get("class_iou") or [None] * len(labels)
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return TEMPLATE.format(
        spec=spec,
        labels=labels,
        preprocessing=preprocessing,
        classes=_table(
            (index, name, value) for index, (name, value) in enumerate(zip(labels.names, iou, strict=False))
        ),
        metrics=_table(numbers.items() or [("none", None)]),
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        digest=digest,
        training="\n".join(_training(metadata)) or "Nothing is known about it.",
    )


def _training(metadata: Mapping[str, Any]) -> Iterable[str]:
    data = metadata.get("data")
    if isinstance(data, Mapping):
        yield f"- Data {_cell(data.get('uri'))}, digest {_cell(data.get('digest'))}"
    if "epoch" in metadata:
        yield f"- Best epoch {_cell(metadata['epoch'])}; metrics are those of its weights, loaded by a fresh process"
    if "command" in metadata:
        yield f"- Command `{_cell(metadata['command']).replace('`', ' ')}`"
    if isinstance(metadata.get("trained_with"), Mapping):
        yield "- Trained with " + ", ".join(
            f"{name} {_cell(number)}" for name, number in metadata["trained_with"].items()
        )


def _table(rows: Iterable[tuple[Any, ...]]) -> str:
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    return printable(" ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")
