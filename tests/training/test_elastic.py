"""What the driver does when nodes go and come back while a training runs. Real nodes: test_node_loss.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import ControllerError, WorkerGroupError

from fcn_ray import cluster, storage
from fcn_ray.errors import DataError, DivergedError, IncompleteError, ResourceError, StorageError
from fcn_ray.training import job as training_job
from fcn_ray.training import room as training_room
from fcn_ray.training.checkpoints import Checkpoint, save_checkpoint
from fcn_ray.training.divergence import Divergence
from fcn_ray.training.group import Group
from fcn_ray.training.preflight import Job, prepare
from tests.training.making import tiny_config, write_data

pytestmark = [pytest.mark.ray, pytest.mark.keras]


class _Silent:
    """A group whose workers go on for ever; it keeps what is asked of it."""

    def __init__(self, looks: int) -> None:
        self.left = looks
        self.asked: list[str] = []

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0

    def abort(self) -> None:
        self.asked.append("abort")

    def ask_to_stop(self) -> None:
        self.asked.append("stop")


@pytest.mark.parametrize(
    ("rooms", "free", "held", "asked", "most"),
    [
        ([2] * 9, 9, False, [], None),
        ([1] * 9, 9, False, [], None),
        ([3, 3, 3, 3], 1, False, ["stop"], 3),
        ([3, 2, 3, 3, 2], 1, False, [], None),
        ([9, 9, 9], 9, False, ["stop"], 4),
        ([9, 9, 9], 1, False, ["stop"], 3),
        ([9] * 9, 0, False, [], None),
        ([9] * 9, 9, True, [], None),
    ],
)
def test_a_group_makes_place_for_one_that_fits_the_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rooms: list[int],
    free: int,
    held: bool,
    asked: list[str],
    most: int | None,
) -> None:
    """Two workers of four: one node more could take a third, unless another job has it or had it just now; one less
    ends the group by itself, if it must end."""
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out", workers__count=4, workers__min_count=1))
    monkeypatch.setattr(training_job, "LOOK_SECONDS", 0.0)
    left = iter(rooms)
    monkeypatch.setattr(training_job, "count_room", lambda _: next(left))
    monkeypatch.setattr(training_job, "count_free", lambda _: free)
    group = _Silent(len(rooms))
    past = training_job._Past(Divergence(), held_until=time.monotonic() + 60 if held else 0.0)
    training_job._run_group(job, group, 2, {}, past)
    assert (group.asked, past.most) == (asked, most)


class WorkerGroupStartupTimeoutError(Exception):
    """As Ray Train names it."""


def _run_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, **flags: int
) -> tuple[list[int], list[str], BaseException | None]:
    """Sizes of the groups, warnings and end of a job on nodes for four workers, of which only `room` are free."""
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out", workers__count=4, **flags))
    told: list[dict[str, Any]] = []

    class Crowded:
        def __init__(self, job: Job, count: int, place: object, factor: float, hear: Callable[..., None]) -> None:
            self.count, self.hear = count, hear

        def wait(self, seconds: float) -> bool:
            if self.count > room:
                raise ControllerError(WorkerGroupStartupTimeoutError("timed out"))
            self.hear({"kind": "trained"})
            return True

    monkeypatch.setattr(training_job, "Group", Crowded)
    monkeypatch.setattr(training_room, "count_room", lambda _: 4)
    monkeypatch.setattr(training_room, "count_free", lambda _: 3)  # of which one is on a node too small for a worker
    end = None
    try:
        training_job._run_groups(job, 4, told.append)
    except IncompleteError as error:
        end = error
    sizes = [record["count"] for record in told if record["kind"] == "workers"]
    return sizes, [record["message"] for record in told if record["kind"] == "warning"], end


def test_workers_that_find_no_room_beside_another_job_are_started_as_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No failure of theirs: not even max_failures 0 ends the training."""
    sizes, said, end = _run_groups(tmp_path, monkeypatch, 2, workers__min_count=1)
    assert (sizes, end) == ([4, 3, 2], None)
    assert said[1] == "no room for 3 workers after all, as other jobs run here: starting with 2"
    sizes, _, end = _run_groups(tmp_path, monkeypatch, 2, workers__min_count=3, workers__max_failures=2)
    assert sizes == [4, 3, 3, 3], "while it is held no larger one is tried again"
    assert "failed 3 times" in str(end)


def test_what_is_free_is_what_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    free = [cluster.count_free(cpus=cpus, gpus=gpus) for cpus, gpus in [(1, 0), (2, 0), (1, 1), (1, 0.5), (4, 0)]]
    assert free == [3, 1, 1, 2, 0]
    monkeypatch.setattr(ray, "available_resources", lambda: {})
    assert (cluster.count_free(cpus=1, gpus=0), cluster.count_free(cpus=1, gpus=1)) == (0, 0)


