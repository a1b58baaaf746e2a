from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import ConfigError, UnavailableError
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import absolute_input, check_input, locate_sources, reaches_into, understand_input
from fcn_ray.tables.plan import extend_plan, pending_chunks, preview_plan, read_chunk
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.runs import open_run
from fcn_ray.tables.sources import Listing, list_inputs
from tests.s3 import Shim, answer
from tests.tables.making import IDENTITY, LABELS, write_images, write_table


def _paths(uri: str) -> list[str]:
    return [source.path for source in list_inputs(absolute_input(uri))]


# ------------------------------------------------------------------------------------------------------------ patterns


def test_a_pattern_gives_the_files_that_fit_by_path_below_its_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "in/b/1.jpg", "in/b/c/2.jpg", "in/0.jpg", "in/b/3.png", "in/.h.jpg", "in/_d/4.jpg")
    write_table(tmp_path / "in" / "b" / "t.parquet", 2)
    (tmp_path / "in" / "b" / "notes.txt").touch()
    assert _paths(f"{tmp_path}/in/**/*.jpg") == ["0.jpg", "b/1.jpg", "b/c/2.jpg"]
    assert _paths(f"{tmp_path}/in/b/[0-9].*") == ["1.jpg", "3.png"]
    listing = Listing()
    found = [source.path for source in list_inputs(f"{tmp_path}/in/**/[!b]*", listing)]
    assert found == ["0.jpg", "b/1.jpg", "b/3.png", "b/c/2.jpg", "b/t.parquet"]
    assert listing.skipped == {".txt": 1, "(hidden)": 1, "(_folder)": 1}, "what does not fit is not left out"


def test_a_run_over_a_pattern_keeps_the_pattern_and_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "in/a/1.png", "in/b/2.png", "in/b/3.gif")
    monkeypatch.chdir(tmp_path)
    run = open_run("out", "in/*/*.png", IDENTITY, LABELS)
    assert run.input == f"{tmp_path}/in/*/*.png"
    assert preview_plan(run.uri, run.input, ChunkConfig(), Columns()).rows == 2
    log = extend_plan(run.uri, run.input, ChunkConfig(), Columns())
    (chunk,) = pending_chunks(log)
    rows = read_rows(understand_input(run.input), read_chunk(run.uri, chunk), Columns()).to_pylist()
    assert [(row["image_id"], row["image"]) for row in rows] == [
        (name, (tmp_path / "in" / name).read_bytes()) for name in ("a/1.png", "b/2.png")
    ]
    write_images(tmp_path, "in/c/0.png")
    assert open_run("out", "in/*/*.png", IDENTITY, LABELS) == run
    assert extend_plan(run.uri, run.input, ChunkConfig(), Columns()).new_rows == 1


def test_what_really_has_that_name_comes_before_a_pattern(tmp_path: Path) -> None:
    write_images(tmp_path, "a[1]/x.png", "a1/y.png", "b?.png", "bc.png")
    assert _paths(f"{tmp_path}/a[1]") == ["x.png"]
    assert locate_sources(understand_input(f"{tmp_path}/a[1]"))("x.png") == f"{tmp_path}/a[1]/x.png"
    assert _paths(f"{tmp_path}/b?.png") == ["b?.png"]
    assert _paths(f"{tmp_path}/a[1]/*.png") == ["a1/y.png"], "of a part alone it is not asked"
    assert _paths(f"{tmp_path}/a[[]1]/*.png") == ["a[1]/x.png"]


def test_a_link_of_such_a_name_is_where_it_leads(tmp_path: Path) -> None:
    write_images(tmp_path, "in/a.png")
    (tmp_path / "in[1]").symlink_to(tmp_path / "in")
    assert absolute_input(f"{tmp_path}/in[1]") == f"{tmp_path}/in"
    with pytest.raises(ConfigError, match="lie in one another"):
        open_run(f"{tmp_path}/in/masks", f"{tmp_path}/in[1]", IDENTITY, LABELS)


