from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from fcn_ray import storage
from fcn_ray.config import TrainConfig
from fcn_ray.datasets import class_lists, importing
from fcn_ray.datasets.import_report import MAX_NAMED, MAX_WRONG, ImportReport
from fcn_ray.datasets.importing import choose_splits, import_dataset, map_in_threads
from fcn_ray.datasets.layouts import open_layout
from fcn_ray.errors import ConfigError, DataError, ForeignOutputError, StorageError
from fcn_ray.images.codec import decode_label
from fcn_ray.labels import LabelSet
from tests.datasets.making import label, write, write_folders, write_image, write_label

VOID = 255


def _import(root: Path, format: str = "folders", **options: object) -> ImportReport:
    """`root`/in -> `root`/out."""
    return import_dataset(format, str(root / "in"), str(root / "out"), **options)


def _rows(folder: Path) -> dict[str, dict[str, bytes]]:
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["name"]: row for row in rows}


def _ids(row: dict[str, bytes]) -> list[int]:
    return list(dict.fromkeys(decode_label(row["mask"]["bytes"])[0].tolist()))


# ------------------------------------------------------------------------------------------------- what is taken in


def test_images_keep_their_bytes_and_masks_are_pngs_of_ids(tmp_path):
    write_folders(tmp_path / "in", 3)
    report = _import(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == ["train-00000-of-00001.parquet"]
    rows = _rows(tmp_path / "out" / "train")
    assert list(rows) == ["a0", "a1", "a2"]
    for name, row in rows.items():
        assert row["image"] == {
            "bytes": (tmp_path / "in" / "images" / f"{name}.jpg").read_bytes(),
            "path": f"images/{name}.jpg",
        }
        assert row["mask"]["path"] == f"{name}.png"
        assert decode_label(row["mask"]["bytes"]).tolist() == label(0, 1, 2, VOID).tolist()
    assert (report.images, report.shards, report.wrong, report.refused) == ({"train": 3}, {"train": 1}, {}, {})
    assert list(report.lines()) == [
        f"folders: 3 labelled images of 3 classes in {tmp_path / 'out'}",
        "  train: 3 images in 1 file",
    ]


def _write_every_format(root: Path) -> dict[str, Path]:
    """One image of each format with the same stripes: the classes 0 and 1, and void."""
    made = {name: root / name for name in ("voc", "camvid", "cityscapes", "ade20k", "coco_stuff")}
    write_image(made["voc"] / "JPEGImages" / "a.jpg")
    palette = [channel for colour in class_lists.voc_palette(256) for channel in colour]
    write_label(made["voc"] / "SegmentationClass" / "a.png", label(0, 1, VOID), palette)
    write(made["voc"] / "ImageSets" / "Segmentation" / "train.txt", "a\n")
    write_image(made["camvid"] / "raw" / "a.png")
    colours = np.array([(128, 128, 128), (192, 0, 128), (0, 0, 0)], np.uint8)
    write_label(made["camvid"] / "labels" / "a_L.png", colours[label(0, 1, 2)])
    write_image(made["cityscapes"] / "leftImg8bit" / "train" / "x" / "a_leftImg8bit.png")
    write_label(made["cityscapes"] / "gtFine" / "train" / "x" / "a_gtFine_labelIds.png", label(7, 8, 1))
    write_image(made["ade20k"] / "images" / "training" / "a.jpg")
    write_label(made["ade20k"] / "annotations" / "training" / "a.png", label(1, 2, 0))
    write_image(made["coco_stuff"] / "images" / "train2017" / "a.jpg")
    write_label(made["coco_stuff"] / "annotations" / "train2017" / "a.png", label(0, 1, VOID))
    return made


def test_every_format_gives_the_same_masks_for_the_same_classes_and_trains(tmp_path):
    from fcn_ray.training import ingest

    made = _write_every_format(tmp_path) | {"folders": write_folders(tmp_path / "folders")}
    for format, folder in made.items():
        report = import_dataset(format, str(folder), str(tmp_path / "out" / format))
        assert not report.wrong, format
        assert not report.refused, format
        columns = ingest.Columns("image", "mask")
        collection = ingest.open_collection(str(tmp_path / "out" / format / "train"), columns)
        assert collection.labels == report.labels
        for read in (ingest.Read((piece,), np.array([[0, 0]], np.int32)) for piece in collection.pieces):
            (row,) = ingest.read_rows(read, columns).to_pylist()
            image, ids = ingest.decode_sample(row, report.labels, max_pixels=1000)
            assert image.shape == (20, 30, 3)
            assert ids.tolist() == (label(0, 1, 2, VOID) if format == "folders" else label(0, 1, VOID)).tolist()


def test_an_image_is_upright_when_its_size_is_compared_with_its_labels(tmp_path):
    write_folders(tmp_path / "in", 2)
    write_image(tmp_path / "in" / "images" / "a0.jpg", turned=True)
    assert _import(tmp_path).images == {"train": 2}
    write_label(tmp_path / "in" / "masks" / "a0.png", label(0, 1, height=30, width=20))
    report = import_dataset("folders", str(tmp_path / "in"), str(tmp_path / "other"))
    assert report.refused["label of another size than its image"].files == [
        "masks/a0.png is 20x30, its image, turned upright by its EXIF orientation, 30x20"
    ]


def test_classes_come_from_a_list_a_file_or_names_with_commas(tmp_path):
    write_folders(tmp_path / "in")
    file = write(tmp_path / "names.txt", "a\nb\nc\n")
    for number, classes in enumerate((("a", "b", "c"), "a, b,c", str(file))):
        out = str(tmp_path / str(number))
        assert import_dataset("folders", str(tmp_path / "in"), out, classes=classes).labels.names == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"classes 'nowhere\.txt': expected a file"):
        _import(tmp_path, classes="nowhere.txt")


