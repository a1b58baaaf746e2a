import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from fcn_ray.labels import LabelSet
from fcn_ray.models.metrics import scores
from fcn_ray.reports.page import Picture
from fcn_ray.reports.training_page import CONFUSIONS, FOLD, find_best, write_training_page

LABELS = LabelSet.from_names(["sky", "road", "car"])
VOID_ELEMENTS = {"meta", "img"}


class Outline(HTMLParser):
    """A page's elements and texts; checks that every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.pieces, self._open = [], [], []
        self.feed(html)
        assert not self._open
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def charts(self):
        return [attributes["aria-label"] for attributes in self.attributes("svg")]


def epoch(number, confusion=None, **changes):
    record = {"kind": "epoch", "epoch": number, "step": 9 * number, "loss": 2 / number, "images_per_second": 14.5}
    record |= {"input_wait": 0.02, "seconds": 61.0, "memory_bytes": 2_000_000_000} | changes
    if confusion is not None:
        confusion = np.asarray(confusion, np.int64)
        record["val"] = scores(confusion).to_dict() | {"confusion": confusion.tolist()}
    return record


GOOD = epoch(2, [[90, 8, 0, 2], [0, 50, 50, 0], [0, 0, 10, 0]])
POOR = epoch(1, [[50, 50, 0, 0], [50, 50, 0, 0], [0, 10, 0, 0]])


@pytest.fixture
def page(tmp_path):
    def write(curve, labels=LABELS, **options):
        path = tmp_path / "training.html"
        write_training_page(str(path), "Training", [("network", "FCN-8s")], curve, labels, **options)
        return path.read_text(encoding="utf-8")

    return write


def test_the_page_shows_curves_classes_mistakes_and_pictures(page):
    image, ids = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
    pictures = {"best": [Picture("a: 90 %", image, ids, ids)], "worst": [Picture("b: 10 %", image, ids, ids)]}
    found = Outline(page([POOR, GOOD, epoch(3)], **pictures))
    assert found.charts == [
        "Training loss",
        "Validation",
        "Images per second",
        "Time spent waiting for input, %",
        "Peak memory of a worker, GB",
        "IoU by class, epoch 2",
        "Confusion, % of each class, epoch 2",
    ]
    assert "best epoch: 2" in found.text
    assert "Most frequent mistakes label predicted share of its pixels pixels road car 50.0 % 50" in found.text
    assert "sky no class 2.0 % 2" in found.text
    assert "car 16.7 % 100.0 % 4.8 %" in found.text  # 10 / (10 + 50), 10 / 10, 10 / 210
    assert "f.w. IoU images/s input wait time memory, GB 1 9 2.0000 21.5 %" in found.text
    assert "3 27 0.6667 14.5 2.0 % 1 min 1 s 2.00" in found.text
    assert found.text.endswith("void image label mask b: 10 % Best validation images image label mask a: 90 %")


def test_a_learning_rate_is_drawn_when_it_is_told(page):
    assert "Learning rate" in Outline(page([epoch(1, learning_rate=1e-3)])).charts


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [epoch(1)],
        [epoch(1, loss=None, images_per_second=None, input_wait=None, seconds=None, memory_bytes=None)],
        [epoch(1, loss=float("nan")), epoch(2)],
        [epoch(1, loss=float("inf"))],
        [epoch(1, loss=0.0, images_per_second=0.0, input_wait=0.0, memory_bytes=0)],
        [epoch(1, loss=3000.0), epoch(2, loss=0.5)],
        [epoch(1, loss=-0.5)],
        [epoch(1, np.zeros((3, 4)))],
        [epoch(1, [[9, 0, 0, 0]] + [[0] * 4] * 2)],
        [epoch(1) | {"val": {"mean_iou": 0.5, "pixel_accuracy": None, "class_iou": [0.5, None, None]}}],
        [epoch(1) | {"val": None}],
        [{"kind": "epoch", "epoch": 1, "step": 9}],
        [GOOD],
        [POOR | {"epoch": 7}],
    ],
)
def test_whatever_is_missing_the_rest_is_shown(page, curve):
    found = Outline(page(curve))
    assert "FCN-8s" in found.text
    assert "nan" not in found.text.lower()
    assert ("Epochs" in found.text) == bool(curve)
    assert "$" not in found.text


def test_a_loss_of_another_order_is_on_a_logarithmic_scale(page):
    def ticks(first, last):
        html = page([epoch(1, loss=first), epoch(2, loss=last)])
        (drawing,) = re.findall(r"aria-label=\"Training loss\".*?</svg>", html)
        return re.findall(r">([\d.]+)</text>", drawing)[2:]  # after those of the epochs

    assert ticks(800.0, 0.5) == ["1", "10", "100", "1000"]
    assert ticks(8.0, 0.5)[0] == "0"


def test_a_prediction_that_is_no_class_has_a_column_when_there_is_one(page):
    assert "no class" in page([GOOD])
    assert "no class" not in page([POOR])


@pytest.mark.parametrize("count", [2, 13, 31, 61, 255])
def test_any_number_of_classes_has_room(page, count):
    labels = LabelSet.from_names([f"kind {i}" for i in range(count)])
    confusion = np.random.default_rng(0).integers(0, 9, (count, count + 1)) + 99 * np.eye(count, count + 1, dtype=int)
    html = page([epoch(1, confusion)], labels)
    found = Outline(html)
    assert len(html) < 2_000_000
    table = re.findall(r"<td>(kind \d+)</td>\s*<td class=\"number\">[\d.]+ %</td>", html)
    assert len(set(table)) == count
    bars = re.findall(r"<text [^>]*>(kind \d+)</text>", html)
    assert set(bars) == set(labels.names)
    assert len(found.attributes("details")) == (count > FOLD)


def test_the_table_of_mistakes_ends(page):
    labels = LabelSet.from_names([f"kind {i}" for i in range(20)])
    html = page([epoch(1, np.ones((20, 21)))], labels)
    rows = html.split("Most frequent")[1].split("<h2>")[0].count("<tr>") - 1
    assert rows == CONFUSIONS


def test_the_best_epoch_is_that_of_the_bundle():
    same = GOOD | {"epoch": 3}
    assert find_best([POOR, GOOD, same, epoch(4)])["epoch"] == 2
    assert find_best([epoch(1), epoch(2) | {"val": {"mean_iou": None}}]) is None
    assert find_best([epoch(1) | {"val": {"mean_iou": float("nan")}}, GOOD])["epoch"] == 2


def test_an_epoch_that_was_scored_again_is_the_best_one():
    better = epoch(1) | {"val": {"mean_iou": 0.99, "class_iou": [0.99] * 3}}
    assert find_best([better, GOOD])["epoch"] == 2


def test_the_page_holds_all_it_shows_and_runs_nothing(page):
    html = page([POOR, GOOD])
    found = Outline(html)
    assert "://" not in html
    assert not found.attributes("script")
    assert not found.attributes("style")[1:], "a style sheet in a drawing would reach the whole page"
    assert not re.search(r"(?:href|src)=\"(?!#)", html)


def test_each_drawing_has_ids_of_its_own_and_those_that_it_refers_to(page):
    html = page([POOR, GOOD])
    ids = re.findall(r" id=\"([^\"]+)\"", html)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", html)) <= {(i, "") for i in ids} | {
        ("", i) for i in ids
    }
    assert not re.search(r"url\((?!#)", html)


def test_the_drawings_are_in_the_colours_and_the_font_of_the_page(page):
    html = page([POOR, GOOD])
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    defined = set(re.findall(r"(--\w+):", html))
    assert {"--ink", "--soft", "--line", "--blue", "--orange", "--right", "--wrong"} <= defined
    assert set(re.findall(r"var\((--\w+)\)", drawings)) <= defined
    assert "#00000" not in drawings
    assert "system-ui" in drawings
    assert "DejaVu" not in drawings


def test_the_same_training_gives_the_same_bytes(page):
    assert page([POOR, GOOD]) == page([POOR, GOOD])


def test_the_settings_of_matplotlib_neither_matter_nor_change(page):
    plain = page([POOR, GOOD])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert page([POOR, GOOD]) == plain
        assert dict(matplotlib.rcParams) == before


def test_names_stay_text_whatever_they_are(page, recwarn):
    names = ["<script>alert(1)</script>", "$\\frac{a}{b}$", "道路", "a\x00b\n\ud800", "&amp;", "_hidden", "x" * 300]
    html = page([epoch(1, np.ones((7, 8)))], LabelSet.from_names([n.replace("\ud800", "\ufffe") for n in names]))
    found = Outline(html)
    assert not found.attributes("script")
    for text in ("<script>alert(1)</script>", "$\\frac{a}{b}$", "道路", "&amp;", "_hidden"):
        assert text in found.text
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", html)
    assert {"&lt;script&gt;alert(1)&lt;/scr…", "$\\frac{a}{b}$", "道路", "a?b??", "_hidden", "x" * 21 + "…"} <= set(
        texts
    )
    assert not recwarn.list
