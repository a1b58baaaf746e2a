"""Training for real: Ray Train workers, MultiWorkerMirroredStrategy, kills and resumes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from fcn_ray.bundle import Bundle, load_bundle, save_bundle
from fcn_ray.config import ModelConfig, TrainConfig
from fcn_ray.config_text import dump_config
from fcn_ray.errors import (
    BundleError,
    ConfigError,
    DataError,
    DivergedError,
    ForeignOutputError,
    ResourceError,
    StorageError,
)
from fcn_ray.images.codec import decode_label
from fcn_ray.training import job as training_job
from fcn_ray.training import promotion
from fcn_ray.training.checkpoints import Arrays, Checkpoint, find_newest, list_checkpoints, load_arrays, save_checkpoint
from fcn_ray.training.curve import read_curve
from fcn_ray.training.job import TrainReport, train
from fcn_ray.training.preflight import prepare
from fcn_ray.training.samples import Sampled
from tests import pictures
from tests.training.making import tiny_config, write_data, write_without_names

pytestmark = [pytest.mark.ray, pytest.mark.keras]

UNSEEN = Sampled("", 0, frozenset())
"""Of a set whose bad row is the millionth, and not among those that are looked at before the start."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


# ------------------------------------------------------------------------------------------------- the whole job


def _final_state(out: Path) -> dict[str, np.ndarray]:
    newest = find_newest(str(out))
    assert newest is not None
    arrays = load_arrays(newest)
    assert arrays is not None
    return arrays


def _command(config: TrainConfig, file: Path) -> list[str]:
    file.write_text(dump_config(config))
    return [sys.executable, "-m", "fcn_ray", "train", "--config", str(file)]


