"""Hand-worked matches of masks and labels."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import ConfigError, DataError, SchemaError, StorageError
from fcn_ray.evaluation import evaluate, format_table, write_scores
from fcn_ray.images.codec import encode_mask
from fcn_ray.labels import METADATA_KEY, LabelSet
from fcn_ray.tables.schema import MASK, MASK_TYPE, PATH, PLAN, ROW, STATUS

NAMES = LabelSet.from_names(["road", "car", "tree"])
VOID = NAMES.ignore_id

LABEL_A, MASK_A = [[0, 0, 1], [0, VOID, 1]], [[0, 0, 1], [1, 1, 1]]
LABEL_B, MASK_B = [[0, 1], [1, 1]], [[0, 0], [1, 1]]
# road: 3 of 4 found, 1 wrongly; car: 4 of 5 found, 1 wrongly; tree is nowhere
CONFUSION = [[3, 1, 0, 0], [1, 4, 0, 0], [0, 0, 0, 0]]


def encoded(ids):
    return encode_mask(np.array(ids, np.uint8))


def result(path, row, mask, plan=1, status="ok"):
    cell = {"bytes": encoded(mask), "path": None} if mask is not None else None
    return {PATH: path, ROW: row, MASK: cell, PLAN: plan, STATUS: status}


def write_run(folder, *files, labels=NAMES):
    """A run folder with one Parquet file of masks for each list of result rows."""
    kinds = [(PATH, pa.string()), (ROW, pa.int64()), (MASK, MASK_TYPE), (PLAN, pa.int32()), (STATUS, pa.string())]
    schema = pa.schema(kinds, metadata={METADATA_KEY: labels.to_json()} if labels else None)
    (folder / "masks").mkdir(parents=True)
    for index, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, folder / "masks" / f"{index}.parquet", row_group_size=2)
    return str(folder)


def write_labels(path, labels, kind=MASK_TYPE, column=MASK, names=None):
    cells = [None if label is None else encoded(label) for label in labels]
    if kind == MASK_TYPE:
        cells = [cell and {"bytes": cell, "path": None} for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(column, kind)], metadata={METADATA_KEY: names.to_json()} if names else None)
    pq.write_table(pa.table({column: pa.array(cells, kind)}, schema=schema), path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    """Masks for two table rows, an image file, and a bad one, in two result files."""
    first = [result("street.parquet", 1, MASK_B), result("street.parquet", 0, MASK_A)]
    second = [result("photos/a.jpg", 0, MASK_A), result("photos/cut.jpg", 0, None, status="truncated")]
    return write_run(tmp_path / "out" / "run=0123456789abcdef", first, second)


def test_scores_worked_by_hand(run, tmp_path):
    evaluation = evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A, LABEL_B]))
    assert evaluation.confusion.tolist() == CONFUSION
    assert (evaluation.images, evaluation.unlabelled) == (2, 1)
    assert evaluation.labels == NAMES
    found = evaluation.to_dict()
    assert found["pixel_accuracy"] == pytest.approx(7 / 9)
    assert found["mean_accuracy"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert found["class_iou"] == {"road": pytest.approx(3 / 5), "car": pytest.approx(4 / 6), "tree": None}
    assert found["mean_iou"] == pytest.approx((3 / 5 + 4 / 6) / 2)
    assert found["frequency_weighted_iou"] == pytest.approx(4 / 9 * 3 / 5 + 5 / 9 * 4 / 6)
    assert json.loads(json.dumps(found)) == found


def test_a_collection_of_tables_and_files(run, tmp_path):
    write_labels(tmp_path / "labels" / "street.parquet", [LABEL_A, LABEL_B])
    (tmp_path / "labels" / "photos").mkdir()
    (tmp_path / "labels" / "photos" / "a.png").write_bytes(encoded(LABEL_A))
    (tmp_path / "labels" / "README.txt").write_text("not a label")
    evaluation = evaluate(run, str(tmp_path / "labels"))
    assert evaluation.images == 3
    assert evaluation.unlabelled == 0  # the bad image has no mask to count
    assert evaluation.confusion[0].tolist() == [3 + 2, 1 + 1, 0, 0]


def test_the_output_folder_stands_for_its_only_run(run, tmp_path):
    labels = write_labels(tmp_path / "street.parquet", [LABEL_A, LABEL_B])
    assert evaluate(str(tmp_path / "out"), labels).confusion.tolist() == CONFUSION
    write_run(tmp_path / "out" / "run=ffff456789abcdef", [result("street.parquet", 0, MASK_A)])
    with pytest.raises(ConfigError, match=r"holds 2 runs.*run=0123456789abcdef, run=ffff456789abcdef"):
        evaluate(str(tmp_path / "out"), labels)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), MASK_TYPE], ids=str)
def test_label_columns_of_every_kind(run, tmp_path, kind):
    labels = write_labels(tmp_path / "street.parquet", [LABEL_A, LABEL_B], kind, "truth")
    assert evaluate(run, labels, mask_column="truth").confusion.tolist() == CONFUSION


def test_folders_of_pngs(tmp_path):
    """With masks mirrored as <image>.png, and class names from the caller."""
    for name, ids in (("masks/a.jpg.png", MASK_A), ("masks/b.png", MASK_B), ("labels/a.png", LABEL_A)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(ids))
    paths = str(tmp_path / "masks"), str(tmp_path / "labels")
    evaluation = evaluate(*paths, classes=NAMES.names)
    assert evaluation.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert evaluation.unlabelled == 1
    with pytest.raises(ConfigError, match="give the class names"):
        evaluate(*paths)


def test_rows_without_a_label_are_unlabelled(run, tmp_path):
    evaluation = evaluate(run, write_labels(tmp_path / "street.parquet", [None, LABEL_B]))
    assert (evaluation.images, evaluation.unlabelled) == (1, 2)
    assert evaluation.confusion[1].tolist() == [1, 2, 0, 0]


def test_the_mask_of_a_changed_image_supersedes_the_old_one(tmp_path):
    old, new = result("street.parquet", 0, [[0, 0]], plan=1), result("street.parquet", 0, [[1, 1]], plan=2)
    labels = write_labels(tmp_path / "street.parquet", [[[1, 1]]])
    for name, rows in (("new last", [old, new]), ("new first", [new, old])):
        assert evaluate(write_run(tmp_path / name, rows), labels).to_dict()["pixel_accuracy"] == 1


def test_many_rows_come_from_their_own_row_groups(tmp_path):
    """More row groups than are cached, asked for in another order than they are stored in."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 3, (2, 3)).tolist() for _ in range(40)]
    rows = [result("street.parquet", row, ids[row]) for row in rng.permutation(40).tolist()]
    run = write_run(tmp_path / "run", rows[:25], rows[25:])
    assert evaluate(run, write_labels(tmp_path / "street.parquet", ids)).to_dict()["pixel_accuracy"] == 1


