"""What a worker decides by itself, without Ray: a worker of one, whose strategy is the default one."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_ray.config import TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ConfigError, DivergedError, StorageError
from fcn_ray.labels import LabelSet
from fcn_ray.training.checkpoints import find_newest, list_checkpoints
from fcn_ray.training.curve import read_curve
from fcn_ray.training.feeding import Feeder
from fcn_ray.training.preflight import prepare
from tests import pictures

pytestmark = pytest.mark.keras


def _worker(folder: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A worker of twelve pictures in steps of four, and what it tells."""
    import tensorflow as tf

    from fcn_ray.training.loop import Worker
    from fcn_ray.training.replica import Replica, build_network, build_optimizer
    from fcn_ray.training.startup import Orders, Position, whole_epoch

    data = pictures.write_parquet(folder / "train.parquet", 12)
    flags = {"data": str(data), "out": str(folder / "out"), "batch_size": 4, "epochs": 2}
    flags |= {"model.width": 0.05, "model.fc_channels": 8}
    config = load_config(TrainConfig, flags=flags | {key.replace("__", "."): value for key, value in settings.items()})
    job = prepare(config)
    model, _ = build_network(job, {})
    optimizer = build_optimizer(config, job.steps_per_epoch, model, frozenset())
    optimizer.build(model.trainable_variables)
    told: list[dict[str, Any]] = []
    orders = Orders(job, None, 0.5, told.append, None, {})
    replica = Replica(tf.distribute.get_strategy(), model, optimizer, 0, 1)
    return Worker(orders, replica, lambda *_: None, Position(1, 4, whole_epoch(job)), Feeder("", 1)), told


def test_a_checkpoint_holds_the_place_in_the_epoch_and_the_factor_on_the_rate(tmp_path: Path) -> None:
    from fcn_ray.training.loop import save

    worker, told = _worker(tmp_path)
    save(worker)
    worker.position.step, worker.position.remaining = 5, ((4, 8), (2, 3))
    save(worker)
    border, middle = list_checkpoints(worker.job.config.out)
    assert (border.epoch, border.step, border.remaining, border.rate_factor) == (1, 4, None, 0.5)
    assert (middle.epoch, middle.step, middle.remaining) == (1, 5, ((4, 8), (2, 3)))
    assert [(record["kind"], record["step"]) for record in told] == [("checkpoint", 4), ("checkpoint", 5)]


def test_a_storage_that_fails_costs_a_checkpoint_and_not_the_training(tmp_path: Path) -> None:
    from fcn_ray.training.loop import save

    worker, told = _worker(tmp_path)
    assert save(worker) is not None
    worker.position.step = 5
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as if the disk had no more room
    try:
        assert save(worker) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told[-1]["kind"] == "warning"
    assert "no checkpoint of step 5, those before it stay" in told[-1]["message"]
    found = find_newest(worker.job.config.out)
    assert found is not None
    assert found.step == 4


def test_a_checkpoint_is_told_though_older_ones_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_ray.training import loop

    def fail(*_: Any) -> None:
        raise StorageError("the store is gone")

    worker, told = _worker(tmp_path)
    monkeypatch.setattr(loop, "remove_old", fail)
    folder = loop.save(worker)
    (saved,) = list_checkpoints(worker.job.config.out)
    assert folder == saved.folder == told[-1]["folder"]
    assert told[0]["message"] == f"{folder} is written, but older checkpoints could not be deleted: the store is gone"


def test_momentum_that_a_checkpoint_does_not_know_starts_at_zero(tmp_path: Path) -> None:
    """`optimizer.momentum` may change on the way, as the rate may."""
    from fcn_ray.training.loop import save
    from fcn_ray.training.startup import Orders, find_position

    plain, _ = _worker(tmp_path, optimizer__momentum=0)
    plain.replica.model.variables[0].assign_add(np.ones(plain.replica.model.variables[0].shape, np.float32))
    save(plain)
    (saved,) = list_checkpoints(plain.job.config.out)
    heavy, told = _worker(tmp_path, optimizer__momentum=0.5, resume=True)
    assert heavy.job.settings == saved.settings
    position = find_position(heavy.replica, Orders(heavy.job, saved, 1.0, told.append, None, {}))
    assert position.step == 4
    before, after = plain.replica.arrays(), heavy.replica.arrays()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    slots = after.keys() - before.keys()
    assert len(slots) == len(heavy.replica.model.trainable_variables)
    assert not any(after[name].any() for name in slots)
    assert [record["message"].partition(" is of ")[2] for record in told] == [
        "a training without optimizer.momentum: it starts at 0"
    ]
    with pytest.raises(KeyError):
        heavy.replica.assign({name: before[name] for name in list(before)[1:]})


