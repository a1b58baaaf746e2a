from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcn_ray.datasets import class_lists
from fcn_ray.datasets.layouts import FORMATS, Layout, open_layout, split_name
from fcn_ray.errors import ConfigError, DataError
from tests.datasets.making import label, write, write_folders, write_image, write_label

VOID = 255


def _read(root: Path, layout: Layout, name: str) -> tuple[list[int], dict[str, int]]:
    """The ids in a label's first row, and its wrong values."""
    path = layout.masks[name]
    ids, wrong = layout.read((root / path).read_bytes(), path)
    return list(dict.fromkeys(ids[0].tolist())), wrong


def _colours(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array(colours, np.uint8)[label(*range(len(colours)))]


# ----------------------------------------------------------------------------------------------------------- folders


def test_folders_are_matched_by_path_without_suffix(tmp_path):
    write_folders(tmp_path, 2)
    write_image(tmp_path / "images" / "deep" / "b.v2.JPG")
    write_label(tmp_path / "masks" / "deep" / "b.v2.png", label(1))
    write(tmp_path / "images" / "notes.txt", "no image")
    layout = open_layout("folders", str(tmp_path))
    assert layout.labels.names == ("sky", "road", "car")
    assert layout.images.keys() == layout.masks.keys() == {"a0", "a1", "deep/b.v2"}
    assert layout.splits is None
    assert _read(tmp_path, layout, "a0") == ([0, 1, 2, VOID], {})


def test_ids_beyond_the_classes_are_wrong(tmp_path):
    write_folders(tmp_path)
    write_label(tmp_path / "masks" / "a1.png", label(0, 3, 7))
    assert _read(tmp_path, open_layout("folders", str(tmp_path)), "a1") == ([0, VOID], {"id 3": 200, "id 7": 200})


def test_folders_need_class_names(tmp_path):
    write_folders(tmp_path)
    assert open_layout("folders", str(tmp_path), ["a", "b", "c"]).labels.names == ("a", "b", "c")
    (tmp_path / "classes.txt").unlink()
    assert open_layout("folders", str(tmp_path), ["a", "b", "c"]).labels.names == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"no classes\.txt.*--classes"):
        open_layout("folders", str(tmp_path))


def test_folders_named_as_splits_are_splits_and_others_are_not(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "a.jpg")
        write_label(tmp_path / "masks" / split / "a.png", label(0, 1))
    layout = open_layout("folders", str(tmp_path), ["x", "y"])
    assert layout.splits == {"train": ["train/a"], "val": ["val/a"]}
    write_image(tmp_path / "images" / "monday" / "a.jpg")
    assert open_layout("folders", str(tmp_path), ["x", "y"]).splits is None


def test_a_second_file_of_a_name_is_told(tmp_path):
    write_folders(tmp_path)
    write_image(tmp_path / "images" / "a1.png")
    write_label(tmp_path / "masks" / "a2.tif", label(0))
    layout = open_layout("folders", str(tmp_path))
    assert layout.images["a1"] == "images/a1.jpg"
    assert set(layout.twins) == {"images/a1.png", "masks/a2.tif"}


# --------------------------------------------------------------------------------------------------------------- voc


