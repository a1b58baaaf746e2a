"""Rows 31, 32, 40 and 42 of the catalogue: folders, what is wrong with them, and the rows that must come out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.tables.columns import Columns
from fcn_ray.tables.sources import IMAGE_SUFFIXES
from tests.images import pngs, strangers
from tests.images.case import noise, written

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Rows = Mapping[tuple[str, int], str]


@dataclass(frozen=True, eq=False)
class Folder:
    """An input of catalogue row `row`: `make` fills a folder, `meanwhile` changes it between the plan and the reading.

    `rows` are the statuses by path and row; `quarantined` parts of the reasons by path, `skipped` counts by suffix;
    `ids` the image ids in the order of the rows, where they are no default.
    """

    row: int
    name: str
    make: Callable[[Path], object]
    rows: Rows
    quarantined: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    columns: Columns = Columns()  # noqa: RUF009
    meanwhile: Callable[[Path], object] = lambda folder: None
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.row} {self.name}"


def folders() -> Iterator[Folder]:
    """All of them."""
    for part in (_bad_files, _suffixes, _names, _changes):
        yield from part()


def good(seed: int = 0) -> bytes:
    """A picture of one pixel, in less than 128 bytes."""
    return pngs.png(noise(seed, 1, 1), 8, pngs.GREY)


def table(path: Path, images: Any = None, rows: int = 6, group: int = 3, **columns: Any) -> bytes:
    """Write `rows` good images, or `images`, and give the file's bytes."""
    options = {name: columns.pop(name) for name in tuple(columns) if name.startswith("write_") or name == "compression"}
    cells = [good(row) for row in range(rows)] if images is None else images
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.table({"image": cells, **columns})
    pq.write_table(content, path, row_group_size=group, use_dictionary=False, **options)
    return path.read_bytes()


def ok(path: str, rows: int = 6) -> dict[tuple[str, int], str]:
    return {(path, row): "ok" for row in range(rows)}


def _put(**files: bytes) -> Callable[[Path], None]:
    """Fill a folder; _ stands for the dot of a name."""

    def make(folder: Path) -> None:
        for name, data in files.items():
            (folder / name.replace("_", ".")).write_bytes(data)

    return make


