import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fcn_ray.datasets.scenes import LABELS, draw_scene, scenes, write_collection, write_scenes_parquet
from fcn_ray.images.codec import ImageError, decode_image, decode_label
from fcn_ray.labels import LabelSet

LIMIT = 1_000_000
VOID = LABELS.ignore_id


def test_scenes_have_exact_labels_of_every_class():
    counts = np.zeros(256, int)
    for image, label in scenes(20, seed=1):
        assert image.shape == (*label.shape, 3)
        assert image.dtype == label.dtype == np.uint8
        assert 120 <= label.shape[0] <= 168
        assert 168 <= label.shape[1] <= 240
        counts += np.bincount(label.ravel(), minlength=256)
    share = counts / counts.sum()
    assert (share[: len(LABELS)] > 0.02).all()
    assert 0.03 < share[VOID] < 0.2
    assert share[: len(LABELS)].sum() + share[VOID] == pytest.approx(1)


def test_a_scene_depends_on_its_seed_and_index_alone():
    few, many, other = list(scenes(2, seed=5)), list(scenes(4, seed=5)), list(scenes(2, seed=6))
    for index in range(2):
        np.testing.assert_array_equal(few[index][0], many[index][0])
        np.testing.assert_array_equal(few[index][1], many[index][1])
    assert len({image.tobytes() for image, _ in many + other}) == 6


def test_image_and_label_show_the_same_things():
    """Borders in the label are edges in the image: colours differ more across them than within a class."""
    image, label = draw_scene(np.random.default_rng(2), 128, 192)
    step = np.abs(image[:, 3:].astype(int) - image[:, :-3]).sum(axis=-1)
    left, right = label[:, :-3], label[:, 3:]
    known = (left != VOID) & (right != VOID)
    assert np.median(step[known & (left != right)]) > 3 * np.median(step[known & (left == right)])


def test_borders_between_classes_are_void():
    _, label = draw_scene(np.random.default_rng(2), 128, 192)
    for one, other in ((label[:, 1:], label[:, :-1]), (label[1:], label[:-1])):
        assert ((one == other) | (one == VOID) | (other == VOID)).all()


def test_a_colour_alone_does_not_tell_the_class():
    """The best lookup from coarse colour to class, even one that has seen these very pixels, misses many."""
    table = np.zeros((16**3, len(LABELS)))
    for image, label in scenes(20, seed=3):
        known = label != VOID
        colour = (image // 16).astype(int) @ [256, 16, 1]
        np.add.at(table, (colour[known], label[known]), 1)
    assert table.max(axis=1).sum() / table.sum() < 0.8


def test_scenes_parquet(tmp_path):
    path = tmp_path / "scenes.parquet"
    write_scenes_parquet(path, 7, seed=1, rows_per_group=3)
    table = pq.ParquetFile(path)
    assert [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)] == [3, 3, 1]
    metadata = table.schema_arrow.metadata
    assert LabelSet.from_metadata(metadata) == LABELS
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == features["mask"] == {"_type": "Image"}
    for row, (image, label) in zip(table.read().to_pylist(), scenes(7, seed=1), strict=True):
        np.testing.assert_array_equal(decode_label(row["mask"]["bytes"]), label)
        decoded = decode_image(row["image"]["bytes"], LIMIT).pixels
        assert np.abs(decoded.astype(int) - image).mean() < 4
        assert row["image"]["path"] == f"{row['name']}.jpg"


def test_a_collection_has_good_odd_and_bad_images(tmp_path):
    made = write_collection(tmp_path, 12, seed=1)
    table = pq.read_table(made.images / "streets.parquet")
    files = sorted(made.images.glob("photos/*"))
    assert table.num_rows + len(files) == made.count == 15
    assert table.column_names == ["name", "image"]
    assert pq.read_table(made.labels / "streets.parquet").column_names == ["name", "mask"]
    found = {}
    for file in files:
        try:
            pixels = decode_image(file.read_bytes(), LIMIT).pixels
        except ImageError as error:
            found[f"photos/{file.name}"] = error.status
        else:
            label = decode_label((made.labels / "photos" / f"{file.stem}.png").read_bytes())
            assert label.shape == pixels.shape[:2]
    assert found == made.bad
    assert sorted(found.values()) == ["empty", "not_image", "truncated"]
    assert len(list(made.labels.glob("photos/*"))) == 6


def test_the_odd_ones_are_scenes_like_the_others(tmp_path):
    made = write_collection(tmp_path, 12, seed=1)
    drawn = list(scenes(12, seed=1))[6:]
    for index, (name, flag) in enumerate([("cmyk", "cmyk"), ("rotated", "exif_rotated")]):
        decoded = decode_image((made.images / f"photos/{name}.jpg").read_bytes(), LIMIT)
        assert decoded.flags == (flag,)
        assert np.abs(decoded.pixels.astype(int) - drawn[index][0]).mean() < 8
        label = decode_label((made.labels / f"photos/{name}.png").read_bytes())
        np.testing.assert_array_equal(label, drawn[index][1])


def test_a_collection_needs_room_for_its_kinds(tmp_path):
    with pytest.raises(ValueError, match="at least 4 images, found 3"):
        write_collection(tmp_path, 3, seed=1)