@pytest.mark.usefixtures("ray_session")
def test_a_group_that_is_aborted_ends_with_an_error_and_without_a_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(write_data(tmp_path), tmp_path / "out", epochs=1000, checkpoint_steps=0, val_every=1000)
    job = prepare(config)
    storage.replace(f"{job.config.out}/config.yaml", b"")
    stepped = threading.Event()
    group = Group(job, 1, None, 1.0, lambda record: stepped.set() if record["kind"] == "step" else None)
    assert stepped.wait(120)
    group.abort()
    with pytest.raises(Exception, match=r"(?s)died|dead|exit"):
        assert group.wait(60)


def _past_of(tmp_path: Path, *errors: Exception) -> tuple[list[str], training_job._Past]:
    """What is said of the errors, one after the other."""
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out", workers__max_failures=1))
    past = training_job._Past(Divergence(), rate_factor=1.0)
    return [training_job._survive(job, past, 1, error) for error in errors], past


def test_a_divergence_goes_back_and_the_next_one_further(tmp_path: Path) -> None:
    said, past = _past_of(tmp_path, DivergedError("x"), DivergedError("x"))
    assert said == [
        "x. Back to the last checkpoint, with 0.5 times the learning rate",
        "x. Back to the checkpoint before the last, with 0.25 times the learning rate",
    ]
    assert (past.rate_factor, past.divergence.rollbacks) == (0.25, 2)
    with pytest.raises(DivergedError):
        _past_of(tmp_path, *[DivergedError("x")] * 3)


def test_a_storage_that_fails_once_is_tried_again_and_a_mistake_is_not(tmp_path: Path) -> None:
    said, _ = _past_of(tmp_path, StorageError("a hiccup"))
    assert said == ["workers failed (a hiccup); starting again from the last checkpoint"]
    with pytest.raises(StorageError, match="another"):
        _past_of(tmp_path, StorageError("a hiccup"), StorageError("another"))
    with pytest.raises(DataError, match="row 7"):
        _past_of(tmp_path, DataError("row 7"))
    with pytest.raises(IncompleteError, match="the workers failed 2 times, the last time with: gone"):
        _past_of(tmp_path, RuntimeError("gone"), RuntimeError("gone"))


def test_a_mistake_of_the_code_is_not_tried_again_but_a_death_is(tmp_path: Path) -> None:
    """Whatever the other workers raise once one of them is gone."""
    mistake = WorkerGroupError("KeyError: 'model/x'", {0: KeyError("model/x"), 1: RuntimeError("peer gone")})
    with pytest.raises(WorkerGroupError, match="model/x"):
        _past_of(tmp_path, mistake)
    in_a_task = ray.exceptions.RayTaskError("read", "", TypeError("2 arguments")).as_instanceof_cause()
    with pytest.raises(WorkerGroupError):
        _past_of(tmp_path, WorkerGroupError("in a task of the input", {1: in_a_task}))
    peer = RuntimeError("connection lost")
    peer.__context__ = KeyError("looked up by a library")
    death = WorkerGroupError("gone", {0: ray.exceptions.ActorDiedError(), 1: ValueError("closed")})
    others = [WorkerGroupError(str(failure), {0: failure}) for failure in (peer, MemoryError())]
    for error in (death, RuntimeError("ended without a word"), *others):
        assert _past_of(tmp_path, error)[0][0].startswith("workers failed")


@pytest.mark.usefixtures("ray_session")
def test_room_that_does_not_come_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    config = tiny_config(write_data(tmp_path), tmp_path / "out", workers__cpus=50, workers__wait_seconds=1.5)
    with pytest.raises(
        ResourceError, match=r"1 workers of 50 CPUs each do not fit.* after 1\.5 s; workers.wait_seconds waits"
    ):
        training_room.wait_for_room(prepare(config))


def test_whoever_stops_a_training_hears_of_its_last_checkpoint() -> None:
    """Also when a validation after it took longer than the driver waits."""
    saved, stopped, lost = {"folder": "a"}, {"folder": "b"}, {"folder": None}
    for told, text in [
        ({"checkpoint": saved, "stopped": stopped}, "checkpoint b"),
        ({"checkpoint": saved}, "last checkpoint a"),
        ({"checkpoint": saved, "stopped": lost}, "no checkpoint of the last steps"),
        ({}, "no checkpoint of the last steps"),
    ]:
        assert training_job._describe_last(told) == text


def test_a_training_whose_checkpoints_are_all_damaged_does_not_start_anew_in_silence(tmp_path: Path) -> None:
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out"))
    assert training_job._find_place(job, ()) is None
    saved = [save_checkpoint(job.config.out, Checkpoint("", 1, step, None, "", {}), {}) for step in (3, 4)]
    assert training_job._find_place(job, {saved[0].name, saved[1].name}) is None, "after a divergence it may"
    for checkpoint in saved:
        (Path(checkpoint.folder) / "state.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=r"none of the 2 checkpoints in .*/out/checkpoints can be read back"):
        training_job._find_place(job, ())
    with pytest.raises(StorageError, match="none of the 1 checkpoints"):
        training_job._find_place(job, {saved[1].name})