def _bad_files() -> Iterator[Folder]:
    """One bad file among good ones: Ray's read_images loses the job."""
    jpeg = written(noise(31, 24, 17, 3), "JPEG")
    bad = {
        "truncated": jpeg[: len(jpeg) // 2],
        "not_image": strangers.HTML,
        "empty": b"",
        "format_denied": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "too_big": pngs.whole(pngs.header(10**5, 10**5, 8, pngs.RGB), pngs.chunk(b"IDAT", b"")),
        "corrupt": good()[:30] + bytes(4) + good()[34:],
    }
    for status, data in bad.items():
        for name in ("a_jpg", "b_jpg", "c_jpg"):
            files = {"a_jpg": good(), "b_jpg": good(), "c_jpg": good()} | {name: data}
            rows = {(file.replace("_", "."), 0): status if file == name else "ok" for file in files}
            yield Folder(31, f"{status} in {name}", _put(**files), rows)
    files = {f"{status}.png": data for status, data in bad.items()}

    def make(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    yield Folder(31, "nothing but bad files", make, {(name, 0): name.removesuffix(".png") for name in files})


def _suffixes() -> Iterator[Folder]:
    """Ray's read_images passes over files in silence."""
    for change in (str.lower, str.upper, str.title):
        names = [f"{number}{change(suffix)}" for number, suffix in enumerate(IMAGE_SUFFIXES)]

        def make(folder: Path, names: list[str] = names) -> None:
            for name in names:
                (folder / name).write_bytes(good())

        yield Folder(32, f"suffixes in {change.__name__}", make, {(name, 0): "ok" for name in names})

    def mixed(folder: Path) -> None:
        (folder / "deep" / "deeper").mkdir(parents=True)
        (folder / "_temporary").mkdir()
        for name in ("a.png", "deep/b.webp", "deep/deeper/c.JPG", "d.jfif", "e.heic", "f.HEIC", "README", "g.txt"):
            (folder / name).write_bytes(good())
        for name in (".h.png", "_temporary/i.png", "_j.png"):
            (folder / name).write_bytes(good())

    rows = {(name, 0): "ok" for name in ("_j.png", "a.png", "deep/b.webp", "deep/deeper/c.JPG")}
    skipped = {".jfif": 1, ".heic": 2, "(no suffix)": 1, ".txt": 1, "(hidden)": 1, "(_folder)": 1}
    yield Folder(32, "files of other suffixes are counted", mixed, rows, skipped=skipped)


NAMES = (
    *("a=b.png", "a#1.png", "a?b&c.png", "%2e%2e%2fa.png", "a b .png", " a.png", "a\tb.png", "a\nb.png", "a\r\nb.png"),
    *("'\".png", "<script>alert(1)<\\script>.png", "\u202egnp.png", "\u00e9.png", "e\u0301.png", "\u540d\u524d.png"),
    *("\U0001f600.png", "x" * 240 + ".png", "UPPER.PNG", "upper.png", "a..png", "con.png", "-rf.png", "$(touch x).png"),
    *("`x`.png", "a;b.png", "a|b.png", "a*b.png", "[a].png", "~.png", "C:\\a.png", "t.parquet#0.png", "\u0085.png"),
    *("run=1/a.png", "a=b/c.png", " /a.png", "\u202e/a.png", "a\n/b.png", "\ufeff.png", "{a}.png", "a'--.png", "^.png"),
)
"""Names that file systems take and other programs trip over."""


def _names() -> Iterator[Folder]:
    def make(folder: Path) -> None:
        for name in NAMES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(good())
        (folder / "..a.png").write_bytes(good())
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(good())

    yield Folder(
        40,
        "files",
        make,
        {(name, 0): "ok" for name in NAMES},
        quarantined={"\\udcff.png": "not UTF-8"},
        skipped={"(hidden)": 1},
    )
    cells = [
        *("../../nowhere.png", "/nowhere/at/all.png", "a\0b.png", "http://127.0.0.1:9/a.png", "s3://bucket/a.png"),
        *(
            "data:image/png;base64,AAAA",
            "file:///nowhere.png",
            "a\r\nb.png",
            "x" * 300 + ".png",
            "y/" * 3000,
            "%00.png",
        ),
        *("FILE://nowhere.png", "https://user:secret@host/a.png", "\u202e.png", "../" * 50 + "nowhere.png", ".", ".."),
    ]
    rows = {("t.parquet", row): "unreadable" for row in range(len(cells))}
    rows[("t.parquet", len(cells))] = "ok"

    def paths(folder: Path) -> None:
        (folder / "near.png").write_bytes(good())
        table(folder / "t.parquet", [*cells, "near.png"], group=100)

    yield Folder(40, "paths in a table", paths, {**rows, ("near.png", 0): "ok"})
    ids = ["../x", "/etc/passwd", "a\0b", "a\nb", "x" * 1000, ""]
    yield Folder(
        *(40, "ids", lambda folder: table(folder / "t.parquet", key=ids), ok("t.parquet")),
        columns=Columns(id="key"),
        ids=tuple(ids),
    )


def _changes() -> Iterator[Folder]:
    """Between the plan and the reading."""
    files = _put(a_png=good(), b_png=good(1), c_png=good(2))
    three = {("a.png", 0): "ok", ("c.png", 0): "ok"}

    def other(path: Path) -> None:
        path.write_bytes(good(9) + b"more")

    def folder_for(path: Path) -> None:
        path.unlink()
        path.mkdir()

    changes: dict[str, tuple[Callable[[Path], object], str]] = {
        "another file": (other, "changed"),
        "a longer file": (lambda path: path.write_bytes(path.read_bytes() + b"more"), "changed"),
        "a shorter file": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "changed"),
        "an empty file": (lambda path: path.write_bytes(b""), "changed"),
        "the same file of another time": (lambda path: os.utime(path, ns=(1, 1)), "changed"),
        "no file": (Path.unlink, "unreadable"),
    }
    for name, (change, status) in changes.items():
        yield Folder(
            *(42, f"{name} in its place", files, three | {("b.png", 0): status}),
            meanwhile=lambda folder, change=change: change(folder / "b.png"),
        )
        lost = {("t.parquet", row): status for row in range(6)}
        yield Folder(
            *(42, f"{name} in a table's place", lambda folder: table(folder / "t.parquet"), lost),
            meanwhile=lambda folder, change=change: change(folder / "t.parquet"),
        )
    yield Folder(
        *(42, "a folder in its place", files, three | {("b.png", 0): "unreadable"}),
        meanwhile=lambda folder: folder_for(folder / "b.png"),
    )