def test_files_end_at_the_size_that_is_asked_for(tmp_path):
    write_folders(tmp_path / "in", 3)
    assert _import(tmp_path, shard_bytes=1).shards == {"train": 3}
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == [
        f"train-{number:05}-of-00003.parquet" for number in range(3)
    ]


# ------------------------------------------------------------------------------------------------------------ splits


def test_images_of_the_validation_set_are_chosen_by_their_names(tmp_path):
    write_folders(tmp_path, 40)
    layout = open_layout("folders", str(tmp_path))
    few, many = (choose_splits(layout, val_fraction=fraction) for fraction in (0.2, 0.5))
    assert choose_splits(layout) == {"train": sorted(layout.images)}
    assert sorted(few["train"] + few["val"]) == sorted(layout.images)
    assert 2 <= len(few["val"]) < len(many["val"]) < 30
    assert set(few["val"]) < set(many["val"])
    for name in few["val"]:
        (tmp_path / "images" / f"{name}.jpg").unlink()
        (tmp_path / "masks" / f"{name}.png").unlink()
    assert choose_splits(open_layout("folders", str(tmp_path)), val_fraction=0.2) == {"train": few["train"]}


def _write_splits(root: Path) -> None:
    for split in ("train", "val", "test"):
        write_image(root / "in" / "images" / split / "a.jpg")
        write_label(root / "in" / "masks" / split / "a.png", label(0, 1))
    write(root / "in" / "classes.txt", "x\ny\n")