def _wait_for_checkpoint(run: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 200
    while not list_checkpoints(str(out)):
        assert run.poll() is None, "the run must not end before it is killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _workers_of(session: int) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if os.getsid(int(process.name)) == session and "RayTrainWorker" in (process / "cmdline").read_text():
                found.append(int(process.name))
        except (ValueError, OSError):
            continue
    return found


@dataclasses.dataclass
class _Run:
    config: TrainConfig
    records: list[dict[str, Any]]
    report: TrainReport
    state: Arrays


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> _Run:
    """A run of two workers from start to end."""
    out = tmp_path_factory.mktemp("run") / "straight"
    flags = {"workers__count": 2, "loss__class_weights": "median", "checkpoint_steps": 1}
    config = tiny_config(data, out, val=str(data), epochs=6, **flags)
    records: list[dict[str, Any]] = []
    report = train(config, records.append)
    return _Run(config, records, report, _final_state(out))


def test_two_workers_train_tell_and_leave_what_they_should(undisturbed: _Run) -> None:
    records, report = undisturbed.records, undisturbed.report
    epoch = ["step", "checkpoint"] * 3 + ["epoch"]
    kinds = [record["kind"] for record in records if record["kind"] != "warning"]
    assert kinds == ["start", "workers", *epoch * 6, "bundle", "page"]
    assert [record["step"] for record in records if record["kind"] == "step"] == list(range(1, 19))
    bundle = load_bundle(report.bundle)
    class_weights = records[0]["class_weights"]
    assert bundle.metadata["class_weights"] == list(class_weights)
    assert sorted(class_weights)[1] == 1.0, "the class of median frequency"
    assert (bundle.digest, bundle.labels) == (report.digest, pictures.LABELS)
    weights = safetensors.numpy.load_file(Path(report.bundle) / "model.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())
    scores = [record["val"]["mean_iou"] for record in records if record["kind"] == "epoch"]
    assert report.epoch == 1 + int(np.argmax(scores))
    curve = (Path(undisturbed.config.out) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in curve] == [1, 2, 3, 4, 5, 6]
    assert report.metrics["mean_iou"] == pytest.approx(max(scores), abs=1e-4), "a fresh process finds the same"
    assert bundle.metadata["metrics"] == report.metrics
    assert report.page is not None
    assert "data:image/jpeg" in Path(report.page).read_text()


def _assert_equal(out: Path, state: dict[str, np.ndarray]) -> None:
    for name, array in _final_state(out).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_weights_of_an_undisturbed_run(undisturbed: _Run, tmp_path: Path) -> None:
    config, state = undisturbed.config, undisturbed.state
    out = tmp_path / "killed"
    config = config.model_copy(update={"out": str(out)})
    with _start(_command(config, tmp_path / "train.yaml")) as run:
        _wait_for_checkpoint(run, out)
        os.killpg(run.pid, signal.SIGKILL)  # driver and raylet of that run; its workers follow them
        deadline = time.monotonic() + 60
        while _workers_of(run.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    newest = list_checkpoints(str(out))[-1]
    assert newest.epoch < 6, "it must have been killed on the way"
    unscored = "epoch" in newest.metrics and "val" not in newest.metrics  # killed in a validation: that is done again
    first = newest.epoch if unscored else newest.epoch + 1
    with pytest.raises(ForeignOutputError, match="--resume"):
        train(config)
    resumed: list[dict[str, Any]] = []
    train(config.model_copy(update={"resume": True}), resumed.append)
    assert [record["epoch"] for record in resumed if record["kind"] == "epoch"] == list(range(first, 7))
    _assert_equal(out, state)
    straight, killed = ([record["loss"] for record in read_curve(str(o))] for o in (undisturbed.config.out, out))
    assert killed == pytest.approx(straight), "the mean of an epoch is that of all its steps, before the kill and after"


@pytest.mark.slow
def test_an_epoch_that_a_kill_left_without_its_validation_gets_it(undisturbed: _Run, tmp_path: Path) -> None:
    out = tmp_path / "unscored"
    shutil.copytree(undisturbed.config.out, out, ignore=shutil.ignore_patterns("bundle", "ray"))
    *_, last = list_checkpoints(str(out))
    arrays = load_arrays(last)
    assert arrays is not None
    shutil.rmtree(last.folder)
    metrics = {key: value for key, value in last.metrics.items() if not key.startswith("val")}
    save_checkpoint(str(out), dataclasses.replace(last, score=None, metrics=metrics), arrays)
    curve = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(curve[:-1]))
    train(undisturbed.config.model_copy(update={"out": str(out), "resume": True}))
    before, after = (read_curve(str(o))[-1] for o in (undisturbed.config.out, out))
    assert (after["epoch"], after["loss"]) == (6, before["loss"])
    assert after["val"]["mean_iou"] == pytest.approx(before["val"]["mean_iou"])


@pytest.mark.usefixtures("ray_session")
def test_more_processes_score_than_there_is_room_for(tmp_path: Path) -> None:
    """They take turns: each wants all CPUs of this cluster."""
    from fcn_ray.models.fcn import build_fcn

    data = pictures.write_parquet(tmp_path / "data.parquet", 2 * promotion.LEAST_IMAGES, sizes=((40, 40),))
    config = tiny_config(data, tmp_path / "out", val=str(data), workers__cpus=4, workers__count=2)
    job = prepare(config)
    model = build_fcn(job.spec, seed=1)
    arrays = {f"model/{v.path}": np.asarray(v.value) for v in model.variables}
    save_checkpoint(job.config.out, Checkpoint("", 1, 3, 0.1, job.settings, {}), arrays)
    found = promotion.promote(job, 2, lambda _: None)
    assert found.rescored is not None
    labels = [decode_label(cell, "label") for cell in pq.read_table(data)["mask"].to_pylist()]
    assert found.rescored.confusion.sum() == sum(int((label != 255).sum()) for label in labels)
    assert len(found.rescored.best) == promotion.EXAMPLES


@pytest.mark.slow
def test_a_killed_worker_brings_all_back_from_the_last_checkpoint(undisturbed: _Run, tmp_path: Path) -> None:
    config, state = undisturbed.config, undisturbed.state
    out = tmp_path / "wounded"
    workers = config.workers.model_copy(update={"max_failures": 2})
    with _start(_command(config.model_copy(update={"out": str(out), "workers": workers}), tmp_path / "t.yaml")) as run:
        _wait_for_checkpoint(run, out)
        pids = _workers_of(run.pid)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        text, _ = run.communicate(timeout=250)
    assert run.returncode == 0, text
    _assert_equal(out, state)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 4), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_at_hand_and_ends_training(
    data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "stopped"
    big = pictures.write_parquet(tmp_path / "big.parquet", 400, sizes=((48, 64),))
    config = tiny_config(big, out, epochs=500, checkpoint_steps=7)
    with _start(_command(config, tmp_path / "train.yaml")) as run:
        _wait_for_checkpoint(run, out)
        run.send_signal(number)
        text, _ = run.communicate(timeout=60)
    assert run.returncode == code, text
    assert "--resume" in text
    newest = list_checkpoints(str(out))[-1]
    assert newest.step % 7, "it must be one that the signal asked for"
    assert newest.remaining is not None
    assert sum(stop - start for start, stop in newest.remaining) == 4 * (100 * (newest.epoch + 1) - newest.step)


@pytest.mark.usefixtures("ray_session")
def test_a_bad_row_found_on_the_way_ends_the_job_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures.write_parquet(tmp_path / "train.parquet", 8)
    config = tiny_config(data, tmp_path / "out")
    monkeypatch.setattr("fcn_ray.training.preflight.check_samples", lambda *_: UNSEEN)
    wrong = pictures.LABELS.from_names(["sky", "road"])
    job = prepare(config)
    object.__setattr__(job, "labels", wrong)
    monkeypatch.setattr(training_job, "prepare", lambda _: job)
    with pytest.raises(DataError, match=r"train\.parquet#\d: mask holds class ids \[2\]"):
        train(config)


@pytest.mark.usefixtures("ray_session")
def test_a_bad_row_found_while_counting_the_classes_ends_the_job_before_it_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = write_without_names(data, tmp_path / "train.parquet")
    config = tiny_config(bare, tmp_path / "out", classes=("sky", "road"), loss__class_weights="inverse")
    monkeypatch.setattr("fcn_ray.training.preflight.check_samples", lambda *_: UNSEEN)
    with pytest.raises(DataError, match=r"^train\.parquet#\d+: mask holds class ids \[2\]"):
        train(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_training_that_diverges_goes_back_with_half_the_rate_and_then_ends(data: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    flags = {"optimizer__learning_rate": 1e30, "optimizer__warmup_steps": 0}
    with pytest.raises(DivergedError, match=r"2 steps in a row .* lower optimizer\.learning_rate \(5e\+29\)"):
        train(tiny_config(data, tmp_path / "out", divergence__skip=1, divergence__rollbacks=1, **flags), records.append)
    assert list_checkpoints(str(tmp_path / "out")) == []
    warnings = [record["message"] for record in records if record["kind"] == "warning"]
    assert sum("the step is left out" in text for text in warnings) == 2
    assert sum("Back to the last checkpoint, with 0.5 times the learning rate" in text for text in warnings) == 1


def test_a_second_and_different_bundle_gets_its_epochs_name_and_the_first_stays(data: Path, tmp_path: Path) -> None:
    from fcn_ray.models.fcn import build_fcn

    job = prepare(tiny_config(data, tmp_path / "out"))
    model = build_fcn(job.spec, seed=1)
    bundles: list[Bundle] = []
    files: list[dict[str, bytes]] = []
    for epoch in (1, 2, 2):
        arrays = {f"model/{v.path}": np.full(v.shape, epoch, v.dtype) for v in model.variables}
        checkpoint = save_checkpoint(job.config.out, Checkpoint("", epoch, 3 * epoch, None, job.settings, {}), arrays)
        bundles.append(
            promotion.write_bundle(promotion.load_network(job, checkpoint), job, checkpoint, {}, "fcn-ray train")
        )
        files.append({file.name: file.read_bytes() for file in (tmp_path / "out" / "bundle").iterdir()})
    assert [Path(bundle.folder).name for bundle in bundles] == ["bundle", "bundle-epoch-2", "bundle-epoch-2"]
    assert bundles[0].digest != bundles[1].digest == bundles[2].digest
    assert files == [files[0]] * 3


def test_a_network_that_makes_no_bundle_is_not_tried_under_another_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_ray.models.fcn import build_fcn

    job = prepare(tiny_config(data, tmp_path / "out"))
    model = build_fcn(job.spec, seed=1)
    model.variables[0].assign(np.full(model.variables[0].shape, np.inf, np.float32))
    tried: list[str] = []

    def save(folder: str, *parts: Any) -> Bundle:
        tried.append(Path(folder).name)
        return save_bundle(folder, *parts)

    monkeypatch.setattr(promotion, "save_bundle", save)
    with pytest.raises(BundleError, match="not finite"):
        promotion.write_bundle(model, job, Checkpoint("", 1, 3, None, "", {}), {}, "fcn-ray train")
    assert tried == ["bundle"]


def test_a_checkpoint_that_scores_otherwise_in_a_fresh_process_is_no_bundle() -> None:
    checkpoint = Checkpoint("runs/a/checkpoints/1", 1, 3, 0.4, "", {"val": {"pixel_accuracy": 0.64}})
    promotion.check_agreement(checkpoint, 0.6450)
    promotion.check_agreement(dataclasses.replace(checkpoint, metrics={}), 0.1)
    with pytest.raises(BundleError, match=r"/1 had a pixel accuracy of 0\.6400 in training, but has 0\.5000"):
        promotion.check_agreement(checkpoint, 0.5)


@pytest.mark.parametrize(
    ("trained", "before", "now", "precision"),
    [
        ("float32", 0.65, 0.65, "float32"),
        ("bfloat16", 0.65, 0.6505, "bfloat16"),
        ("bfloat16", 0.66, 0.65, "bfloat16"),
        ("bfloat16", 0.65, 0.652, "float32"),
        ("bfloat16", None, 0.652, "float32"),
    ],
)
def test_a_bundle_is_bfloat16_when_that_cost_its_network_nothing(
    trained: str, before: float | None, now: float, precision: str
) -> None:
    metrics = {"val": {"mean_iou": before}, "precision": trained}
    checkpoint = Checkpoint("runs/a/checkpoints/1", 1, 3, before, "", metrics)
    assert promotion.find_precision(checkpoint, {"mean_iou": now}) == precision
    assert promotion.find_precision(dataclasses.replace(checkpoint, metrics={}), {"mean_iou": now}) == "float32"
    assert promotion.find_precision(checkpoint, {}) == "float32"


@pytest.mark.usefixtures("ray_session")
def test_a_checkpoint_that_only_the_driver_can_read_ends_the_job_instead_of_starting_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = tiny_config(data, out, resume=True)
    chosen = save_checkpoint(str(out), Checkpoint("", 1, 3, None, prepare(config).settings, {}), {})

    def find_and_lose(run: str, distrusted: Collection[str]) -> Checkpoint | None:
        found = find_newest(run, distrusted)
        shutil.rmtree(chosen.folder)  # the worker looks at its own disk, where it never was
        return found

    monkeypatch.setattr(training_job, "find_newest", find_and_lose)
    with pytest.raises(StorageError, match=f"worker 0 cannot read {chosen.folder}: is `out` on shared storage"):
        train(config)
    assert list_checkpoints(str(out)) == []


@pytest.mark.usefixtures("ray_session")
def test_a_coarse_network_is_trained_on_as_a_finer_one(data: Path, tmp_path: Path) -> None:
    """The paper's stages: 32s, then 16s from its bundle; the old layers take smaller steps than the new one.

    The second is trained in bfloat16, which changes no variable's type, and the bundle says what it measured so.
    """
    train(tiny_config(data, tmp_path / "32s", model__variant="32s", epochs=1))
    val = pictures.write_parquet(tmp_path / "val.parquet", 2)  # few, and of one size: each other one is compiled anew
    flags = {"optimizer__backbone_rate": 0, "optimizer__weight_decay": 0, "precision": "bfloat16", "val": str(val)}
    config = tiny_config(data, tmp_path / "16s", epochs=1, **flags)
    start = ModelConfig(start=str(tmp_path / "32s" / "bundle"), variant="16s")
    report = train(config.model_copy(update={"model": start}))
    bundle = load_bundle(report.bundle)
    assert bundle.spec.variant == "16s"
    (*_, best) = list_checkpoints(config.out)
    assert best.metrics["precision"] == "bfloat16"
    cost = bundle.metadata["metrics"]["mean_iou"] - best.metrics["val"]["mean_iou"]
    assert bundle.precision == ("bfloat16" if cost < promotion.COST else "float32")
    assert {array.dtype for array in _final_state(Path(config.out)).values()} <= {
        np.dtype("float32"),
        np.dtype("int64"),
    }
    coarse, fine = (safetensors.numpy.load_file(tmp_path / v / "bundle" / "model.safetensors") for v in ("32s", "16s"))
    assert coarse["score_fr/kernel"].any()
    assert all(np.array_equal(coarse[name], fine[name]) for name in coarse), "a rate of zero leaves them alone"
    assert fine["score_pool4/kernel"].any()


@pytest.mark.usefixtures("ray_session")
def test_a_pretrained_backbone_is_loaded_and_learns_at_its_own_rate(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"conv1": (11, 11, 3, 64), "conv2": (5, 5, 64, 192), "conv3": (3, 3, 192, 384)}
    shapes |= {"conv4": (3, 3, 384, 256), "conv5": (3, 3, 256, 256)}
    arrays = {f"{name}/kernel": rng.normal(size=s, scale=0.02).astype(np.float32) for name, s in shapes.items()}
    arrays |= {f"{name}/bias": np.zeros(s[3], np.float32) for name, s in shapes.items()}
    np.savez(tmp_path / "alexnet.npz", **arrays)
    flags = {
        "model__backbone": "alexnet_torchvision",
        "model__width": 1.0,
        "model__weights": str(tmp_path / "alexnet.npz"),
    }
    report = train(tiny_config(data, tmp_path / "out", epochs=1, optimizer__backbone_rate=0, **flags))
    found = safetensors.numpy.load_file(Path(report.bundle) / "model.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert found["score_fr/kernel"].any()
    assert load_bundle(report.bundle).preprocessing.std == (58.395, 57.12, 57.375)


def test_only_new_kernels_that_start_as_noise_decay(data: Path, tmp_path: Path) -> None:
    from fcn_ray.models.fcn import build_fcn
    from fcn_ray.training.replica import build_optimizer
    from tests.networks import tiny_spec

    config = tiny_config(data, tmp_path, optimizer__weight_decay=0.1)
    model = build_fcn(tiny_spec(backbone="mobilenetv3_small", upsampling="deconv_learned", fusion="concat"))
    optimizer = build_optimizer(config, 1, model, frozenset({"conv"}))
    optimizer.build(model.trainable_variables)
    decaying = {v.path for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    kernels = {v.path for v in model.trainable_variables if len(v.shape) > 1}
    exempt = {path for path in kernels if path.startswith(("conv/", "upsample_", "fuse_"))}
    assert len(exempt) == 6
    assert decaying == kernels - exempt


# -------------------------------------------------------------------------------------- refused before the cluster


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_the_cluster_holds_are_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "out", workers__count=4, workers__gpus=1)
    with pytest.raises(ResourceError, match="4 workers of 1 CPUs and 1 GPUs each do not fit"):
        train(config)
    assert not (tmp_path / "out").exists()


def test_what_cannot_train_is_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = pictures.write_parquet(tmp_path / "few.parquet", 3)
    with pytest.raises(DataError, match="3 images, fewer than batch_size 4"):
        prepare(tiny_config(few, out))
    bare = write_without_names(data, tmp_path / "bare.parquet")
    with pytest.raises(DataError, match=r"bare\.parquet does not name its classes"):
        prepare(tiny_config(bare, out))
    with pytest.raises(DataError, match=r"#0: mask holds class ids \[2\], expected 0..1 or 255"):
        prepare(tiny_config(bare, out, classes=("sky", "road")))
    with pytest.raises(ConfigError, match=r"class_weights has 2 numbers for 3 classes: .* \['sky', 'road', 'car'\]"):
        prepare(tiny_config(data, out, loss__class_weights=(1, 2)))
    assert not out.exists()
    (out / "family").mkdir(parents=True)
    (out / "family" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ForeignOutputError, match="not a training run"):
        prepare(tiny_config(data, out))


def test_class_weights_are_given_or_found_later(data: Path, tmp_path: Path) -> None:
    assert prepare(tiny_config(data, tmp_path)).class_weights is None
    assert prepare(tiny_config(data, tmp_path, loss__class_weights="median")).class_weights is None
    assert prepare(tiny_config(data, tmp_path, loss__class_weights=(1, 2, 0.5))).class_weights == (1.0, 2.0, 0.5)


def test_a_run_is_only_gone_on_with_its_own_settings(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, resume=True)
    settings = prepare(config).settings
    save_checkpoint(str(tmp_path), Checkpoint("", 1, 3, None, settings, {}), {})
    assert prepare(config).settings == settings
    assert prepare(tiny_config(data, tmp_path, resume=True, epochs=9, workers__count=2)).settings == settings
    assert prepare(tiny_config(data, tmp_path, resume=True, optimizer__learning_rate=0.001)).settings == settings
    with pytest.raises(ForeignOutputError, match="other settings or data"):
        prepare(tiny_config(data, tmp_path, resume=True, seed=1))


def test_a_run_is_only_gone_on_with_its_own_validation_set(data: Path, tmp_path: Path) -> None:
    """The best checkpoint is chosen by its score, which tells nothing beside one of other images."""
    out = tmp_path / "out"
    job = prepare(tiny_config(data, out, val=str(data)))
    other = pictures.write_parquet(tmp_path / "other.parquet", 3)
    save_checkpoint(str(out), Checkpoint("", 0, 2, None, job.settings, {}), {})
    prepare(tiny_config(data, out, val=str(other), resume=True))  # nothing has been scored yet
    save_checkpoint(str(out), Checkpoint("", 1, 3, 0.5, job.settings, {"val_data": job.val_digest}), {})
    prepare(tiny_config(data, out, val=str(data), resume=True))
    for val in (str(other), None):
        with pytest.raises(ForeignOutputError, match="validated on other images"):
            prepare(tiny_config(data, out, val=val, resume=True))
