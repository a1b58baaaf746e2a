import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_ray.tables.tars import key_of, read_member, walk_images
from tests.tables.archives import END, FORMATS, header, padded, tar

JPG = ("a.jpg", b"bytes of a")


def _images(data: bytes, offset: int = 0) -> list[tuple[str, bytes]]:
    file = io.BytesIO(data)
    return [(member.name, read_member(file, member)) for member in list(walk_images(file, offset))]


_NAME = st.text("abä/.-_ ", min_size=1, max_size=120).map(
    lambda text: "x" + text.replace("/.", "/x").replace("/_", "/x")
)
_MEMBER = st.tuples(_NAME, st.sampled_from([".jpg", ".PNG", ".seg.png", ".json", ".tar", ""]), st.binary(max_size=1200))


@given(members=st.lists(_MEMBER, max_size=8), kind=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=60, deadline=None)
def test_images_are_those_that_the_standard_library_finds(members, kind) -> None:
    """Long names are in other headers in each format; every image can be read from its own offset on."""
    named = [(f"{name}e{suffix}", data) for name, suffix, data in members]
    if kind == "ustar":
        named = [(name, data) for name, data in named if len(name.encode()) < 90]
    data = tar(named, kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [
            (info.name, archive.extractfile(info).read())  # type: ignore[union-attr]
            for info in archive
            if info.isreg() and info.name.lower().endswith((".jpg", ".png"))
        ]
    assert _images(data) == expected
    for number, member in enumerate(walk_images(io.BytesIO(data))):
        assert _images(data, member.offset) == expected[number:]


def test_a_name_split_in_two_is_one() -> None:
    name = f"{'folder/' * 20}{'n' * 60}.jpg"
    assert tar([(name, b"x")], "ustar")[345:352] == b"folder/"
    assert _images(tar([(name, b"x")], "ustar")) == [(name, b"x")]


def test_what_is_no_image_is_no_row() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("._mac.jpg", "d/.hidden/a.jpg", "_tmp/a.jpg", "../a.jpg", "./b.jpg", "_c.png", "/d.gif"):
            archive.addfile(tarfile.TarInfo(name))
    assert [name for name, _ in _images(file.getvalue())] == ["./b.jpg", "_c.png", "/d.gif"]


def test_links_have_no_content_whatever_their_size_says() -> None:
    link = header("b.jpg", 700, tarfile.LNKTYPE, {157: b"a.jpg"})
    assert _images(link + tar([JPG])) == [JPG]


def test_sparse_files_are_passed_over() -> None:
    """Of the old GNU kind, with a block more that tells of holes; and of pax."""
    old = header("s.jpg", 512, tarfile.GNUTYPE_SPARSE, {482: b"\1"}) + bytes(504) + b"\1" + bytes(7) + bytes(1024)
    assert _images(old + tar([JPG])) == [JPG]
    record = b"22 GNU.sparse.major=1\n"
    pax = header("x", len(record), tarfile.XHDTYPE) + padded(record) + header("s.jpg", 3) + padded(b"abc")
    assert _images(pax + tar([JPG])) == [JPG]


def test_sizes_beyond_octal_digits() -> None:
    record = b"11 size=10\n"
    data = header("x", len(record), tarfile.XHDTYPE) + padded(record) + header("a.jpg", 0) + padded(JPG[1]) + END
    assert _images(data) == [JPG]
    assert _images(header("a.jpg", 0, changes={124: b"\x80" + bytes(10) + b"\n"}) + padded(JPG[1]) + END) == [JPG]


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_an_archive_that_is_cut_anywhere_is_damaged(kind: str) -> None:
    data = tar([JPG, (f"{'l' * 80}/{'n' * 80}.png", bytes(700)), ("a.txt", b"x"), ("ü.jpg", b"")], kind)
    end = len(data.rstrip(b"\0")) + 512  # what is cut of the zeros behind the end mark does not matter
    for length in {*range(0, end, 128), 1, 511, 513}:
        with pytest.raises(ValueError, match=r"cut off|more than there are|midst of a member"):
            _images(data[:length])
    assert len(_images(data)) == 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off: it ends at byte 0"),
        (b"<html>" * 500, "for a number"),
        (b"0" * 2000, "no header of a member"),
        (tar([JPG]) + tar([JPG]), "something follows its end mark"),
        (header("a.jpg", changes={124: b"-0000000001\0"}) + END, "for a number"),
        (header("a.jpg", changes={124: b"\xff" * 12}) + END, "for a number"),
        (header("a.jpg", changes={124: b"\x80" + b"\xff" * 11}) + END, "bytes, which are more than there are"),
        (header("a.jpg", 8**11 - 1) + END, "bytes, which are more than there are"),
        (header("x", 2 << 20, tarfile.XHDTYPE) + bytes(2 << 20) + END, "extended header has 2097152 bytes"),
        (header("x", 8, tarfile.XHDTYPE) + padded(b"0 path=b") + END, "extended header cannot be read"),
        (header("x", 9, tarfile.XHDTYPE) + padded(b"99 path=b") + END, "extended header cannot be read"),
        (header("x", 11, tarfile.XHDTYPE) + padded(b"11 size=-1\n") + END, "for a size"),
        (header("x", 11, tarfile.XGLTYPE) + padded(b"11 size=10\n") + END, "gives all members the same size"),
        (header("x", 11, tarfile.XHDTYPE) + padded(b"11 size=10\n") + END, "in the midst of a member"),
    ],
    ids=range(14),
)
def test_archives_that_are_not_whole(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _images(data)


def test_no_flipped_bit_of_a_header_is_read_as_another_row() -> None:
    data = tar([JPG, ("b.png", b"x" * 600)])
    before = _images(data)
    for bit in range(512 * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert _images(bytes(damaged)) == before
        except ValueError:
            continue


def test_an_extended_header_of_many_records_is_read_at_once() -> None:
    """A megabyte of records, each of which was once cut off from the front, took minutes."""
    data = b"6 a=b\n" * 170_000
    assert _images(header("x", len(data), tarfile.XHDTYPE) + padded(data) + tar([JPG])) == [JPG]


@pytest.mark.parametrize(
    ("name", "key"), [("a/b.c/0001.seg.png", "a/b.c/0001"), ("0001.jpg", "0001"), ("./x.jpg", "./x")]
)
def test_keys_are_those_of_webdataset(name: str, key: str) -> None:
    assert key_of(name) == key