def test_only_the_splits_that_are_wanted(tmp_path):
    _write_splits(tmp_path)
    assert _import(tmp_path, splits=["val", "train"]).images == {"train": 1, "val": 1}
    assert _import(tmp_path, splits=["test"]).images == {"test": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train", "val"]
    with pytest.raises(ConfigError, match="no split dev, only "):
        _import(tmp_path, splits=["dev"])
    with pytest.raises(ConfigError, match="splits test, train, val of its own"):
        _import(tmp_path, val_fraction=0.1)


@pytest.mark.parametrize("options", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"shard_bytes": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    write_folders(tmp_path / "in")
    with pytest.raises(ConfigError, match="expected at least 1, and from 0 to below 1"):
        _import(tmp_path, **options)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_what_is_no_class_is_ignored_counted_and_named(tmp_path):
    write_folders(tmp_path / "in", 3)
    write_label(tmp_path / "in" / "masks" / "a1.png", label(0, 3, 7))
    write_label(tmp_path / "in" / "masks" / "a2.png", label(0, 7))
    report = _import(tmp_path)
    assert report.images == {"train": 3}
    assert not report.refused
    assert _ids(_rows(tmp_path / "out" / "train")["a1"]) == [0, VOID]
    assert {name: (value.pixels, value.labels, value.first) for name, value in report.wrong.items()} == {
        "id 3": (200, 1, "masks/a1.png"),
        "id 7": (500, 2, "masks/a1.png"),
    }
    assert list(report.lines())[2:] == [
        "no class, and ignored from now on (id 255):",
        "  id 7: 500 pixels in 2 labels, first masks/a1.png",
        "  id 3: 200 pixels in 1 label, first masks/a1.png",
    ]


def test_strict_makes_it_an_error_and_leaves_nothing(tmp_path):
    write_folders(tmp_path / "in", 3)
    _import(tmp_path, strict=True)
    write_label(tmp_path / "in" / "masks" / "a1.png", label(0, 3, 7, 7))
    with pytest.raises(DataError, match=r"in/masks/a1\.png: .* pixels are id 7, .*2 such values.*--strict"):
        import_dataset("folders", str(tmp_path / "in"), str(tmp_path / "other"), strict=True)
    assert list((tmp_path / "other").iterdir()) == []


def _write_faults(root: Path) -> None:
    """Good pairs, and one of each kind that cannot be imported."""
    write_folders(root, 10)
    images, masks = root / "images", root / "masks"
    data = (images / "a1.jpg").read_bytes()
    write(images / "a1.jpg", data[: len(data) // 2])
    write(images / "a2.jpg", "<html>")
    write_label(masks / "a3.png", label(0, 1, width=29))
    write_label(masks / "a4.png", np.zeros((20, 30, 3), np.uint8))
    (masks / "a5.png").unlink()
    (images / "a6.jpg").unlink()
    write_image(images / "a7.png")


def test_what_cannot_be_used_is_counted_named_and_left_out(tmp_path, monkeypatch):
    _write_faults(tmp_path / "in")
    read = storage.read_bytes

    def fail(uri: str) -> bytes:
        if uri.endswith("images/a8.jpg"):
            raise StorageError(f"{uri} cannot be read: Input/output error")
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", fail)
    report = _import(tmp_path)
    assert list(_rows(tmp_path / "out" / "train")) == ["a0", "a7", "a9"]
    assert report.images == {"train": 3}
    found = {reason: (refused.count, refused.files[0]) for reason, refused in report.refused.items()}
    assert {reason: (count, file.split(" ")[0].split(":")[0]) for reason, (count, file) in found.items()} == {
        "second file of a name": (1, "images/a7.png"),
        "image without a label": (1, "images/a5.jpg"),
        "label without an image": (1, "masks/a6.png"),
        "image that is truncated": (1, "images/a1.jpg"),
        "image that is not_image": (1, "images/a2.jpg"),
        "label of another size than its image": (1, "masks/a3.png"),
        "label that cannot be used": (1, "masks/a4.png"),
        "file that cannot be read": (1, str(tmp_path / "in/images/a8.jpg")),
    }
    assert found["label of another size than its image"][1] == "masks/a3.png is 29x20, its image 30x20"
    assert "not imported (8):" in list(report.lines())


def test_a_list_may_name_what_is_not_there(tmp_path):
    write_image(tmp_path / "in" / "JPEGImages" / "a.jpg")
    write_label(tmp_path / "in" / "SegmentationClass" / "a.png", label(0))
    write(tmp_path / "in" / "ImageSets" / "Segmentation" / "train.txt", "a\nb\n")
    report = _import(tmp_path, "voc")
    assert report.images == {"train": 1}
    assert report.refused["listed, but neither image nor label"].files == ["b"]


def test_an_image_that_training_would_refuse_for_its_size_is_left_out(tmp_path, monkeypatch):
    assert TrainConfig(data="a", out="b").max_pixels == importing.MAX_PIXELS
    monkeypatch.setattr(importing, "MAX_PIXELS", 600)
    write_folders(tmp_path / "in", 2)
    write_image(tmp_path / "in" / "images" / "a0.jpg", width=31)
    assert list(_import(tmp_path).refused) == ["image that is too_big"]


def test_nothing_to_import_is_an_error_that_says_why(tmp_path):
    write_folders(tmp_path / "in", 2)
    for index in range(2):
        write(tmp_path / "in" / "images" / f"a{index}.jpg", b"")
    with pytest.raises(DataError, match=r"(?s)no image could be imported.*image that is empty: 2: images/a0\.jpg"):
        _import(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_split_of_which_nothing_is_left_has_no_folder(tmp_path):
    _write_splits(tmp_path)
    (tmp_path / "in" / "images" / "test" / "a.jpg").unlink()
    write(tmp_path / "in" / "images" / "val" / "a.jpg", b"")
    assert _import(tmp_path).images == {"train": 1}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]


def test_a_report_keeps_no_more_than_anyone_reads():
    report = ImportReport("camvid", "out", LabelSet.from_names(["a", "b"]))
    for index in range(MAX_WRONG + 5):
        report.note_wrong({f"colour {index},0,0": index + 1}, f"{index}.png")
        report.refuse("image without a label", f"{index}\n.jpg")
    assert len(report.wrong) == MAX_WRONG + 1
    assert report.wrong["others"].pixels == sum(range(MAX_WRONG + 1, MAX_WRONG + 6))
    assert report.wrong["others"].labels == 5
    assert report.n_refused == MAX_WRONG + 5
    assert len(report.refused["image without a label"].files) == MAX_NAMED
    lines = list(report.lines())
    assert lines[2] == "  others: 5015 pixels in 5 labels, first 1000.png"
    assert lines[-3] == f"  and {MAX_WRONG + 1 - 10} more"
    assert lines[-1] == r"  image without a label: 1005: 0\n.jpg, 1\n.jpg, 2\n.jpg and 1002 more"


# ------------------------------------------------------------------------------------------- what is there already


def test_what_is_there_is_not_touched(tmp_path, monkeypatch):
    write_folders(tmp_path / "in")
    (tmp_path / "out" / "train").mkdir(parents=True)
    monkeypatch.setattr(importing, "decode_image", None)  # it is refused before anything is read
    with pytest.raises(ForeignOutputError, match=r"out/train is there already"):
        _import(tmp_path)
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "train"]


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    write_folders(tmp_path / "in")
    write_shards = importing.write_shards

    def write_slowly(*arguments: object) -> int:
        write(tmp_path / "out" / "train" / "theirs.parquet", b"")
        return write_shards(*arguments)

    monkeypatch.setattr(importing, "write_shards", write_slowly)
    with pytest.raises(ForeignOutputError, match=r"out/train is there already"):
        _import(tmp_path)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["train", "theirs.parquet"]


def test_an_import_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    _write_splits(tmp_path)
    seen = []

    def encode(ids: np.ndarray) -> bytes:
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".tmp-")))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return b"mask"

    monkeypatch.setattr(importing, "encode_mask", encode)
    with pytest.raises(KeyboardInterrupt):
        _import(tmp_path)
    assert seen == [[], [], []]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    write_folders(tmp_path / "in")
    write(tmp_path / "out", b"a file")
    with pytest.raises(StorageError, match=r"out cannot be written: "):
        _import(tmp_path)


