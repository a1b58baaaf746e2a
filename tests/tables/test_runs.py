import json
from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.errors import ConfigError, ForeignOutputError
from fcn_ray.labels import LabelSet
from fcn_ray.tables.runs import Run, check_run, fingerprint, open_run, run_uri, write_status
from tests.tables.making import IDENTITY, LABELS


def _open(root: Path, **changes) -> Run:
    (root / "in").mkdir(exist_ok=True)
    arguments = {"output": f"{root}/out", "input_uri": f"{root}/in", "identity": IDENTITY, "labels": LABELS}
    return open_run(**arguments | changes)


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    run = _open(tmp_path, about={"fcn_ray": "1.0"})
    assert run.uri == run_uri(f"{tmp_path}/out", run.run_id)
    assert json.loads(Path(run.uri, "run.json").read_text()) == {
        "run": run.run_id,
        "input": f"{tmp_path}/in",
        "identity": IDENTITY,
        "labels": json.loads(LABELS.to_json()),
        "schema_version": 1,
        "about": {"fcn_ray": "1.0"},
    }


def test_the_same_job_opens_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _open(tmp_path, identity={"a": (1, 2), "b": 3}, about={"version": 1})
    before = _files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert _open(tmp_path, identity={"b": 3, "a": [1, 2]}, output="out/", input_uri="./in", about={"version": 2}) == run
    assert _files(tmp_path) == before


def test_all_that_changes_a_mask_changes_the_run(tmp_path: Path) -> None:
    other_names, other_colours = LabelSet.from_names(["sky", "road", "bus"]), LabelSet(LABELS.names, ((0, 0, 0),) * 3)
    runs = [
        _open(tmp_path),
        _open(tmp_path, identity={**IDENTITY, "model": "beef"}),
        _open(tmp_path, labels=other_names),
        _open(tmp_path, labels=other_colours),
    ]
    assert len({run.uri for run in runs}) == 4


def test_fingerprints_are_the_same_for_ever() -> None:
    assert fingerprint(IDENTITY, LABELS) == "fce82272ef7b92ce"


@pytest.mark.parametrize("content", ["file", "photo", "strange run", "later photo"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    names = {"photo": "a.jpg", "strange run": "run=5/run.json", "later photo": f"run={'0' * 16}/a.jpg"}
    path = out / names[content] if content in names else out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = _files(tmp_path)
    with pytest.raises(ForeignOutputError, match=r"choose another output folder"):
        _open(tmp_path)
    assert _files(tmp_path) == before


def test_a_folder_without_files_is_free(tmp_path: Path) -> None:
    """As a job leaves it that was killed before it wrote run.json."""
    run = tmp_path / "out" / f"run={'0' * 16}"
    run.mkdir(parents=True)
    (run / ".tmp-run.json-0123").write_text("{")
    assert _open(tmp_path).run_id


def test_jobs_that_begin_a_run_at_once_are_both_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one begins the run after this one looked for runs, and before it looks for other files."""

    def list_nothing_and_begin(uri: str) -> list[str]:
        monkeypatch.undo()
        _open(tmp_path)
        return []

    monkeypatch.setattr(storage, "list_folders", list_nothing_and_begin)
    late = _open(tmp_path)
    assert late == _open(tmp_path)


def test_another_input_needs_another_output(tmp_path: Path) -> None:
    _open(tmp_path)
    (tmp_path / "other").mkdir()
    before = _files(tmp_path)
    with pytest.raises(ForeignOutputError, match=r"input is .*/in, not .*/other; choose another output"):
        _open(tmp_path, input_uri=f"{tmp_path}/other")
    with pytest.raises(ForeignOutputError, match=r"input is .*/in, not .*/other; choose another output"):
        check_run(f"{tmp_path}/out", f"{tmp_path}/other", IDENTITY, LABELS)  # a dry run says so too
    assert check_run(f"{tmp_path}/out", f"{tmp_path}/in", IDENTITY, LABELS) == _open(tmp_path).uri
    assert _files(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": "x", "input": "y"}'])
def test_a_run_that_cannot_be_understood(tmp_path: Path, text: str) -> None:
    Path(_open(tmp_path).uri, "run.json").write_text(text)
    with pytest.raises(ForeignOutputError, match=r"run.json (cannot be understood|is of another job)"):
        _open(tmp_path)


def test_a_changed_identity_in_the_same_place(tmp_path: Path) -> None:
    path = Path(_open(tmp_path).uri, "run.json")
    path.write_text(path.read_text().replace("feed", "beef"))
    with pytest.raises(ForeignOutputError, match=r"identity is .*beef.*, not .*feed"):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("output", "input_uri", "message"),
    [
        ("in/masks", "in", "lie in one another.*for example .*/in-masks"),
        ("in", "in", "lie in one another"),
        ("in", "in/deep", "lie in one another"),
        ("link/masks", "in", "lie in one another"),
        ("out", "nowhere", "nowhere does not exist"),
    ],
)
def test_inputs_and_outputs_that_cannot_be(tmp_path: Path, output: str, input_uri: str, message: str) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(ConfigError, match=message):
        _open(tmp_path, output=f"{tmp_path}/{output}", input_uri=f"{tmp_path}/{input_uri}")
    assert _files(tmp_path) == {}


def test_names_that_begin_alike_are_apart(tmp_path: Path) -> None:
    assert _open(tmp_path, output=f"{tmp_path}/in-masks").run_id


def test_status_is_replaced(tmp_path: Path) -> None:
    run = _open(tmp_path)
    for state in ("running", "complete"):
        write_status(run, {"state": state})
    assert json.loads(Path(run.uri, "status.json").read_text()) == {"state": "complete"}
