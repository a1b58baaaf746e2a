from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_ray import storage
from fcn_ray.errors import DivergedError, UnavailableError
from fcn_ray.training.checkpoints import (
    INDEX,
    STATE,
    Checkpoint,
    find_newest,
    is_whole,
    list_checkpoints,
    load_arrays,
    load_best,
    remove_old,
    remove_torn,
    save_checkpoint,
    save_score,
)
from tests.s3 import Shim, answer


def _save(run: Path | str, epoch: int, score: float | None = None) -> Checkpoint:
    arrays = {"model/a": np.full((2, 3), epoch, np.float32), "optimizer/step": np.array(epoch * 10)}
    return save_checkpoint(str(run), Checkpoint("", epoch, epoch * 10, score, "s", {"loss": 0.5}), arrays)


def test_the_newest_comes_back_whole(tmp_path: Path) -> None:
    assert find_newest(str(tmp_path)) is None
    _save(tmp_path, 1)
    saved = _save(tmp_path, 2, 0.25)
    found = find_newest(str(tmp_path))
    assert found == saved
    assert (found.epoch, found.step, found.score, found.metrics) == (2, 20, 0.25, {"loss": 0.5})
    arrays = load_arrays(found)
    assert arrays is not None
    np.testing.assert_array_equal(arrays["model/a"], np.full((2, 3), 2, np.float32))
    assert arrays["optimizer/step"] == 20


def _tear(folder: Path) -> None:
    (folder / INDEX).unlink()


def _flip(folder: Path) -> None:
    data = bytearray((folder / STATE).read_bytes())
    data[-1] ^= 1
    (folder / STATE).write_bytes(data)


def _garble(folder: Path) -> None:
    (folder / INDEX).write_bytes(b'{"epoch": 3')


def _lose(folder: Path) -> None:
    (folder / STATE).unlink()


@pytest.mark.parametrize("damage", [_tear, _flip, _garble, _lose])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: object) -> None:
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    damage(Path(newest.folder))  # type: ignore[operator]
    found = find_newest(str(tmp_path))
    assert found is not None
    assert found.epoch == 1
    assert load_arrays(newest) is None
    assert not is_whole(newest)


def test_a_state_is_verified_without_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver only chooses: a state of gigabytes must not go through its memory."""
    saved = _save(tmp_path, 1)
    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: b"" if uri.endswith(STATE) else read(uri))
    assert find_newest(str(tmp_path)) == saved


def _refuse(name: str) -> Callable[..., Any]:
    """A store that does not answer for files of this name."""

    def refuse(app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        refused = environ["PATH_INFO"].endswith(name)
        return (partial(answer("503 Slow Down", "SlowDown"), app) if refused else app)(environ, start_response)

    return refuse


@pytest.mark.s3
def test_an_outage_is_no_damage(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pass over a checkpoint because its store is silent would throw its steps away."""
    _save("s3://bucket/run", 1)
    saved = _save("s3://bucket/run", 2)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.05")

    s3.fail("GET", always=_refuse(STATE))
    with pytest.raises(UnavailableError):
        find_newest("s3://bucket/run")
    s3.fail("none")
    found = find_newest("s3://bucket/run")
    assert found == saved


def test_a_state_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="model/a is not finite after step 4"):
        save_checkpoint(str(tmp_path), Checkpoint("", 1, 4, None, "s", {}), {"model/a": np.array([1, np.nan])})
    assert list(tmp_path.iterdir()) == []


def test_old_ones_go_the_best_stays(tmp_path: Path) -> None:
    for epoch, score in enumerate([0.1, 0.9, 0.9, 0.2, 0.3, 0.4], start=1):
        _save(tmp_path, epoch, score)
    best = load_best(str(tmp_path))
    assert best is not None
    assert best[0].epoch == 2  # of equals the earlier
    remove_old(str(tmp_path), keep=2)
    assert [c.epoch for c in list_checkpoints(str(tmp_path))] == [2, 5, 6]
    _flip(Path(best[0].folder))
    second = load_best(str(tmp_path))
    assert second is not None
    assert second[0].epoch == 6  # the best of those that verify


def test_without_scores_the_newest_is_the_best(tmp_path: Path) -> None:
    assert load_best(str(tmp_path)) is None
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    best = load_best(str(tmp_path))
    assert best is not None
    assert best[0].epoch == 2


def test_one_that_is_not_trusted_is_passed_over(tmp_path: Path) -> None:
    older, newer = _save(tmp_path, 1), _save(tmp_path, 2)
    found = find_newest(str(tmp_path), {newer.name})
    assert found == older


def test_what_was_just_written_stays_though_damaged_ones_of_later_steps_lie_there(tmp_path: Path) -> None:
    for epoch in (3, 4):
        _lose(Path(_save(tmp_path, epoch).folder))
    written = _save(tmp_path, 2)
    remove_old(str(tmp_path), 1, written.folder)
    found = find_newest(str(tmp_path))
    assert found == written


def test_what_a_crash_left_of_checkpoints_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    remove_torn(str(tmp_path))
    whole, torn, garbled, without_state = (_save(tmp_path, epoch) for epoch in (1, 2, 3, 4))
    _tear(Path(torn.folder))
    _garble(Path(garbled.folder))
    _lose(Path(without_state.folder))
    begun = Path(whole.folder).parent / "00000050-0123abcd"
    begun.mkdir()
    (begun / ".tmp-1").write_bytes(b"half a state")
    remove_torn(str(tmp_path))
    assert sorted(begun.parent.iterdir()) == [Path(whole.folder), Path(without_state.folder)]


@pytest.mark.s3
def test_what_a_silent_store_does_not_show_is_not_deleted(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = _save("s3://bucket/run", 1)
    torn = _save("s3://bucket/run", 2)
    s3.fail("GET", always=_refuse(INDEX))
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.05")
    with pytest.raises(UnavailableError):
        remove_torn("s3://bucket/run")
    s3.fail("none")
    assert list_checkpoints("s3://bucket/run") == [saved, torn]


def test_a_score_lies_beside_the_state_and_may_be_damaged(tmp_path: Path) -> None:
    """A run of an older version has it in the index, as the other tests here do."""
    first, second = _save(tmp_path, 1, 0.5), _save(tmp_path, 2)
    save_score(second.folder, 0.75, {"loss": 0.5, "val": {}})
    found = list_checkpoints(str(tmp_path))
    assert [(c.folder, c.score, c.metrics) for c in found] == [
        (first.folder, 0.5, {"loss": 0.5}),
        (second.folder, 0.75, {"loss": 0.5, "val": {}}),
    ]
    best = load_best(str(tmp_path))
    assert best is not None
    assert best[0] == found[1]
    (Path(second.folder) / "score.json").write_text('{"score": 1')
    assert list_checkpoints(str(tmp_path)) == [first, second]
    save_score(second.folder, 0.25, {})
    assert list_checkpoints(str(tmp_path))[1].score == 0.25
