from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.config import AugmentConfig
from fcn_ray.errors import DataError, SchemaError, StorageError, UnavailableError
from fcn_ray.images.codec import encode_image, encode_mask
from fcn_ray.labels import METADATA_KEY
from fcn_ray.training import ingest, order
from fcn_ray.training.feeding import Feeder
from fcn_ray.training.ingest import Collection, Columns, open_collection
from fcn_ray.training.order import Read
from tests import pictures
from tests.training.making import damage

COLUMNS = Columns("image", "mask")


def test_rows_come_in_the_planned_order_with_the_right_keys(tmp_path: Path) -> None:
    path = pictures.write_parquet(tmp_path / "train.parquet", 10, group=4)
    collection = open_collection(str(path), COLUMNS)
    assert [p.n_rows for p in collection.pieces] == [4, 4, 2]
    assert (collection.n_rows, collection.labels) == (10, pictures.LABELS)
    read = Read(collection.pieces[1:], np.array([[1, 1], [0, 2]], np.int32))
    table = ingest.read_rows(read, COLUMNS)
    assert table["key"].to_pylist() == ["train.parquet#9", "train.parquet#6"]
    names = pq.read_table(path)
    assert table["image"].to_pylist() == [names["image"][9].as_py(), names["image"][6].as_py()]


def test_hf_structs_read_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "hf.parquet"
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.png"}], struct)
    pq.write_table(pa.table({"image": cells, "mask": cells}), path)
    table = ingest.read_rows(order.plan_pass(open_collection(str(path), COLUMNS).pieces)[0], COLUMNS)
    assert table["image"].to_pylist() == [b"x", None]


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = pictures.write_parquet(tmp_path / "train.parquet", 10, group=4)
    damage(path, 1)
    reads = order.plan_pass(open_collection(str(path), COLUMNS).pieces)
    assert ingest.read_rows(reads[2], COLUMNS).num_rows == 2
    with pytest.raises(DataError, match=r"/train\.parquet: row group 1 cannot be read: .* write it again"):
        ingest.read_rows(reads[1], COLUMNS)


def test_pages_are_held_against_their_checksums(tmp_path: Path) -> None:
    cells = [bytes([value]) * 100 for value in range(4)]
    table = pa.table({"image": cells, "mask": cells})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False, write_page_checksum=True)
    (read,) = order.plan_pass(open_collection(str(tmp_path), COLUMNS).pieces)
    assert ingest.read_rows(read, COLUMNS)["image"].to_pylist() == cells
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(cells[2], bytes([9]) * 100))
    with pytest.raises(DataError, match=r"row group 0 cannot be read: .*CRC"):
        ingest.read_rows(read, COLUMNS)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), UnavailableError("no answer")])
def test_storage_that_fails_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = pictures.write_parquet(tmp_path / "train.parquet", 4)
    (piece,) = open_collection(str(path), COLUMNS).pieces

    class Failing(io.FileIO):
        def readall(self) -> bytes:
            raise error

        def read(self, size: int | None = -1, /) -> bytes:
            raise error

    monkeypatch.setattr("fcn_ray.storage.open_file", lambda uri: Failing(uri))
    with pytest.raises(StorageError, match=r"Input/output error|no answer"):
        ingest.read_group(piece, ["mask"])


def test_augmentation_depends_on_seed_epoch_and_image_only(tmp_path: Path) -> None:
    path = pictures.write_parquet(tmp_path / "train.parquet", 6)
    (read,) = order.plan_epoch(open_collection(str(path), COLUMNS).pieces, 0, 0)
    table = ingest.read_rows(read, COLUMNS)
    config = AugmentConfig(crop=(32, 40), fill=(0, 0, 0))

    def images(rows: list[int], epoch: int) -> np.ndarray:
        part = table.take(rows)
        batch = {name: np.array(part[name].to_pylist(), object) for name in part.column_names}
        return ingest.Augmented(pictures.LABELS, config, 10**6, 1, epoch)(batch)["image"]

    forward = images([0, 1, 2, 3, 4, 5], 0)
    assert forward.shape == (6, 32, 40, 3)
    np.testing.assert_array_equal(images([5, 0], 0), forward[[5, 0]])
    assert (images([0, 1], 1) != forward[:2]).any()


def _row(image: bytes | None, mask: bytes | None) -> dict[str, object]:
    return {"image": image, "label": mask, "key": "data.parquet#3"}