def _write_voc(root: Path, **lists: str) -> Path:
    for name in ("2007_1", "2007_2", "2007_3", "unlabelled"):
        write_image(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_1", "2007_2", "2007_3"):
        palette = [channel for colour in class_lists.voc_palette(256) for channel in colour]
        write_label(root / "SegmentationClass" / f"{name}.png", label(0, 15, 20, VOID), palette)
    for split, names in lists.items():
        write(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return root


def test_voc_is_read_by_its_lists_and_palette_indices(tmp_path):
    _write_voc(tmp_path, train="2007_1\r\n2007_2\n2007_1\n", val="2007_3\n\n", trainval="2007_1\n2007_2\n2007_3\n")
    layout = open_layout("voc", str(tmp_path))
    assert layout.splits == {"train": ["2007_1", "2007_2"], "val": ["2007_3"]}
    assert layout.labels.names[15] == "person"
    assert layout.labels.palette[15] == (192, 128, 128)
    assert _read(tmp_path, layout, "2007_1") == ([0, 15, 20, VOID], {})


def test_voc_without_lists_or_with_one(tmp_path):
    _write_voc(tmp_path)
    assert open_layout("voc", str(tmp_path)).splits is None
    write(tmp_path / "ImageSets" / "Segmentation" / "trainval.txt", "2007_1\n")
    assert open_layout("voc", str(tmp_path)).splits == {"trainval": ["2007_1"]}


def test_voc_with_other_classes_keeps_the_colour_rule(tmp_path):
    _write_voc(tmp_path)
    layout = open_layout("voc", str(tmp_path), ["none", "cat"])
    assert layout.labels.palette == ((0, 0, 0), (128, 0, 0))
    assert _read(tmp_path, layout, "2007_1") == ([0, VOID], {"id 15": 140, "id 20": 160})


# ------------------------------------------------------------------------------------------------------------ camvid


def _write_camvid(root: Path, images: str = "701_StillsRaw_full", masks: str = "LabeledApproved_full") -> Path:
    write_image(root / images / "0001TP_006690.png")
    colours = [(128, 128, 128), (64, 192, 0), (0, 0, 192), (192, 0, 192), (0, 0, 0), (1, 2, 3)]
    write_label(root / masks / "0001TP_006690_L.png", _colours(*colours))
    return root


@pytest.mark.parametrize("folders", [("701_StillsRaw_full", "LabeledApproved_full"), (".", ".")])
def test_camvid_colours_are_grouped_into_eleven_classes(tmp_path, folders):
    _write_camvid(tmp_path, *folders)
    layout = open_layout("camvid", str(tmp_path))
    assert len(layout.labels) == 11
    assert layout.splits is None
    assert layout.images.keys() == layout.masks.keys() == {"0001TP_006690"}
    assert _read(tmp_path, layout, "0001TP_006690") == ([0, 1, 4, 10, VOID], {"colour 1,2,3": 100})


def test_the_colours_that_come_with_a_camvid_win(tmp_path):
    _write_camvid(tmp_path)
    write(tmp_path / "label_colors.txt", "1 2 3\tMoon\n128 128 128\tSky\n0 0 0\tVoid\n64 192 0 Wall\n")
    layout = open_layout("camvid", str(tmp_path))
    assert layout.labels.names == ("Moon", "Sky", "Wall")
    ids, wrong = _read(tmp_path, layout, "0001TP_006690")
    assert ids == [1, 2, VOID, 0]
    assert wrong == {"colour 0,0,192": 100, "colour 192,0,192": 100}


def test_camvid_in_segnets_folders_holds_ids(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "a.png")
        write_label(tmp_path / f"{split}annot" / "a.png", label(0, 10, 11, 12))
    layout = open_layout("camvid", str(tmp_path))
    assert layout.splits == {"train": ["train/a"], "val": ["val/a"]}
    assert _read(tmp_path, layout, "val/a") == ([0, 10, VOID], {"id 12": 140})


def test_camvid_folders_hold_colours_when_they_are_called_labels_or_colours_are_listed(tmp_path):
    _write_camvid(tmp_path / "a", "train", "train_labels")
    layout = open_layout("camvid", str(tmp_path / "a"))
    assert layout.splits == {"train": ["train/0001TP_006690"]}
    assert _read(tmp_path / "a", layout, "train/0001TP_006690") == ([0, 1, 4, 10, VOID], {"colour 1,2,3": 100})
    write_image(tmp_path / "b" / "default" / "x.png")
    write_label(tmp_path / "b" / "defaultannot" / "x.png", _colours((9, 9, 9), (8, 8, 8)))
    write(tmp_path / "b" / "label_colors.txt", "9 9 9 background\n8 8 8 cat\n")
    layout = open_layout("camvid", str(tmp_path / "b"))
    assert layout.splits == {"default": ["default/x"]}
    assert layout.labels.names == ("background", "cat")
    assert _read(tmp_path / "b", layout, "default/x") == ([0, 1], {})


# -------------------------------------------------------------------------------------------------------- cityscapes


def _write_cityscapes(root: Path, split: str, kind: str, pixels: np.ndarray, name: str = "bonn_000001_000019") -> None:
    write_image(root / "leftImg8bit" / split / "bonn" / f"{name}_leftImg8bit.png")
    write_label(root / "gtFine" / split / "bonn" / f"{name}_gtFine_{kind}.png", pixels)


def test_cityscapes_train_ids_come_first_and_label_ids_are_mapped(tmp_path):
    _write_cityscapes(tmp_path, "train", "labelTrainIds", label(0, 18, VOID, 19))
    _write_cityscapes(tmp_path, "train", "labelIds", label(0))
    _write_cityscapes(tmp_path, "train", "color", label(0))
    _write_cityscapes(tmp_path, "val", "labelIds", label(7, 33, 29, 0, 34))
    _write_cityscapes(tmp_path, "train_extra", "labelIds", label(26))
    layout = open_layout("cityscapes", str(tmp_path))
    assert layout.splits is not None
    assert layout.splits.keys() == {"train", "val", "train_extra"}
    assert layout.labels.names[13] == "car"
    assert layout.labels.palette[13] == (0, 0, 142)
    assert _read(tmp_path, layout, "train/bonn/bonn_000001_000019") == ([0, 18, VOID], {"id 19": 140})
    assert _read(tmp_path, layout, "val/bonn/bonn_000001_000019") == ([0, 18, VOID], {"id 34": 120})
    assert _read(tmp_path, layout, "train_extra/bonn/bonn_000001_000019") == ([13], {})


def test_all_label_ids_of_cityscapes_are_mapped_to_the_published_train_ids(tmp_path):
    published = [*range(7, 9), *range(11, 14), 17, *range(19, 29), *range(31, 34)]
    write_image(tmp_path / "leftImg8bit" / "val" / "x" / "a_leftImg8bit.png", width=34)
    write_label(tmp_path / "gtFine" / "val" / "x" / "a_gtFine_labelIds.png", label(*range(34), width=34))
    layout = open_layout("cityscapes", str(tmp_path))
    ids, wrong = layout.read((tmp_path / layout.masks["val/x/a"]).read_bytes(), layout.masks["val/x/a"])
    assert ids[0].tolist() == [published.index(i) if i in published else VOID for i in range(34)]
    assert not wrong


# ------------------------------------------------------------------------------------------------------------ ade20k


def test_ade20k_has_no_class_zero(tmp_path):
    write_image(tmp_path / "images" / "training" / "ADE_train_1.jpg")
    write_label(tmp_path / "annotations" / "training" / "ADE_train_1.png", label(0, 1, 150, 151))
    write_image(tmp_path / "images" / "validation" / "ADE_val_1.jpg")
    write_label(tmp_path / "annotations" / "validation" / "ADE_val_1.png", label(2))
    layout = open_layout("ade20k", str(tmp_path))
    assert layout.splits == {"train": ["training/ADE_train_1"], "val": ["validation/ADE_val_1"]}
    assert layout.labels.names[149] == "class 149"
    assert _read(tmp_path, layout, "training/ADE_train_1") == ([VOID, 0, 149], {"id 151": 140})
    write(tmp_path / "objectInfo150.txt", "Idx\tRatio\tName\n1\t.1\twall\n2\t.1\tbuilding, edifice\n")
    layout = open_layout("ade20k", str(tmp_path))
    assert layout.labels.names == ("wall", "building")
    assert _read(tmp_path, layout, "validation/ADE_val_1") == ([1], {})


# -------------------------------------------------------------------------------------------------------- coco stuff


def _write_coco(root: Path, suffix: str, pixels: np.ndarray, folder: str = "annotations") -> None:
    write_image(root / "images" / "train2017" / "000000000009.jpg")
    write_label(root / folder / "train2017" / f"000000000009{suffix}.png", pixels)


def _coco_names() -> str:
    return "\n".join(["0: unlabeled", *(f"{number}: thing {number}" for number in range(1, 183))])


@pytest.mark.parametrize("folder", ["annotations", "stuffthingmaps"])
def test_coco_stuff_counts_from_zero_though_its_list_counts_from_one(tmp_path, folder):
    _write_coco(tmp_path, "", label(0, 181, VOID, 182), folder)
    assert open_layout("coco_stuff", str(tmp_path)).labels.names[181] == "class 181"
    write(tmp_path / "labels.txt", _coco_names())
    layout = open_layout("coco_stuff", str(tmp_path))
    assert layout.splits == {"train": ["train2017/000000000009"]}
    assert (layout.labels.names[0], layout.labels.names[181]) == ("thing 1", "thing 182")
    assert _read(tmp_path, layout, "train2017/000000000009") == ([0, 181, VOID], {"id 182": 140})


def test_coco_train_ids_are_the_171_classes_that_occur(tmp_path):
    _write_coco(tmp_path, "", label(0))
    _write_coco(tmp_path, "_labelTrainIds", label(10, 11, 170, 171))
    assert open_layout("coco_stuff", str(tmp_path)).labels.names[-1] == "class 170"
    write(tmp_path / "labels.txt", _coco_names())
    layout = open_layout("coco_stuff", str(tmp_path))
    assert len(layout.labels) == 171
    assert layout.labels.names[10:13] == ("thing 11", "thing 13", "thing 14")  # 12, a street sign, is in no image
    assert layout.images.keys() == layout.masks.keys()
    assert _read(tmp_path, layout, "train2017/000000000009") == ([10, 11, 170, VOID], {"id 171": 140})


# --------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_is_laid_out_otherwise_is_refused_with_what_it_holds(tmp_path, format):
    write_image(tmp_path / "pictures" / "a.jpg")
    write(tmp_path / "classes.txt", "sky\nroad\n")
    with pytest.raises(DataError, match=rf"no image has its label where the format {format} .*\['pictures'\]"):
        open_layout(format, str(tmp_path))


def test_unknown_formats_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"format 'vok': expected one of folders, voc"):
        open_layout("vok", str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds no files.*JPEGImages"):
        open_layout("voc", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("format", ["camvid", "cityscapes"])
def test_classes_that_are_given_must_be_as_many(tmp_path, format):
    _write_camvid(tmp_path)
    _write_cityscapes(tmp_path, "train", "labelTrainIds", label(0))
    count = {"camvid": 11, "cityscapes": 19}[format]
    names = [f"n{index}" for index in range(count)]
    assert open_layout(format, str(tmp_path), names).labels.names == tuple(names)
    with pytest.raises(ConfigError, match=rf"has {count} classes, found 2 names"):
        open_layout(format, str(tmp_path), ["a", "b"])


def test_a_data_set_whose_files_are_in_no_folders_has_no_splits(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "annotations" / "a.png", label(1))
    assert open_layout("ade20k", str(tmp_path)).splits is None


def test_splits_have_their_usual_names():
    names = {"training": "train", "train2017": "train", "VAL": "val", "validation": "val", "valid": "val"}
    names |= {"test": "test", "testing": "test", "train_extra": "train_extra", "trained": "trained"}
    assert {folder: split_name(folder) for folder in names} == names
