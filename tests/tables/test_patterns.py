import glob
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_ray.errors import ConfigError
from fcn_ray.tables.patterns import fits, fits_below, has_pattern, parse_pattern, split_pattern

_NAMES = ["a", "b.jpg", "c]", "A", "ab", "[x"]
_PART = st.text("ab?*[]!.-c", min_size=1, max_size=4).filter(lambda part: part not in {".", ".."})
_PATTERN = st.lists(st.one_of(_PART, st.just("**")), min_size=1, max_size=4).map("/".join)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files three folders deep, below every name."""
    root = tmp_path_factory.mktemp("tree")
    for first in _NAMES:
        for second in _NAMES:
            (root / f"d{first}" / first / second).mkdir(parents=True)
            (root / f"d{first}" / first / second / "a.jpg").touch()
            (root / f"d{first}" / f"{second}.png").touch()
        (root / first).touch()
    return root


@given(text=_PATTERN)
@settings(max_examples=150, deadline=None)
def test_patterns_are_those_of_the_shell(tree: Path, text: str) -> None:
    """Python's glob walks the folders, and matches a name at a time."""
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    found = set(glob.glob(text, root_dir=tree, recursive=True, include_hidden=True))
    pattern = parse_pattern(text)
    assert {path for path in files if fits(pattern, path)} == found & files


@given(text=_PATTERN, folder=st.lists(st.sampled_from(["a", "ab", "b.c"]), min_size=1, max_size=3).map("/".join))
@settings(max_examples=200, deadline=None)
def test_a_folder_that_a_pattern_reaches_into_is_known(text: str, folder: str) -> None:
    """Something below it fits if one of these does: names that any single part can ask for, to any depth."""
    pattern = parse_pattern(text)
    rest = [part for part in text.split("/") if part != "**"]
    if fits_below(pattern, folder):
        assert any(part == "**" for part in text.split("/")) or len(rest) > folder.count("/") + 1
    else:
        below = [f"{folder}/{'/'.join(names)}" for names in (["a"], ["ab", "a"], ["a", "b.c", "a"], ["a"] * 4)]
        assert not any(fits(pattern, path) for path in below)


@pytest.mark.parametrize(
    ("uri", "folder", "pattern"),
    [
        ("photos/**/*.jpg", "photos", "**/*.jpg"),
        ("*.jpg", ".", "*.jpg"),
        ("/*/x.jpg", "/", "*/x.jpg"),
        ("./a//b?/./c", "a", "b?/c"),
        ("../a[1]/", "..", "a[1]"),
        ("file:///data/*.jpg", "file:///data", "*.jpg"),
        ("s3://bucket/2024-*/cam?/*.parquet", "s3://bucket", "2024-*/cam?/*.parquet"),
        ("s3://bucket/a//b/*", "s3://bucket/a//b", "*"),
        ("s3://bucket/a//*", "s3://bucket/a", "/*"),
    ],
)
def test_a_listing_starts_where_the_pattern_does(uri: str, folder: str, pattern: str) -> None:
    assert has_pattern(uri)
    assert split_pattern(uri) == (folder, pattern)


@pytest.mark.parametrize(("uri", "says"), [("s3://buck*/a", "bucket cannot be a pattern"), ("a*/../b", "cannot come")])
def test_patterns_that_are_none(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split_pattern(uri)


def test_a_name_with_such_characters_can_be_spelled() -> None:
    assert fits(parse_pattern("a[[]1]/*[*].jpg"), "a[1]/x*.jpg")
    assert not fits(parse_pattern("a[[]1]/*[*].jpg"), "a1/x*.jpg")
