from __future__ import annotations

from fcn_ray.config import ModelSpec, Preprocessing
from fcn_ray.labels import LabelSet
from fcn_ray.models.card import write_card


def card(metrics: dict[str, object], **metadata: object) -> str:
    labels = LabelSet.from_names(["sky", "road | path"])
    spec = ModelSpec(variant="16s", num_classes=2)
    return write_card(spec, labels, Preprocessing(), {"metrics": metrics} | metadata, {"keras": "3.15.1"}, "ab" * 32)


def test_card_tells_classes_metrics_and_origin() -> None:
    text = card({"epoch": 3, "val": {"mean_iou": 0.61239, "class_iou": [0.75, None]}})
    assert "# FCN-16s on vgg16, 2 classes" in text
    assert "| 0 | sky | 0.75 |\n| 1 | road \\| path | - |" in text
    assert "| epoch | 3 |\n| mean_iou | 0.6124 |" in text
    assert "255 means no class" in text
    assert "keras 3.15.1" in text
    assert "ab" * 32 in text


def test_card_without_metrics() -> None:
    text = card({})
    assert "| none | - |" in text
    assert "| 0 | sky | - |" in text
    assert "Nothing is known about it." in text


def test_card_tells_what_it_was_trained_on_and_how() -> None:
    origin = {"data": {"uri": "a|b.parquet", "digest": "cd" * 32}, "epoch": 7, "command": "fcn-ray train `x`"}
    text = card({}, **origin, trained_with={"tensorflow": "2.21.0"})
    assert f"- Data a\\|b.parquet, digest {'cd' * 32}" in text
    assert "- Best epoch 7;" in text
    assert "- Command `fcn-ray train  x `" in text
    assert "- Trained with tensorflow 2.21.0" in text
