"""What a training job refuses before the cluster is touched, and what it tells the workers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.config import ModelSpec, Preprocessing, TrainConfig
from fcn_ray.config_text import dump_config, load_config
from fcn_ray.errors import ConfigError, DataError, ForeignOutputError
from fcn_ray.images.codec import encode_image, encode_mask
from fcn_ray.labels import LabelSet
from fcn_ray.models.weight_files import LAYERS
from fcn_ray.training import samples
from fcn_ray.training.check import CheckReport, check_piece
from fcn_ray.training.checkpoints import Checkpoint, save_checkpoint
from fcn_ray.training.ingest import Columns, open_collection
from fcn_ray.training.preflight import prepare
from tests import pictures

TORCH = Preprocessing(channels="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    data = pictures.write_parquet(tmp_path / "train.parquet", 4)
    return {"data": str(data), "out": str(tmp_path / "out"), "batch_size": 4, "model.backbone": "alexnet_torchvision"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """torchvision's AlexNet without its dense layers, all zeros."""
    arrays, inputs = {}, 3
    for layer, channels in LAYERS["alexnet_torchvision"].items():
        arrays[f"{layer}/kernel"] = np.zeros((3, 3, inputs, channels), np.float16)
        arrays[f"{layer}/bias"] = np.zeros(channels, np.float16)
        inputs = channels
    np.savez_compressed(tmp_path / "w.npz", **arrays)
    return tmp_path / "w.npz"


def _config(flags: dict[str, Any], **more: Any) -> TrainConfig:
    return load_config(TrainConfig, flags=flags | {f"model.{key}": value for key, value in more.items()})


def test_given_classes_are_those_of_the_validation_set_too(flags: dict[str, Any]) -> None:
    names = ("heaven", "street", "car")
    assert prepare(_config(flags | {"val": flags["data"], "classes": names})).labels.names == names
    with pytest.raises(DataError, match=r"has 3 classes, \['sky', 'road', 'car'\], but `classes` are 4"):
        prepare(_config(flags | {"classes": (*names, "bus")}))