def test_a_label_without_a_mask_is_named(run, tmp_path):
    labels = write_labels(tmp_path / "street.parquet", [LABEL_A, LABEL_B, LABEL_B])
    with pytest.raises(DataError, match=r"street.parquet row 2: .* has no mask for 'street.parquet#2'"):
        evaluate(run, labels)


def test_a_label_of_a_bad_image_is_counted_and_the_others_are_scored(run, tmp_path):
    labels = tmp_path / "labels"
    (labels / "photos").mkdir(parents=True)
    (labels / "photos" / "cut.png").write_bytes(encoded(LABEL_A))
    with pytest.raises(DataError, match=r"none of the 1 labelled images has a mask"):
        evaluate(run, str(labels))
    write_labels(labels / "street.parquet", [LABEL_A, LABEL_B])
    evaluation = evaluate(run, str(labels))
    assert (evaluation.images, evaluation.bad, evaluation.to_dict()["bad"]) == (2, 1, 1)
    assert evaluation.confusion.tolist() == CONFUSION
    assert format_table(evaluation).startswith(
        "2 images (1 masks have no label, 1 labels have a bad image, and no mask)"
    )


def test_scores_are_written_through_links_and_into_new_folders(run, tmp_path):
    evaluation = evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A, LABEL_B]))
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    for name in ("link.json", "new/scores.json"):
        write_scores(evaluation, str(tmp_path / name))
        assert json.loads((tmp_path / name).read_text()) == evaluation.to_dict()
    assert (tmp_path / "link.json").is_symlink()
    with pytest.raises(StorageError, match=r"street.parquet/scores.json cannot be written"):
        write_scores(evaluation, str(tmp_path / "street.parquet" / "scores.json"))


def test_an_ok_row_without_a_mask_is_named(tmp_path):
    run = write_run(tmp_path / "run", [result("street.parquet", 0, None)])
    with pytest.raises(DataError, match=r"the mask of 'street.parquet#0' is missing though its row is ok"):
        evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A]))


def test_other_sizes_are_refused_with_both(run, tmp_path):
    with pytest.raises(DataError, match=r"'street.parquet#0' is 3 x 2 pixels \(height x width\), its mask 2 x 3"):
        evaluate(run, write_labels(tmp_path / "street.parquet", [np.transpose(LABEL_A)]))


def test_label_ids_beyond_the_classes_are_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"street.parquet row 0: .*for example 3.*0\.\.2"):
        evaluate(run, write_labels(tmp_path / "street.parquet", [[[3, 0, 1], [0, 0, 1]]]))


