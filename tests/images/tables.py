"""Rows 33 to 39 and 41 of the catalogue: tables, what is wrong with them, and the rows that must come out."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.tables.columns import Columns
from tests.images import pngs, strangers
from tests.images.bitmaps import bmp
from tests.images.case import noise, written
from tests.images.folders import STRUCT, Folder, good, ok, table


def folders() -> Iterator[Folder]:
    """All of them."""
    for part in (_bad_tables, _mixed_tables, _tables_without_images, _flipped_pages):
        yield from part()
    for part in (_large_columns, _absurd_pages, _ids):
        yield from part()


def _bad_tables() -> Iterator[Folder]:
    """A table that cannot be opened is named and counted; the others go on."""

    def beside(name: str, data: bytes) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            table(folder / "m.parquet")
            (folder / name).write_bytes(data)

        return make

    reason = "not a readable Parquet file"
    for name in ("a.parquet", "z.parquet"):
        yield Folder(33, f"zero bytes in {name}", beside(name, b""), ok("m.parquet"), {name: reason})
    yield Folder(33, "four bytes", beside("a.parquet", b"PAR1"), ok("m.parquet"), {"a.parquet": reason})
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), buffer)
    yield Folder(33, "a table of no rows", beside("a.parquet", buffer.getvalue()), ok("m.parquet"))
    buffer = io.BytesIO()
    count = 97  # as many that no other number of the footer is written in the same bytes
    pq.write_table(pa.table({"image": [good(row) for row in range(count)]}), buffer, use_dictionary=False)
    whole = buffer.getvalue()
    (footer,) = struct.unpack("<I", whole[-8:-4])
    start = len(whole) - 8 - footer
    said = whole.index(b"\x16\xc2\x01", start)  # zigzag 97, as 64 bits
    damaged = {
        "cut by four bytes": whole[:-4],
        "cut in half": whole[: len(whole) // 2],
        "cut before its footer": whole[:start],
        "footer of zeros": whole[:start] + bytes(footer) + whole[-8:],
        "footer of its own length too little": whole[:-8] + struct.pack("<I", footer // 2) + whole[-4:],
        "footer longer than the file": whole[:-8] + struct.pack("<I", 2**31 - 1) + whole[-4:],
        "footer of no bytes": whole[:-8] + bytes(4) + whole[-4:],
        "another mark": whole[:-1] + b"2",
        "encrypted": whole[:-4] + b"PARE",
        "half of it zeros": whole[: len(whole) // 2] + bytes(len(whole) // 2),
        "html": strangers.HTML,
        "a picture": written(noise(34, 24, 17, 3), "PNG"),
        "footer that contradicts itself": whole[:said] + b"\x16\xc4\x01" + whole[said + 3 :],
    }
    for name, data in damaged.items():
        yield Folder(34, name, beside("a.parquet", data), ok("m.parquet"), {"a.parquet": reason})


def _mixed_tables() -> Iterator[Folder]:
    """Tables of one folder may differ in all but holding images."""
    images = [good(row) for row in range(6)]
    structs = [{"bytes": image, "path": None} for image in images]
    forms: dict[str, Any] = {
        "bytes": pa.array(images, pa.binary()),
        "large": pa.array(images, pa.large_binary()),
        "view": pa.array(images, pa.binary_view()),
        "dictionary": pa.array(images).dictionary_encode(),
        "struct": pa.array(structs, STRUCT),
        "struct_of_large": pa.array([{"bytes": image} for image in images], pa.struct([("bytes", pa.large_binary())])),
        "paths": pa.array(["near.png"] * 6),
        "struct_of_paths": pa.array([{"bytes": None, "path": "near.png"}] * 6, STRUCT),
    }
    ids: dict[str, Any] = {
        "bytes": pa.array(range(6), pa.int64()),
        "large": pa.array(list("abcdef")),
        "dictionary": pa.array(list("ababab")).dictionary_encode(),
        "struct": pa.array(range(6), pa.uint8()),
    }

    def make(folder: Path) -> None:
        (folder / "near.png").write_bytes(good())
        for name, cells in forms.items():
            table(folder / f"{name}.parquet", cells, **({"key": ids[name]} if name in ids else {}))

    rows = {("near.png", 0): "ok"}
    for name in forms:
        rows |= ok(f"{name}.parquet")
    yield Folder(35, "every form of images in one folder", make, rows)
    for name, cells in forms.items():

        def one(folder: Path, name: str = name, cells: Any = cells) -> None:
            (folder / "near.png").write_bytes(good())
            table(folder / "a.parquet", forms["bytes"], key=ids["bytes"])
            table(folder / "b.parquet", cells, key=ids["large"])

        rows = {**ok("a.parquet"), **ok("b.parquet"), ("near.png", 0): "ok"}
        named = (*map(str, range(6)), *"abcdef", "near.png")
        yield Folder(35, f"bytes and {name}, ids of two types", one, rows, columns=Columns(id="key"), ids=named)
    holes = [images[0], None, b"", b"<html>"]
    statuses = ("ok", "null", "empty", "not_image")
    for name, cells in {
        "bytes": pa.array(holes, pa.binary()),
        "struct": pa.array([cell if cell is None else {"bytes": cell, "path": None} for cell in holes], STRUCT),
        "struct of nulls": pa.array([{"bytes": cell, "path": None} for cell in holes], STRUCT),
    }.items():
        rows = {("t.parquet", row): status for row, status in enumerate(statuses)}
        yield Folder(35, f"holes in {name}", lambda folder, cells=cells: table(folder / "t.parquet", cells), rows)


def _tables_without_images() -> Iterator[Folder]:
    others: dict[str, tuple[Any, str]] = {
        "another column": (pa.table({"a": [1]}), "no column holds images"),
        "numbers": (pa.table({"image": [1, 2]}), "no column holds images"),
        "lists": (pa.table({"image": [[1, 2]]}), "no column holds images"),
        "structs of numbers": (pa.table({"image": [{"bytes": 1, "path": "a"}]}), "no column holds images"),
        "two columns": (pa.table({"a": [b"x"], "b": [b"x"]}), "could all hold the images"),
        "masks alone": (pa.table({"mask": [good()]}), "no column holds images"),
    }
    for name, (content, reason) in others.items():

        def make(folder: Path, content: pa.Table = content) -> None:
            table(folder / "m.parquet")
            pq.write_table(content, folder / "a.parquet")

        yield Folder(36, name, make, ok("m.parquet"), {"a.parquet": reason})


def _flipped_pages() -> Iterator[Folder]:
    """One bit of a page: its row group has no images, the others theirs."""
    checked = {"write_page_checksum": True, "write_statistics": False}
    lost = {**ok("t.parquet"), **{("t.parquet", row): "unreadable" for row in (3, 4, 5)}}
    for compression in ("none", "snappy", "zstd", "gzip"):
        for column in (0, 1):

            def make(folder: Path, compression: str = compression, column: int = column) -> None:
                names = [f"a name that takes some room, {row}" for row in range(6)]
                data = table(folder / "t.parquet", name=names, compression=compression, **checked)
                leaf = pq.read_metadata(folder / "t.parquet").row_group(1).column(column)
                place = leaf.data_page_offset + leaf.total_compressed_size - 9
                (folder / "t.parquet").write_bytes(_flip(data, place))

            yield Folder(37, f"{compression}, column {column}", make, lost)

    def unchecked(folder: Path) -> None:
        data = table(folder / "t.parquet", compression="none", write_statistics=False)
        (folder / "t.parquet").write_bytes(_flip(data, data.index(good(4)) + 45))

    rows = {**ok("t.parquet"), ("t.parquet", 4): "corrupt"}
    yield Folder(37, "without checksums, a PNG has its own", unchecked, rows)


def _large_columns() -> Iterator[Folder]:
    """What 2 GiB in a column do is in tests/tables/test_reading.py; here are 36 MB, more than is read at once."""
    image = bmp([bytes(12)] * 4, (4, 4), 24) + bytes(2_000_000)
    for name, cells in {
        "bytes": pa.array([image] * 18),
        "struct": pa.array([{"bytes": image, "path": None}] * 18, STRUCT),
    }.items():

        def make(folder: Path, cells: Any = cells) -> None:
            table(folder / "t.parquet", cells, group=18, compression="none", write_statistics=False)

        yield Folder(38, f"36 MB in one row group of {name}", make, ok("t.parquet", 18))


def _absurd_pages() -> Iterator[Folder]:
    lost = {**ok("t.parquet"), **{("t.parquet", row): "unreadable" for row in (3, 4, 5)}}
    for compression in ("snappy", "zstd"):
        for field_name, value in (
            *(("uncompressed", size) for size in (2**31 - 1, 2**30, 0, -1, -(2**31))),
            *(("compressed", size) for size in (2**31 - 1, 2**30, 0, -1)),
            *(("kind", kind) for kind in (1, 2, 3, 7)),
        ):

            def make(
                folder: Path, compression: str = compression, change: tuple[str, int] = (field_name, value)
            ) -> None:
                data = table(folder / "t.parquet", compression=compression)
                place = pq.read_metadata(folder / "t.parquet").row_group(1).column(0).data_page_offset
                (folder / "t.parquet").write_bytes(page_header_changed(data, place, *change))

            yield Folder(39, f"{field_name} {value} in a page of {compression}", make, lost)


def page_header_changed(data: bytes, place: int, name: str, value: int) -> bytes:
    """Another kind or size in the page header at `place`; the statistics in it give the room that the number takes."""
    spans, position = {}, place
    for known in ("kind", "uncompressed", "compressed"):  # each a mark and a zigzag number of 7 bits a byte
        assert data[position] == 0x15
        end = position + 1
        while data[end] > 127:
            end += 1
        spans[known], position = (position + 1, end + 1), end + 1
    number, rest = b"", (value << 1) ^ (value >> 63)
    while rest > 127:
        number, rest = number + bytes([rest & 127 | 128]), rest >> 7
    number += bytes([rest])
    first, last = spans[name]
    more = len(number) - (last - first)
    text = data.index(pngs.SIGNATURE, position)  # the greatest value, after its length
    shorter = bytes([data[text - 1] - more])
    return data[:first] + number + data[last : text - 1] + shorter + data[text + more :]


def _ids() -> Iterator[Folder]:
    """An image is its path and row, whatever it is called."""
    for name, keys, ids in (
        ("all the same", ["x"] * 6, ("x",) * 6),
        ("some null", ["a", None, "a", None, "b", "b"], ("a", "t.parquet#1", "a", "t.parquet#3", "b", "b")),
        ("all null", pa.nulls(6, pa.string()), tuple(f"t.parquet#{row}" for row in range(6))),
        ("numbers", [1, 1, None, 2, 2, 0], ("1", "1", "t.parquet#2", "2", "2", "0")),
        (
            "like defaults",
            [f"t.parquet#{row}" for row in range(6)][::-1],
            tuple(f"t.parquet#{5 - r}" for r in range(6)),
        ),
    ):
        yield Folder(
            *(41, name, lambda folder, keys=keys: table(folder / "t.parquet", key=keys), ok("t.parquet")),
            columns=Columns(id="key"),
            ids=ids,
        )

    def two(folder: Path) -> None:
        for name in ("a.parquet", "b.parquet"):
            table(folder / name, key=["x", "y"] * 3)

    yield Folder(
        *(41, "the same in two tables", two, {**ok("a.parquet"), **ok("b.parquet")}),
        columns=Columns(id="key"),
        ids=("x", "y") * 6,
    )


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
