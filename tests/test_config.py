from __future__ import annotations

from pathlib import Path

import pytest

from fcn_ray.config import ModelConfig, ModelSpec, SegmentConfig, TrainConfig
from fcn_ray.config_text import describe_config, dump_config, load_config
from fcn_ray.errors import ConfigError

TRAIN = {"data": "train.parquet", "out": "run"}


def test_flags_beat_settings_which_beat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: file\nout: file\nepochs: 1\nbatch_size: 1\n")
    config = load_config(TrainConfig, str(file), ["epochs=2", "batch_size=2"], {"batch_size": 4, "val": None})
    assert (config.data, config.epochs, config.batch_size, config.val) == ("file", 2, 4, None)


def test_settings_reach_nested_keys_and_numbers_as_people_write_them() -> None:
    config = load_config(TrainConfig, None, ["optimizer.learning_rate=1e-4", "augment.crop=[64, 96]"], TRAIN)
    assert config.optimizer.learning_rate == 1e-4
    assert config.augment.crop == (64, 96)


def test_a_resolved_config_reads_back(tmp_path: Path) -> None:
    config = load_config(TrainConfig, None, ["augment.scale=[0.5, 2]", "classes=[a, b]"], TRAIN)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(TrainConfig, str(file)) == config


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["epoch=3"], ["epoch: unknown key", "'epochs'"]),
        (["optimizer.learing_rate=1"], ["optimizer.learing_rate: unknown key", "'learning_rate'"]),
        (["batch-size=1"], ["batch-size: unknown key", "did you mean 'batch_size'"]),
        (["optimizer.learning-rate=1"], ["optimizer.learning-rate: unknown key", "did you mean 'learning_rate'"]),
        (["augment.scale=2"], ["augment.scale = 2: expected a list, as augment.scale=[a, b]"]),
        (["workers=4"], ["workers = 4: this is a section", "workers.count"]),
        (["classes=sky,road"], ["classes = 'sky,road': expected a list, as classes=[a, b]"]),
        (["nothing_like_it=1"], ["nothing_like_it: unknown key", "valid keys", "epochs"]),
        (["epochs=0"], ["epochs = 0", "greater than or equal to 1"]),
        (["epochs=many"], ["epochs = 'many'", "integer"]),
        (["epochs=1", "epochs.a=1"], ["epochs is a single value"]),
        (["batch_size=5", "workers.count=2", "accumulate=3"], ["batch_size 5 must be at least 6"]),
        (["accumulate=2", "loss.kind=dice"], ["dice", "accumulate must be 1"]),
        (["workers.count=2", "workers.min_count=3"], ["min_count 3 must not be above count 2"]),
        (["model.variant=4s"], ["model.variant = '4s'", "'8s'"]),
        (["model.weights=a.npz", "model.width=0.5"], ["width 1.0", "0.5"]),
        (["model.weights=a.npz", "model.start=b"], ["weights and start", "leave one"]),
        (["model.backbone=resnet50", "model.geometry=paper"], ["geometry paper", "found resnet50", "use same"]),
        (["model.backbone=resnet50", "model.width=0.5"], ["resnet50 has one width", "0.5"]),
        (["model.output_stride=16"], ["output_stride 16", "resnet50"]),
        (["model.backbone=resnet50", "model.variant=32s", "model.output_stride=16"], ["output_stride 16", "16s or 8s"]),
        (["model.backbone=vgg19"], ["model.backbone = 'vgg19'", "alexnet"]),
        (["loss.class_weights=[1, 0]"], ["loss.class_weights", "greater than 0"]),
        (["loss.class_weights=balanced"], ["loss.class_weights = 'balanced'", "'inverse'"]),
        (["loss.kind=dice", "loss.reduction=sum"], ["dice", "leave reduction out"]),
        (["model.scales=paper"], ["scales paper", "weights or start"]),
        (["augment.scale=[2, 1]"], ["smallest, largest"]),
        (["epochs"], ["KEY=VALUE"]),
        (["classes=[a, *b]"], ["aliases"]),
        (["classes=[a"], ["not valid YAML"]),
    ],
)
def test_every_mistake_is_named_with_the_way_out(settings: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, None, settings, TRAIN)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_keys_are_all_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"data: required.*out: required"):
        load_config(TrainConfig)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b\n", "'key: value' lines"),
        ("a: [", "not valid YAML"),
        ("x: !!python/object:os.system {}", "not valid"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_config(SegmentConfig, str(file))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config(SegmentConfig, "nowhere.yaml")


def test_a_huge_file_is_refused_unparsed(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="1000003 bytes"):
        load_config(SegmentConfig, str(file))


@pytest.mark.parametrize("kind", [TrainConfig, SegmentConfig])
def test_every_knob_has_a_meaning(kind: type[TrainConfig] | type[SegmentConfig]) -> None:
    assert [key for key, _, meaning in describe_config(kind) if not meaning] == []


def test_a_spec_leaves_out_where_weights_came_from() -> None:
    spec = ModelSpec.from_config(ModelConfig(weights="vgg16.npz", fc_channels=16), num_classes=3)
    assert spec.num_classes == 3
    assert "weights" not in spec.model_dump()


@pytest.mark.parametrize(("backbone", "channels"), [("vgg16", 4096), ("alexnet", 4096), ("resnet50", 512)])
def test_the_head_is_as_wide_as_its_backbone_wants(backbone: str, channels: int) -> None:
    assert ModelSpec(backbone=backbone, num_classes=2).fc_channels == channels
    assert ModelSpec.from_config(ModelConfig(backbone=backbone), 2).fc_channels == channels
    assert ModelSpec.from_config(ModelConfig(backbone=backbone, fc_channels=7), 2).fc_channels == 7


def test_only_geometry_same_pads_to_a_grid() -> None:
    assert (ModelConfig().grid, ModelConfig(geometry="paper").grid) == (32, 1)