def test_mask_ids_beyond_the_classes_count_as_wrong(tmp_path):
    run = write_run(tmp_path / "run", [result("street.parquet", 0, [[VOID, 0, 7]])])
    found = evaluate(run, write_labels(tmp_path / "street.parquet", [[[0, 0, VOID]]])).to_dict()
    assert found["pixel_accuracy"] == 0.5


def test_twins_are_not_guessed(tmp_path):
    run = write_run(tmp_path / "run", [result("a.jpg", 0, MASK_A), result("a.png", 0, MASK_A)])
    (tmp_path / "a.png").write_bytes(encoded(LABEL_A))
    with pytest.raises(DataError, match=r"a.jpg and a.png share this label"):
        evaluate(run, str(tmp_path / "a.png"))


def test_other_classes_are_refused(run, tmp_path):
    other = LabelSet.from_names(["road", "tree", "car"])
    with pytest.raises(ConfigError, match="masks and labels mean different classes"):
        evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A], names=other))
    with pytest.raises(ConfigError, match="masks and classes mean different classes"):
        evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A]), classes=["road", "car"])


def test_label_files_that_mean_different_classes_are_refused(tmp_path):
    run = write_run(tmp_path / "run", *([result(f"{name}.parquet", 0, MASK_A)] for name in "ab"))
    first = write_labels(tmp_path / "labels" / "a.parquet", [LABEL_A], names=NAMES)
    swapped = LabelSet.from_names(["car", "road", "tree"])
    second = write_labels(tmp_path / "labels" / "b.parquet", [LABEL_A], names=swapped)
    with pytest.raises(DataError) as caught:
        evaluate(run, str(tmp_path / "labels"))
    assert all(part in str(caught.value) for part in (first, second, "['road', 'car', 'tree']", "['car', 'road'"))
    write_labels(tmp_path / "labels" / "b.parquet", [LABEL_A])  # without names: those of the other are meant
    assert evaluate(run, str(tmp_path / "labels")).labels == NAMES


def test_masks_of_a_tar_are_told_apart_and_named_for_labels_that_do_not_meet_them(tmp_path):
    run = write_run(tmp_path / "run", [result("a.tar", 0, MASK_A), result("a.tar", 1, MASK_B)])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0001.png").write_bytes(encoded(LABEL_A))
    with pytest.raises(DataError, match=r"no mask for '0001' \(it has one for 'a.tar#0'\)"):
        evaluate(run, str(tmp_path / "labels"))


@pytest.mark.parametrize("labels", ["labels/*.png", "@labels.txt", "labels.tar"])
def test_patterns_lists_and_tars_of_labels_are_an_error(run, tmp_path, labels):
    (tmp_path / "labels.tar").write_bytes(bytes(1024))
    with pytest.raises(ConfigError, match=r"patterns, lists and tars are not read here"):
        evaluate(run, f"{tmp_path}/{labels}")


def test_class_names_may_come_from_the_labels(tmp_path):
    run = write_run(tmp_path / "run", [result("street.parquet", 0, MASK_A)], labels=None)
    assert evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A], names=NAMES)).labels == NAMES


def test_nothing_to_compare_is_an_error(run, tmp_path):
    with pytest.raises(ConfigError, match="holds no masks"):
        evaluate(str(tmp_path / "nowhere"), str(tmp_path))
    with pytest.raises(ConfigError, match="holds no labels"):
        evaluate(run, str(tmp_path / "nowhere"))


def test_wrong_label_columns_are_named(run, tmp_path):
    labels = write_labels(tmp_path / "street.parquet", [LABEL_A], column="truth")
    with pytest.raises(SchemaError, match=r"has no column 'mask', found \['truth'\]"):
        evaluate(run, labels)
    pq.write_table(pa.table({MASK: [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(SchemaError, match="column 'mask' has type int64"):
        evaluate(run, str(tmp_path / "numbers.parquet"))


def test_broken_tables_are_named(run, tmp_path):
    (tmp_path / "street.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"street.parquet cannot be read as Parquet"):
        evaluate(run, str(tmp_path / "street.parquet"))


def test_the_table_for_people(run, tmp_path):
    text = format_table(evaluate(run, write_labels(tmp_path / "street.parquet", [LABEL_A, LABEL_B])))
    assert text.splitlines() == [
        "2 images (1 masks have no label)",
        "class                       IoU",
        "-" * 31,
        "road                     60.0 %",
        "car                      66.7 %",
        "tree                          -",
        "-" * 31,
        "mean IoU                 63.3 %",
        "pixel accuracy           77.8 %",
        "mean accuracy            77.5 %",
        "frequency weighted IoU   63.7 %",
    ]