def test_a_pattern_of_nothing_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, "in/a.png")
    for uri in (f"{tmp_path}/in/*.jpg", f"{tmp_path}/nowhere/*.png"):
        for look in (check_input, lambda uri: next(list_inputs(uri))):
            with pytest.raises(ConfigError, match=r"no file below .* fits the pattern \*\.(jpg|png)"):
                look(uri)
    with pytest.raises(ConfigError, match="no file below"):
        open_run(f"{tmp_path}/out", f"{tmp_path}/in/*.jpg", IDENTITY, LABELS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pattern", "output", "apart"),
    [
        ("in/*.png", "in/masks", True),
        ("in/**/*.png", "in/masks", False),
        ("in/m*/*/*/*.png", "in/masks", False),
        ("in/[a-c]/*.png", "in/masks", True),
        ("in/*.png", "in", False),
        ("in/*.png", ".", False),
        ("in/*.png", "in-masks", True),
    ],
)
def test_masks_never_become_input_of_a_pattern(tmp_path: Path, pattern: str, output: str, apart: bool) -> None:
    write_images(tmp_path, "in/a.png", "in/mb/c/d/e.png", "in/b/f.png")
    target = storage.absolute(f"{tmp_path}/{output}")
    assert reaches_into(f"{tmp_path}/{pattern}", target) != apart
    if not apart:
        with pytest.raises(ConfigError, match=f"lie in one another.*for example {tmp_path}/in-masks"):
            open_run(target, f"{tmp_path}/{pattern}", IDENTITY, LABELS)


@pytest.mark.s3
def test_patterns_of_a_store(s3: Shim) -> None:
    for key in ("2024-1/cam1/a.png", "2024-1/cam1/b.png", "2024-2/cam10/a.png", "2025/cam1/a.png", "x?/a.png"):
        storage.put_if_absent(f"s3://bucket/{key}", b"x")
    uri = "S3://bucket/2024-*/cam?/*.png"
    assert absolute_input(uri) == "s3://bucket/2024-*/cam?/*.png"
    assert _paths(uri) == ["2024-1/cam1/a.png", "2024-1/cam1/b.png"]
    assert locate_sources(understand_input(absolute_input(uri)))("2024-1/cam1/a.png") == "s3://bucket/2024-1/cam1/a.png"
    assert _paths("s3://bucket/x?") == ["a.png"]
    for signed in ("s3://bucket/a.png?X-Amz-Signature=12/3", "s3://bucket/*.png?versionId=1"):
        with pytest.raises(ConfigError, match=r"png\?\.\.\.: give the plain URI") as error:
            absolute_input(signed)
        assert "12" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------- lists


def _list(tmp_path: Path, *lines: str, name: str = "list.txt") -> str:
    (tmp_path / name).write_bytes("\n".join(lines).encode())
    return f"@{tmp_path}/{name}"


def test_a_list_names_its_files_which_are_planned_by_name(tmp_path: Path) -> None:
    write_images(tmp_path, "in/b.png", "in/a b.png", "far/c.gif", "in/_d/.e.jpg")
    write_table(tmp_path / "t.parquet", 2)
    far = f"{tmp_path}/far/c.gif"
    uri = _list(
        tmp_path,
        *["\ufeff# a comment", "in/b.png\r", "", f"  {far} ", "t.parquet", "in/a b.png", "in/b.png", "in/_d/.e.jpg"],
        *["notes.md", "#in/b.png", "in/b.png"],
    )
    listing = Listing()
    (tmp_path / "notes.md").touch()
    found = {source.path: source.version for source in list_inputs(uri, listing)}
    assert list(found) == sorted([far, "in/_d/.e.jpg", "in/a b.png", "in/b.png", "t.parquet"])
    assert listing.skipped == {"(listed twice)": 2, ".md": 1}
    assert found[far] == storage.stat(far).version
    assert locate_sources(understand_input(uri))("in/b.png") == f"{tmp_path}/in/b.png"
    assert locate_sources(understand_input(uri))(far) == far


