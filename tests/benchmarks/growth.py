"""Images a second of a labelling job by the number of its images, with the null model: does the engine stay as fast?

python -m tests.benchmarks.growth BUNDLE IMAGES WORK [--files 8 80 400] [--rounds 1]

IMAGES is a folder of Parquet files (camvid.py makes `images10` with 80 of 1,402 images in eight); where there are more
files than it has, they are linked again under other names. Rates are between the first and the last committed chunk.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from tests.benchmarks.beside_peers import OURS, label
from tests.benchmarks.rounds import Outcome, Outcomes, median, print_table, ratio


def link(images: Path, folder: Path, count: int) -> Path:
    """`count` files, those of `images` again and again."""
    source = sorted(images.glob("*.parquet"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        os.link(source[number % len(source)], folder / f"{number:05}.parquet")
    return folder


def main() -> None:
    """Measure what has no outcome yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--files", type=int, nargs="+", default=[8, 80, 400])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    work, bundle = options.work.resolve(), str(options.bundle.resolve())
    outcomes = Outcomes(work / "outcomes.jsonl")

    def measure(count: str, _: int) -> Outcome:
        return label(
            OURS, bundle, link(options.images, work / "in", int(count)), work / "out", ["--model", "null"], work
        )

    counts = [str(count) for count in options.files]
    outcomes.run("growth", counts, options.rounds, measure)
    first, rows = outcomes.of("growth", counts[0]), []
    for count in counts:
        found = outcomes.of("growth", count)
        cells = [
            median(found, "images", 0),
            median(found, "images_per_second"),
            ratio(found, first, "images_per_second"),
        ]
        rows.append([*cells, median(found, "cpu_per_image", 2, 1000), median(found, "peak_bytes", 0, 2**-20)])
    print_table("### growth", ["images", "images/s", "over the fewest", "CPU ms/image", "peak MiB"], rows)


if __name__ == "__main__":
    main()