# ----------------------------------------------------------------------------------------------------------- threads


def test_threads_keep_the_order_and_do_not_run_ahead(monkeypatch):
    monkeypatch.setattr(importing, "count_cpus", lambda: 2)
    started, names = [], set()

    def work(item: int) -> int:
        started.append(item)
        names.add(threading.current_thread().name)
        time.sleep(0.01 if item % 2 else 0)
        return item * item

    results = map_in_threads(work, range(20))
    assert next(results) == 0
    time.sleep(0.1)
    assert len(started) <= 4
    assert list(results) == [item * item for item in range(1, 20)]
    assert len(names) == 2


# ------------------------------------------------------------------------------------------------------ command line


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fcn_ray", "import", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "120"},
        check=False,
    )


def test_the_command_ends_with_its_code(tmp_path):
    source = str(write_folders(tmp_path / "in"))
    good = _command("folders", source, str(tmp_path / "a"), "--classes", "x,y,z", "--val-fraction", "0.5")
    assert (good.returncode, good.stdout.splitlines()[0]) == (
        0,
        f"folders: 4 labelled images of 3 classes in {tmp_path / 'a'}",
    )
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["train", "val"]
    assert _command("folders", source, str(tmp_path / "a")).returncode == ForeignOutputError.exit_code
    write_label(tmp_path / "in" / "masks" / "a0.png", label(7))
    (tmp_path / "in" / "images" / "a1.jpg").unlink()
    strict = _command("folders", source, str(tmp_path / "b"), "--strict")
    assert strict.returncode == 2
    assert "a0.png: 600 pixels are id 7" in strict.stderr
    bad = _command("folders", source, str(tmp_path / "b"), "--split", "train", "--shard-bytes", "1")
    assert bad.returncode == 3
    assert bad.stdout.splitlines()[1:] == [
        "  train: 3 images in 3 files",
        "no class, and ignored from now on (id 255):",
        "  id 7: 600 pixels in 1 label, first masks/a0.png",
        "not imported (1):",
        "  label without an image: 1: masks/a1.png",
    ]