def test_a_storage_that_never_worked_ends_the_training(tmp_path: Path) -> None:
    from fcn_ray.training.loop import save

    worker, _ = _worker(tmp_path)
    (tmp_path / "out").write_text("where the folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        save(worker)


def test_nothing_is_saved_while_steps_are_not_finite(tmp_path: Path) -> None:
    """The step before them may have made weights that are finite and of no use."""
    from fcn_ray.training.loop import save

    worker, told = _worker(tmp_path)
    worker.skipped = 1
    assert save(worker) is None
    assert (told, list_checkpoints(worker.job.config.out)) == ([], [])


def test_the_end_of_an_epoch_is_saved_though_its_last_step_was_not_finite(tmp_path: Path) -> None:
    from fcn_ray.training.loop import save

    worker, _ = _worker(tmp_path)
    worker.skipped = 1
    folder = save(worker, 0.5, {"epoch": 1, "loss": 1.0})
    (found,) = list_checkpoints(worker.job.config.out)
    assert (found.folder, found.score, found.metrics) == (folder, 0.5, {"epoch": 1, "loss": 1.0})


def _validation(worker: Any, score: float) -> Any:
    from types import SimpleNamespace

    scores = SimpleNamespace(mean_iou=score, to_dict=lambda: {"mean_iou": score})
    return SimpleNamespace(scores=scores, confusion=np.eye(len(worker.job.labels), dtype=np.int64))


def test_the_end_of_an_epoch_is_written_once_and_gets_its_score_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is large: neither a validation nor one that is made up for writes it again."""
    import ray.train

    from fcn_ray.training import loop

    worker, told = _worker(tmp_path, val=str(tmp_path / "train.parquet"), keep_checkpoints=1)
    scores = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(loop, "validate", lambda *_: _validation(worker, next(scores)))
    monkeypatch.setattr(ray.train, "report", lambda _: None)
    loop._end_epoch(worker, None, {"epoch": 1, "step": 4, "loss": 1.0})
    (first,) = list_checkpoints(worker.job.config.out)
    assert (first.score, first.metrics["val"], first.metrics["loss"]) == (0.25, {"mean_iou": 0.25}, 1.0)
    assert [record["kind"] for record in told] == ["checkpoint", "epoch"]
    worker.position.step = 8
    unscored = loop.save(worker, None, {"epoch": 2, "step": 8, "loss": 0.5})
    loop._end_epoch(worker, None, {"epoch": 2, "step": 8, "loss": 0.5}, unscored)
    (second,) = list_checkpoints(worker.job.config.out)
    assert (second.folder, second.score) == (unscored, 0.75), "the best and the newest: the other one may go"
    worker.position.step = 12
    loop._end_epoch(worker, None, {"epoch": 3, "step": 12, "loss": 0.5})
    assert [found.score for found in list_checkpoints(worker.job.config.out)] == [0.75, 0.5]


def test_a_score_that_cannot_be_kept_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcn_ray.training import loop

    def fail(*_: Any) -> None:
        raise StorageError("the disk is full")

    worker, told = _worker(tmp_path)
    folder = loop.save(worker, None, {"epoch": 1})
    assert folder is not None
    monkeypatch.setattr(loop, "save_score", fail)
    assert loop._keep_score(worker, folder, 0.5, {"epoch": 1, "val": {}}) == folder
    assert told[-1]["message"] == f"the validation of {folder} could not be kept beside it: the disk is full"


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    from fcn_ray.training.loop import save

    worker, _ = _worker(tmp_path)
    variable = worker.replica.model.variables[0]
    variable.assign(np.full(variable.shape, np.nan, np.float32))
    with pytest.raises(DivergedError, match="is not finite after step 4"):
        save(worker)
    assert list_checkpoints(worker.job.config.out) == []


def test_steps_that_are_not_finite_are_left_out_until_there_are_too_many(tmp_path: Path) -> None:
    from fcn_ray.training.loop import _skip

    worker, told = _worker(tmp_path, divergence__skip=2, optimizer__learning_rate=0.02)
    for loss in (math.inf, 0.5):
        worker.skipped += 1
        _skip(worker, loss)
    assert [record["message"] for record in told] == [
        "the loss is inf at step 4: the step is left out",
        "a gradient is not finite at step 4: the step is left out",
    ]
    worker.skipped += 1
    with pytest.raises(DivergedError, match=r"3 steps in a row .* optimizer\.learning_rate \(0\.01\)"):
        _skip(worker, math.nan)


def test_a_first_loss_far_above_that_of_guessing_is_told(tmp_path: Path) -> None:
    from fcn_ray.training.loop import _check_first_loss

    worker, told = _worker(tmp_path)
    _check_first_loss(worker, 3.2)
    assert told == []
    _check_first_loss(worker, 80.0)
    assert "the first loss is 80, where a network that knows nothing has 1.1" in told[0]["message"]
    other, told = _worker(tmp_path, loss__reduction="sum")
    _check_first_loss(other, 80_000.0)
    assert told == [], "a sum has no usual size"


def test_a_network_that_predicts_one_class_is_told_but_not_at_once(tmp_path: Path) -> None:
    """Of whatever group it is the first validation: the third of the run is at the end of the sixth epoch here."""
    from fcn_ray.training.loop import _watch_for_collapse

    worker, told = _worker(tmp_path, val_every=2)
    for epoch, name in [(2, "road"), (4, "road"), (6, None)]:
        worker.position.epoch = epoch
        _watch_for_collapse(worker, name)
    assert told == []
    worker.position.epoch = 6
    _watch_for_collapse(worker, "road")
    assert [record["message"].split(":")[0] for record in told] == [
        "nearly every validation pixel is predicted as road"
    ]


def test_one_class_for_all_pixels_is_a_collapse_only_where_the_labels_hold_others() -> None:
    from fcn_ray.training.validation import predicts_one_class

    labels = LabelSet.from_names(["sky", "road"])
    for confusion, name in [
        ([[0, 600, 0], [0, 400, 0]], "road"),
        ([[0, 1, 0], [0, 10_000, 0]], None),
        ([[500, 100, 0], [0, 400, 0]], None),
        ([[0, 0, 600], [0, 0, 400]], None),
        ([[0, 0, 0], [0, 0, 0]], None),
    ]:
        assert predicts_one_class(np.array(confusion), labels) == name


def test_a_worker_that_does_not_see_what_the_driver_sees_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.train

    from fcn_ray.training.startup import check_storage

    class Context:
        def get_world_rank(self) -> int:
            return 3

    worker, _ = _worker(tmp_path)
    monkeypatch.setattr(ray.train, "get_context", Context)
    with pytest.raises(ConfigError, match=r"worker 3 on node .* does not see .*/out/config\.yaml"):
        check_storage(worker.job)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("")
    check_storage(worker.job)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(ConfigError, match="put `data` and `out` on storage that all nodes share"):
        check_storage(worker.job)


def test_a_curve_that_cannot_be_written_costs_no_training(tmp_path: Path) -> None:
    from fcn_ray.training.loop import _keep_curve

    worker, told = _worker(tmp_path)
    out = Path(worker.job.config.out)
    out.mkdir(exist_ok=True)
    (out / "metrics.jsonl").write_text("changed by hand")
    _keep_curve(worker, {"kind": "epoch", "epoch": 2})
    assert "epoch 2 could not be added to the curve" in told[-1]["message"]
    (out / "metrics.jsonl").unlink()
    _keep_curve(worker, {"kind": "epoch", "epoch": 2})
    assert read_curve(str(out)) == [{"kind": "epoch", "epoch": 2}]


@pytest.mark.parametrize(
    ("val", "ended", "kinds"),
    [
        ("train.parquet", 0, ["checkpoint", "stopped"]),
        ("train.parquet", 1, ["checkpoint", "stopped"]),
        (None, 0, ["checkpoint", "epoch", "stopped"]),
        (None, 1, ["checkpoint", "epoch"]),
    ],
    ids=["validated", "validated_last", "not_validated", "not_validated_last"],
)
def test_workers_asked_to_stop_in_the_last_step_of_an_epoch_do_not_validate_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val: str | None, ended: int, kinds: list[str]
) -> None:
    """The validation is left to the group that goes on; without one the training has ended, if it has."""
    import ray.train

    from fcn_ray.training import loop
    from fcn_ray.training.step import Outcome

    worker, told = _worker(tmp_path, log_steps=100, **({"val": str(tmp_path / val)} if val else {}))
    worker.position.epoch, worker.position.step = ended, 3 * ended
    batch = {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.zeros((4, 8, 8), np.uint8)}

    def stream(*_: Any) -> Any:
        for number in range(3):
            if number == 2:
                worker.stopping.set()
            yield batch

    monkeypatch.setattr(loop, "_stream_share", stream)
    monkeypatch.setattr(ray.train, "report", lambda _: None)
    monkeypatch.setattr(worker, "step", lambda *_, stop: Outcome(0.5, True, stop))
    metrics = loop.train_epoch(worker)
    assert metrics is not None, "the epoch is complete"
    worker.position.epoch += 1
    stops = loop._end_epoch(worker, None, metrics | {"epoch": ended + 1, "step": worker.position.step})
    told = [record for record in told if record["kind"] != "step"]
    assert [record["kind"] for record in told] == kinds
    (saved,) = list_checkpoints(worker.job.config.out)
    assert (saved.epoch, saved.remaining, "val" in saved.metrics) == (ended + 1, None, False)
    assert stops == (kinds[-1] == "stopped")
    assert told[-1].get("folder", saved.folder) == saved.folder


def test_half_the_rate_goes_on_from_the_checkpoint_before_a_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's loop, with workers of this process in the place of Ray's."""
    from fcn_ray.training import job as training_job
    from fcn_ray.training.loop import save
    from fcn_ray.training.replica import Replica, build_network, build_optimizer
    from fcn_ray.training.startup import Orders, find_position

    first, told = _worker(tmp_path, optimizer__learning_rate=0.4, optimizer__warmup_steps=0, optimizer__power=0)
    begun: list[tuple[float, int, float]] = []

    class Group:
        def __init__(self, job: Any, count: int, place: Any, factor: float, hear: Any) -> None:
            self.orders = Orders(job, place, factor, hear, None, {})

        def wait(self, seconds: float) -> bool:
            job, factor = self.orders.job, self.orders.rate_factor
            model, _ = build_network(job, {})
            optimizer = build_optimizer(job.config, job.steps_per_epoch, model, frozenset(), factor)
            optimizer.build(model.trainable_variables)
            replica = Replica(first.replica.strategy, model, optimizer, 0, 1)
            begun.append((factor, find_position(replica, self.orders).step, float(optimizer.learning_rate)))
            if self.orders.resume_from is None:
                first.orders = self.orders
                variable = first.replica.model.variables[0]
                variable.assign(np.full(variable.shape, 7.0, np.float32))
                save(first)
                raise DivergedError("the loss is nan")
            for name, array in first.replica.arrays().items():
                np.testing.assert_array_equal(replica.arrays()[name], array, err_msg=name)
            self.orders.tell({"kind": "trained"})
            return True

    monkeypatch.setattr(training_job, "Group", Group)
    monkeypatch.setattr(training_job, "wait_again", lambda _: 1)
    training_job._run_groups(first.job, 1, told.append)
    assert begun == [(1.0, 0, pytest.approx(0.4)), (0.5, 4, pytest.approx(0.2))]
    assert told[-2]["message"] == "the loss is nan. Back to the last checkpoint, with 0.5 times the learning rate"
