from __future__ import annotations

import json
from pathlib import Path

from fcn_ray.tables.attempts import Attempts

CHUNK = "0" * 32


def _attempt(root: Path, job: str = "job", node: str = "node", alive: tuple[str, ...] = ("node", "other")) -> Attempts:
    return Attempts(str(root), CHUNK, job, node, alive)


def test_the_image_that_was_marked_last_killed_the_process(tmp_path: Path) -> None:
    first = _attempt(tmp_path)
    assert first.crashed == set()
    first.begin(0)
    first.begin(3)
    second = _attempt(tmp_path, node="other")
    assert second.crashed == {3}
    second.begin(4)
    assert _attempt(tmp_path).crashed == {3, 4}


def test_nothing_is_to_blame_when_all_went_through(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path)
    attempt.begin(7)
    attempt.end()
    assert _attempt(tmp_path).crashed == set()


def test_an_image_is_not_to_blame_for_the_end_of_a_node_or_a_job(tmp_path: Path) -> None:
    _attempt(tmp_path).begin(2)
    assert _attempt(tmp_path, alive=("other",)).crashed == set()
    assert _attempt(tmp_path, job="next").crashed == set()
    assert _attempt(tmp_path).crashed == {2}


def test_the_next_job_knows_what_crashed_before(tmp_path: Path) -> None:
    _attempt(tmp_path).begin(2)
    _attempt(tmp_path).begin(5)
    assert _attempt(tmp_path, job="next").crashed == {2}


def test_a_mark_that_says_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "attempts").mkdir()
    for text in ("", "[]", "{", json.dumps({"row": "x", "crashed": ["y"], "job": "job", "node": "node"})):
        (tmp_path / "attempts" / f"{CHUNK}.json").write_text(text)
        assert _attempt(tmp_path).crashed == set()