def test_a_run_over_a_list_takes_what_is_added_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "b.png", "a.png", "c.png")
    write_table(tmp_path / "t.parquet", 3)
    _list(tmp_path, "c.png", f"file://{tmp_path}/b.png", "t.parquet")
    monkeypatch.chdir(tmp_path)
    run = open_run("masks", "@list.txt", IDENTITY, LABELS)
    assert run.input == f"@{tmp_path}/list.txt"
    log = extend_plan(run.uri, run.input, ChunkConfig(), Columns())
    rows = [
        row
        for ref in pending_chunks(log)
        for row in read_rows(understand_input(run.input), read_chunk(run.uri, ref), Columns()).to_pylist()
    ]
    assert [(row["path"], row["row"], row["source_error"]) for row in rows] == [
        *[("c.png", 0, None), (f"file://{tmp_path}/b.png", 0, None)],
        *[("t.parquet", row, None) for row in range(3)],
    ]
    assert rows[1]["image"] == (tmp_path / "b.png").read_bytes()
    _list(tmp_path, "t.parquet", "a.png", "c.png")
    assert extend_plan(run.uri, run.input, ChunkConfig(), Columns()).new_rows == 1


def test_listed_files_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "z.parquet").mkdir()
    (tmp_path / "photos").mkdir()
    gone, odd, folder = "gone.png", "http://host/a.png", "z.parquet"
    log = extend_plan(
        f"{tmp_path}/run",
        _list(tmp_path, gone, "a.png", odd, folder, "photos", "x" * 300 + ".png"),
        ChunkConfig(),
        Columns(),
    )
    assert (log.rows, log.listing.n_quarantined) == (1, 5)
    reasons = {found.path: found.reason for found in log.listing.quarantined}
    assert "No such file" in reasons[gone]
    assert "http:// is not a place" in reasons[odd]
    assert "is a folder, and a list names files" in reasons[folder]


def test_lists_that_are_none(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "bytes.txt").write_bytes(b"a.png\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"there is no list .*/nowhere.txt; after @ comes a text file"):
        check_input(f"@{tmp_path}/nowhere.txt")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        next(list_inputs(f"@{tmp_path}/bytes.txt"))
    assert _paths(_list(tmp_path, "# nothing yet")) == []


def test_suffixes_without_end_are_counted_together(tmp_path: Path) -> None:
    listing = Listing()
    for number in range(300):
        listing.skip(f".{number}")
    assert len(listing.skipped) == 101
    assert listing.skipped.total() == 300
    assert listing.skipped["(other)"] == 200
    (tmp_path / f"x.{'y' * 30}").touch()
    assert list(list_inputs(str(tmp_path), listing)) == []
    assert listing.skipped["(other)"] == 201


def test_masks_beside_a_list_are_no_input(tmp_path: Path) -> None:
    assert not reaches_into(f"@{tmp_path}/list.txt", f"{tmp_path}/masks")
    assert reaches_into(f"@{tmp_path}/masks/list.txt", f"{tmp_path}/masks")


@pytest.mark.s3
def test_a_list_in_a_store(s3: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put_if_absent("s3://bucket/in/b.png", b"image")
    storage.put_if_absent("s3://bucket/list.txt", b"in/b.png\ns3://bucket/in/b.png\ns3://nobody/a.png\nin/gone.png\n")
    listing = Listing()
    assert [source.path for source in list_inputs("@s3://bucket/list.txt", listing)] == [
        "in/b.png",
        "s3://bucket/in/b.png",
    ]
    assert {found.path for found in listing.quarantined} == {"s3://nobody/a.png", "in/gone.png"}
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    s3.fail("HEAD", always=answer("503 Slow Down", "SlowDown"))
    with pytest.raises(UnavailableError):
        list(list_inputs("@s3://bucket/list.txt"))