def test_the_preprocessing_goes_with_the_weights(
    flags: dict[str, Any], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(_config(flags)).preprocessing == Preprocessing()
    monkeypatch.chdir(weights.parent)
    job = prepare(_config(flags, weights="w.npz"))
    assert job.preprocessing == TORCH
    assert job.config.model.weights == weights.as_posix()
    caffe = prepare(_config(flags, backbone="vgg16", weights="imagenet"))
    assert caffe.preprocessing.channels == "BGR"
    assert caffe.config.model.weights == "imagenet"


def test_weights_that_cannot_be_used_are_refused(flags: dict[str, Any], weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.weights = 'nowhere.npz': no such file"):
        prepare(_config(flags, weights="nowhere.npz"))
    with pytest.raises(ConfigError, match=r"s3://bucket/w.npz must be a local or network path"):
        prepare(_config(flags, weights="s3://bucket/w.npz"))
    with pytest.raises(ConfigError, match=r"w.npz: conv1 has 64 channels, alexnet has 96"):
        prepare(_config(flags, backbone="alexnet", weights=str(weights)))
    with pytest.raises(ConfigError, match="keras-applications has no alexnet_torchvision"):
        prepare(_config(flags, weights="imagenet"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"w.npz: not a readable .npz file"):
        prepare(_config(flags, weights=str(weights)))


# ------------------------------------------------------------------------------------------- starting from a bundle


@pytest.fixture
def coarse(tmp_path: Path) -> Path:
    """A 32s bundle of the classes that pictures have."""
    from fcn_ray.bundle import save_bundle
    from tests.networks import tiny_model, tiny_spec

    spec = tiny_spec(variant="32s", num_classes=len(pictures.LABELS))
    save_bundle(str(tmp_path / "coarse"), tiny_model(spec), spec, pictures.LABELS, TORCH, {})
    return tmp_path / "coarse"


@pytest.mark.keras
def test_a_job_that_starts_from_a_bundle_takes_its_network_and_preprocessing(
    flags: dict[str, Any], coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del flags["model.backbone"]
    monkeypatch.chdir(coarse.parent)
    grown = prepare(_config(flags, start="coarse", variant="16s"))
    assert (grown.spec.variant, grown.spec.width, grown.spec.fc_channels) == ("16s", 0.02, 6)
    assert grown.preprocessing == TORCH
    assert grown.config.model.start == coarse.as_posix()
    assert prepare(_config(flags, start="coarse")).spec.variant == "32s"


@pytest.mark.keras
def test_the_saved_settings_of_a_grown_network_are_its_own(flags: dict[str, Any], coarse: Path, tmp_path: Path) -> None:
    """`-c out/config.yaml --resume` must mean the same network, wherever the bundle has gone meanwhile."""
    del flags["model.backbone"]
    job = prepare(_config(flags, start=str(coarse), variant="16s"))
    (tmp_path / "config.yaml").write_text(dump_config(job.config))
    again = prepare(load_config(TrainConfig, str(tmp_path / "config.yaml")))
    assert (again.spec, again.settings) == (job.spec, job.settings)
    moved = coarse.rename(tmp_path / "moved")
    assert prepare(_config(flags, start=str(moved), variant="16s")).settings == job.settings
    assert prepare(_config(flags, start=str(moved), variant="8s")).settings != job.settings


def test_other_weights_at_the_same_place_are_another_job(flags: dict[str, Any], weights: Path) -> None:
    before = prepare(_config(flags, weights=str(weights))).settings
    assert prepare(_config(flags, weights=str(weights))).settings == before
    assert prepare(_config(flags, weights=str(weights), scales="paper")).settings != before
    with np.load(weights) as file:
        arrays = dict(file)
    arrays["conv1/bias"] = arrays["conv1/bias"] + 1
    np.savez_compressed(weights, **arrays)
    assert prepare(_config(flags, weights=str(weights))).settings != before


def test_training_on_another_backend_is_refused(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ConfigError, match="KERAS_BACKEND is jax, but training runs on TensorFlow"):
        prepare(_config(flags))


@pytest.mark.keras
def test_only_the_variant_may_change_and_only_to_a_finer_one(flags: dict[str, Any], coarse: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.backbone = 'alexnet_torchvision', but model.start .*has 'vgg16'"):
        prepare(_config(flags, start=str(coarse)))
    del flags["model.backbone"]
    with pytest.raises(ConfigError, match=r"model.width = 0.5, but model.start .* has 0.02: leave it out"):
        prepare(_config(flags, start=str(coarse), width=0.5))
    fine = coarse.parent / "fine"
    from fcn_ray.bundle import save_bundle
    from tests.networks import tiny_model, tiny_spec

    spec = tiny_spec(variant="8s", num_classes=3)
    save_bundle(str(fine), tiny_model(spec), spec, pictures.LABELS, TORCH, {})
    with pytest.raises(ConfigError, match=r"16s is coarser than the 8s of model\.start"):
        prepare(_config(flags, start=str(fine), variant="16s"))
    with pytest.raises(ConfigError, match=r"knows the classes .*, .* has \['a', 'b', 'c'\]"):
        prepare(_config(flags, start=str(fine)).model_copy(update={"classes": ("a", "b", "c")}))


# ----------------------------------------------------------------------------------- going on with a run from before


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _settings_before(config: TrainConfig) -> str:
    """Digest of the settings as version 1 made it: data by the sizes of its row groups, crops padded with black."""
    footer = pq.read_metadata(config.data)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    pieces = [(Path(config.data).name, i, group.num_rows, group.total_byte_size) for i, group in enumerate(groups)]
    values = config.model_dump(mode="json", include={"loss", "batch_size", "seed", "max_pixels"})
    values["augment"] = {"crop": [256, 320], "scale": [0.75, 1.5], "flip": True, "colour": 0.2}
    spec = ModelSpec.from_config(config.model, len(pictures.LABELS)).model_dump(mode="json")
    about = {"spec": spec, "preprocessing": Preprocessing().model_dump(mode="json"), "origin": None}
    about |= {"scales": config.model.scales, "labels": pictures.LABELS.to_json(), "data": _digest(pieces)}
    return _digest(values | about)


def test_a_run_that_was_padded_with_black_goes_on_with_black(flags: dict[str, Any]) -> None:
    flags["resume"] = True
    save_checkpoint(flags["out"], Checkpoint("", 1, 3, None, _settings_before(_config(flags)), {}), {})
    with pytest.raises(ForeignOutputError, match=r"with black, not with \[128, 128, 128\]: go on with --set augment"):
        prepare(_config(flags))
    assert prepare(_config(flags | {"augment.fill": [0, 0, 0]})).config.augment.fill == (0, 0, 0)
    with pytest.raises(ForeignOutputError, match="other settings or data"):
        prepare(_config(flags | {"augment.fill": [1, 2, 3]} | {"seed": 1}))


def test_labels_changed_in_place_are_other_data(flags: dict[str, Any], tmp_path: Path) -> None:
    val, train = tmp_path / "val.parquet", Path(flags["data"])
    flags |= {"resume": True, "augment.fill": [0, 0, 0], "val": str(val)}

    def write(path: Path, label: int) -> int:
        """Four pictures, three of whose labels are one class; bytes of the row group."""
        masks = [encode_mask(np.full((48, 64), label, np.uint8))] * 3
        masks += [encode_mask(np.arange(48, dtype=np.uint8)[:, None].repeat(64, axis=1) % 2)]
        table = pq.read_table(pictures.write_parquet(path, 4))
        table = table.set_column(table.schema.get_field_index("mask"), "mask", pa.array(masks))
        pq.write_table(table, path, compression="none")
        return int(pq.read_metadata(path).row_group(0).total_byte_size)

    sizes = {write(path, 1) for path in (train, val)}
    job = prepare(_config(flags))
    before = _settings_before(_config(flags))
    metrics = {"val_data": job.val_digest}
    before_val = {"val_data": job.val_digest.partition(".")[0]}
    for step, settings, found in ((3, before, before_val), (4, job.settings, metrics)):
        save_checkpoint(flags["out"], Checkpoint("", 1, step, None, settings, found), {})
        assert prepare(_config(flags)).settings == job.settings, "a run of before goes on, and knows its data from then"
    for path, message in ((val, "validated on other images"), (train, "other settings or data")):
        sizes.add(write(path, 0))
        with pytest.raises(ForeignOutputError, match=message):
            prepare(_config(flags))
    assert len(sizes) == 1, "only the content tells them apart"


def test_a_run_whose_order_is_another_now_is_refused_and_told_why(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags |= {"resume": True, "augment.fill": [0, 0, 0]}
    light = prepare(_config(flags)).settings
    assert light.partition(".")[0] == _settings_before(_config(flags))
    save_checkpoint(flags["out"], Checkpoint("", 1, 3, None, light, {}), {})
    monkeypatch.setattr("fcn_ray.training.order.has_heavy_windows", lambda _: True)
    with pytest.raises(ForeignOutputError, match=r"read this data in another order, .* larger than 256 MB"):
        prepare(_config(flags))
    heavy = prepare(_config(flags | {"out": flags["out"] + "-new"})).settings
    assert heavy != light


def test_crops_are_padded_with_the_mean_of_the_preprocessing_and_the_saved_settings_say_so(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    job = prepare(_config(flags))
    assert job.config.augment.fill == (128, 128, 128)
    assert prepare(_config(flags, backbone="vgg16", weights="imagenet")).config.augment.fill == (124, 117, 104)
    (tmp_path / "config.yaml").write_text(dump_config(job.config))
    assert prepare(load_config(TrainConfig, str(tmp_path / "config.yaml"))).settings == job.settings
    assert prepare(_config(flags | {"augment.fill": [9, 9, 9]})).settings != job.settings


# ----------------------------------------------------------------------------------------------------------- classes


def _with_ids(path: Path, *labels: list[int]) -> str:
    """A table of grey images of 8x8 pixels whose labels hold such ids."""
    masks = [np.resize(np.array(ids, np.uint8), (8, 8)) for ids in labels]
    image = encode_image(np.full((8, 8, 3), 90, np.uint8), "PNG")
    pq.write_table(pa.table({"image": [image] * len(masks), "mask": [encode_mask(mask) for mask in masks]}), path)
    return str(path)


def test_masks_of_0_and_255_have_no_second_class(tmp_path: Path) -> None:
    """A common way to write two classes; here 255 is void, and a network that says 0 everywhere would be perfect."""
    data, labels = _with_ids(tmp_path / "t.parquet", *[[0, 255]] * 4), LabelSet.from_names(["no", "crack"])
    config = load_config(
        TrainConfig, flags={"data": data, "out": f"{tmp_path}/out", "batch_size": 4, "classes": ("no", "crack")}
    )
    (piece,) = open_collection(data, Columns("image", "mask")).pieces
    report = CheckReport(check_piece(piece, Columns("image", "mask"), labels, 10**6), None, labels)
    assert not report.trainable, "fcn-ray check says so too"
    assert list(report.lines())[-1].startswith("training would refuse this: no label holds a second class. 255 means")
    with pytest.raises(
        DataError, match=r"4 images hold no class but \['no'\], of \['no', 'crack'\]; 255 means to ignore"
    ):
        prepare(config)


def test_a_class_that_no_label_holds_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _with_ids(tmp_path / "t.parquet", [0, 1], [1], [0, 255], [3])
    flags = {"data": data, "out": f"{tmp_path}/out", "batch_size": 4, "classes": tuple("abcd")}
    prepare(load_config(TrainConfig, flags=flags))
    assert "no label holds ['c']" in caplog.text


def test_what_a_sample_lacks_the_rest_may_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "CHECKED_SAMPLES", 2)
    data = _with_ids(tmp_path / "t.parquet", [0], [0, 1], [0, 1], [0])
    flags = {"data": data, "out": f"{tmp_path}/out", "batch_size": 4, "classes": tuple("abc")}
    prepare(load_config(TrainConfig, flags=flags))
    assert "the labels of 2 images hold no class but ['a']" in caplog.text