def test_bad_training_rows_are_refused_by_name() -> None:
    good = encode_image(np.zeros((8, 10, 3), np.uint8), "PNG")
    mask = np.zeros((8, 10), np.uint8)
    for row, parts in [
        (_row(b"<html>", encode_mask(mask)), ["not_image"]),
        (_row(None, encode_mask(mask)), ["null"]),
        (_row(good, encode_mask(mask[:, :9])), ["image is 10x8", "mask 9x8"]),
        (_row(good, encode_mask(mask + 3)), ["class ids [3]", "0..2 or 255"]),
        (_row(good, b"no png"), []),
        (_row(good, None), []),
    ]:
        with pytest.raises(DataError) as caught:
            ingest.decode_sample(row, pictures.LABELS, 10**6)
        assert all(part in str(caught.value) for part in ["data.parquet#3", *parts])
    ingest.decode_sample(_row(good, encode_mask(mask + 255)), pictures.LABELS, 10**6)


def test_files_with_other_classes_are_refused(tmp_path: Path) -> None:
    pictures.write_parquet(tmp_path / "a.parquet", 2)
    table = pq.read_table(pictures.write_parquet(tmp_path / "b.parquet", 2))
    other = pictures.LABELS.from_names(["road", "sky", "car"])
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: other.to_json()}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has the classes \['road', 'sky', 'car'\]"):
        open_collection(str(tmp_path), COLUMNS)


def test_given_names_are_for_all_sets_and_must_be_as_many_as_the_files_name() -> None:
    def named(*names: str) -> Collection:
        return Collection((), 1, pictures.LABELS.from_names(names) if names else None)

    train, val, bare = ("train", named("sky", "road")), ("val", named("Sky", "Road")), ("bare", named())
    for sets in ([train, val], [val, bare], [bare]):
        labels = ingest.find_labels(("a", "b"), sets)
        assert labels is not None
        assert labels.names == ("a", "b")
    with pytest.raises(DataError, match=r"val has 2 classes, \['Sky', 'Road'\], but `classes` are 3"):
        ingest.find_labels(("a", "b", "c"), [bare, val])
    with pytest.raises(DataError, match=r"val has the classes .'Sky', 'Road'., the files before"):
        ingest.find_labels(None, [train, bare, val])
    assert ingest.find_labels(None, [bare, val]) == val[1].labels
    assert ingest.find_labels(None, [bare]) is None


def test_collections_that_cannot_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet file"):
        open_collection(str(tmp_path), COLUMNS)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        open_collection(str(tmp_path), COLUMNS)
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=r"no column 'mask', only \['image'\]"):
        open_collection(str(tmp_path / "a.parquet"), COLUMNS)
    pq.write_table(pa.table({"image": [b""], "mask": [b""]}).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no rows"):
        open_collection(str(tmp_path), COLUMNS)
    assert Collection((), 0, None).n_rows == 0


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_a_stream_goes_on_in_its_order_though_no_cpu_is_free(tmp_path: Path, tasks: int) -> None:
    """The CPUs may be held by other streams' tasks, whose workers wait for this one's."""
    import ray

    path = pictures.write_parquet(tmp_path / "train.parquet", 10, group=4)
    reads = order.plan_epoch(open_collection(str(path), COLUMNS).pieces, 3, 0, window_rows=4)
    stage = ingest.Augmented(pictures.LABELS, AugmentConfig(crop=(32, 40), fill=(0, 0, 0)), 10**6, 3, 0)
    feeder = Feeder(ray.get_runtime_context().get_node_id(), tasks)
    tables = pa.concat_tables([ingest.read_rows(read, COLUMNS) for read in reads])
    expected = stage({name: np.array(tables[name].to_pylist(), object) for name in tables.column_names})["image"]
    held = [ray.remote(num_cpus=1)(_Holder).remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    try:
        ray.get([holder.__ray_ready__.remote() for holder in held])
        found = np.concatenate([batch["image"] for batch in ingest.stream(reads, COLUMNS, stage, 3, feeder)])
    finally:
        for holder in held:
            ray.kill(holder)
    np.testing.assert_array_equal(found, expected)


class _Holder:
    """Holds a CPU."""


def test_a_table_that_cannot_be_had_is_not_left_out(tmp_path: Path) -> None:
    """Training on what is left would be training on other data."""
    pictures.write_parquet(tmp_path / "a.parquet", 3)
    (tmp_path / "notes.txt").symlink_to("nowhere.txt")
    assert open_collection(str(tmp_path), COLUMNS).n_rows == 3
    (tmp_path / "b.parquet").symlink_to("nowhere.parquet")
    with pytest.raises(StorageError, match=r"b\.parquet cannot be read: it is a link that leads nowhere"):
        open_collection(str(tmp_path), COLUMNS)