def test_the_command_has_help_with_an_example():
    assert "fcn-ray import voc" in _command("--help").stdout


def test_importing_loads_nothing_heavy():
    code = "import sys, fcn_ray.datasets.importing; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in run.stdout.split()} & {"ray", "keras", "tensorflow"}


# ------------------------------------------------------------------------------------------ what may be meant otherwise


def test_masks_of_0_and_255_are_told_to_lack_a_class(tmp_path):
    write_folders(tmp_path / "in", 2, "no\ncrack\n")
    for index in range(2):
        write_label(tmp_path / "in" / "masks" / f"a{index}.png", label(0, 0, 0, VOID))
    lines = list(_import(tmp_path, strict=True).lines())
    assert "in no label: crack (id 1)" in lines
    assert any(line.startswith("23.3 % of the pixels are 255, which means to ignore them") for line in lines)


def test_a_class_that_some_label_holds_is_not_told_of(tmp_path):
    write_folders(tmp_path / "in", 2)
    write_label(tmp_path / "in" / "masks" / "a0.png", label(0, 1, VOID))
    assert not any("in no label" in line or "ignore" in line for line in _import(tmp_path).lines())


@pytest.mark.parametrize(("orientation", "told"), [(1, False), (3, True), (4, True)])
def test_images_that_exif_turns_are_counted(tmp_path, orientation, told):
    """Turned by half or mirrored, their size says nothing of it."""
    write_folders(tmp_path / "in", 2)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(tmp_path / "in" / "images" / "a1.jpg").save(tmp_path / "in" / "images" / "a1.jpg", exif=exif)
    line = "1 image turned or mirrored by EXIF: their labels must be upright as they are"
    assert (line in list(_import(tmp_path).lines())) is told


def test_what_cannot_be_listed_is_named_and_the_rest_is_imported(tmp_path):
    write_folders(tmp_path / "in", 2)
    (tmp_path / "in" / "images" / "a9.jpg").symlink_to("nowhere.jpg")
    report = _import(tmp_path)
    assert report.images == {"train": 2}
    assert report.refused["file that cannot be read"].files == ["images/a9.jpg: it is a link that leads nowhere"]
