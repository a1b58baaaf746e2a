import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fcn_ray.images.codec import decode_image
from fcn_ray.labels import LabelSet
from fcn_ray.reports.page import MAX_SIDE, Chart, Picture, Table, render_page, write_page

LABELS = LabelSet(("sky", "road"), ((0, 0, 255), (255, 0, 0)))
GREY = np.full((40, 60, 3), 100, np.uint8)
IDS = np.repeat([[0], [255]], 60, axis=1).repeat(20, axis=0).astype(np.uint8)
VOID_ELEMENTS = {"meta", "img"}


class Outline(HTMLParser):
    """Collects what a page holds, and checks that every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def embedded(html):
    return [decode_image(base64.b64decode(found), 10**6).pixels for found in re.findall(r"base64,([^\"]+)", html)]


def test_a_page_shows_facts_tables_and_pictures():
    table = Table("Classes", ["class", "IoU", "note"], [["sky", "81.5 %", "a"], ["road", "-", ""]])
    html = render_page("Report", [("images", "12")], [table], [Picture("a.jpg", GREY, IDS, IDS)], LABELS)
    page = Outline(html)
    text = " ".join(" ".join(page.text).split())
    for expected in ("Report", "images 12", "Classes", "sky 81.5 %", "sky void", "a.jpg"):
        assert expected in text
    assert [image["alt"] for image in page.attributes("img")] == [
        f"{kind} of a.jpg" for kind in ("image", "label", "mask")
    ]
    assert "background: #0000ff" in html
    numeric = ["number" in attributes.get("class", "") for attributes in page.attributes("td")]
    assert numeric == [False, True, False] * 2


def test_pictures_are_overlaid_with_the_colours_of_their_classes():
    image, mask = embedded(render_page("x", [], [], [Picture("a.jpg", GREY, mask=IDS)], LABELS))
    assert np.abs(image.astype(int) - 100).max() < 4
    top, bottom = mask[:16].mean(axis=(0, 1)), mask[-16:].mean(axis=(0, 1))
    assert np.abs(top - [45, 45, 185]).max() < 6  # 0.45 * 100 + 0.55 * colour
    assert np.abs(bottom - 100).max() < 6  # void


def test_the_legend_names_the_classes_that_are_drawn():
    both = [Picture("a.jpg", GREY, mask=IDS), Picture("b.jpg", GREY, label=np.ones_like(IDS))]
    text = " ".join(" ".join(Outline(render_page("x", [], [], both, LABELS)).text).split())
    assert "sky road void" in text
    assert "sky" not in " ".join(Outline(render_page("x", [], [], both[1:], LABELS)).text)


def test_pictures_stand_under_their_headings():
    pictures = [Picture("a", GREY, heading="Best"), Picture("b", GREY, heading="Best"), Picture("c", GREY)]
    text = " ".join(" ".join(Outline(render_page("x", [], [], pictures)).text).split())
    assert text.endswith("Best image a image b Pictures image c")


def test_charts_stand_before_the_tables_and_long_tables_may_be_folded():
    charts = [Chart("Loss", "<svg><text>1 &lt; 2</text></svg>"), Chart("IoU", "<svg></svg>", wide=True)]
    tables = [Table("Epochs", ["a"], [["1"]], folded=True), Table("Classes", ["b"], [["2"]])]
    page = Outline(render_page("x", [], tables, charts=charts))
    assert " ".join(" ".join(page.text).split()).endswith("Loss 1 < 2 IoU Epochs a 1 Classes b 2")
    assert len(page.attributes("svg")) == 2
    assert [attributes["class"] for attributes in page.attributes("figure")] == ["card", "card wide"]
    assert len(page.attributes("details")) == 1


def test_large_pictures_are_shrunk():
    tall = np.zeros((3 * MAX_SIDE, MAX_SIDE, 3), np.uint8)
    (found,) = embedded(render_page("x", [], [], [Picture("tall.jpg", tall)]))
    assert found.shape[:2] == (MAX_SIDE, round(MAX_SIDE / 3))


def test_what_strangers_wrote_stays_text():
    attack = "<script>alert('x')</script>\" onload=\"x"
    table = Table(attack, [attack], [[attack]])
    html = render_page(attack, [(attack, attack)], [table], [Picture(attack, GREY)])
    page = Outline(html)
    assert not page.attributes("script")
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.attributes("img")[0]["alt"] == f"image of {attack}"


def test_a_page_loads_nothing_from_elsewhere():
    html = render_page("x", [("a", "b")], [], [Picture("a.jpg", GREY, mask=IDS)], LABELS)
    links = [
        value for _, attributes in Outline(html).tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(links) == 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")


def test_masks_need_a_meaning():
    with pytest.raises(ValueError, match=r"a.jpg: its mask needs a label set"):
        render_page("x", [], [], [Picture("a.jpg", GREY, mask=IDS)])


def test_an_empty_page_is_a_page():
    page = Outline(render_page("Nothing", []))
    assert not page.attributes("dl")
    assert not page.attributes("table")
    assert not page.attributes("figure")


def test_a_page_replaces_the_one_before(tmp_path):
    path = tmp_path / "report" / "report.html"
    write_page(str(path), "first", [])
    write_page(str(path), "zweite Straße", [])
    text = path.read_text(encoding="utf-8")
    assert "zweite Straße" in text
    assert "first" not in text
