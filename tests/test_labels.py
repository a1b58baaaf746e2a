from __future__ import annotations

import json

import pytest

from fcn_ray.errors import DataError
from fcn_ray.labels import METADATA_KEY, LabelSet, make_palette


def test_json_round_trip_is_canonical() -> None:
    labels = LabelSet(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    assert LabelSet.from_json(labels.to_json()) == labels
    assert labels.to_json() == '{"ignore_id":255,"names":["sky","road"],"palette":[[1,2,3],[4,5,6]]}'


def test_labels_come_from_our_own_metadata_or_from_plain_classes() -> None:
    labels = LabelSet.from_names(["sky", "road"])
    assert LabelSet.from_metadata({METADATA_KEY.encode(): labels.to_json().encode()}) == labels
    plain = {b"classes": json.dumps(["sky", "road"]).encode(), b"palette": b"[[0, 0, 1], [0, 0, 2]]"}
    assert LabelSet.from_metadata(plain) == LabelSet(("sky", "road"), ((0, 0, 1), (0, 0, 2)))
    assert LabelSet.from_metadata({b"classes": b'["sky", "road"]'}) == labels
    assert LabelSet.from_metadata(None) is None


@pytest.mark.parametrize(
    ("names", "palette", "ignore", "part"),
    [
        (("one",), ((0, 0, 0),), 255, "2 to 255 classes"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), 255, "must differ"),
        (("a", "b"), ((0, 0, 0),), 255, "as many colours"),
        (("a", "b"), ((0, 0, 0), (1, 1, 1)), 1, "also the id of class 'b'"),
    ],
)
def test_a_label_set_that_cannot_be_is_refused(
    names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...], ignore: int, part: str
) -> None:
    with pytest.raises(DataError, match=part):
        LabelSet(names, palette, ignore)


def test_made_colours_differ() -> None:
    assert len(set(make_palette(60))) == 60
