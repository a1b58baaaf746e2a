"""Cut a CamVid table (columns image, mask, name, split) into what the benchmarks need.

python tests/benchmarks/camvid.py CAMVID.parquet OUT

OUT/train.parquet, val.parquet, test.parquet   the published split (367, 101, 233), with the input's metadata
OUT/images/part-*.parquet                      all 701 images twice, in 8 files with row groups of 64: 1,402 rows
OUT/images10/part-*.parquet                    the same ten times over, in 80 files: 14,020 rows
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROW_GROUP = 64


def write_splits(table: pa.Table, out: Path) -> None:
    """One file for each split."""
    for split in ("train", "val", "test"):
        part = table.filter(pc.equal(table["split"], split))
        pq.write_table(part, out / f"{split}.parquet", row_group_size=32, compression="none")
        print(f"{split}: {part.num_rows} images")


def write_parts(table: pa.Table, folder: Path, files: int, copies: int) -> None:
    """`copies` of all images, spread over `files` files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [index % table.num_rows for index in range(copies * table.num_rows)]
    size = -(-len(rows) // files)
    for number in range(files):
        part = table.select(["image", "name"]).take(rows[number * size : (number + 1) * size])
        pq.write_table(part, folder / f"part-{number:03}.parquet", row_group_size=ROW_GROUP, compression="none")
    print(f"{folder.name}: {len(rows)} images in {files} files")


def main() -> None:
    """Read the arguments, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.camvid)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_splits(table, arguments.out)
    write_parts(table, arguments.out / "images", files=8, copies=2)
    write_parts(table, arguments.out / "images10", files=80, copies=20)


if __name__ == "__main__":
    main()
