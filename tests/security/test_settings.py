"""S10: a file of settings is data: no object is made of it, and it can neither fill the memory nor crash the parser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fcn_ray.config import SegmentConfig
from fcn_ray.config_text import MAX_CONFIG_BYTES, load_config
from fcn_ray.errors import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def _texts(canary: Path) -> dict[str, tuple[str, str]]:
    """Text of a file, and what the message says of it."""
    return {
        "object": (f"input: !!python/object/apply:os.mkdir ['{canary}']", "not valid YAML"),
        "new object": (f"input: !!python/object/new:os.mkdir ['{canary}']", "not valid YAML"),
        "module": ("input: !!python/module:os", "not valid YAML"),
        "name": ("input: !!python/name:os.system", "not valid YAML"),
        "unknown tag": ("input: !Ref x", "not valid YAML"),
        "laughs": (LAUGHS, "aliases"),
        "quadratic": (f"a: &a {'x' * 300_000}\nb: [{', '.join(['*a'] * 1000)}]", "aliases"),
        "merge": ("a: &a {b: 1}\nc: {<<: *a}", "aliases"),
        "itself": ("input: &a [*a]", "aliases"),
        "deep list": (f"input: {'[' * 50_000}", "nested more than 20 deep"),
        "deep mapping": ("input: " + "{a: " * 20_000 + "1" + "}" * 20_000, "nested more than 20 deep"),
        "deep block": ("\n".join(" " * depth + "a:" for depth in range(1000)), "nested more than 20 deep"),
        "digits": (f"input: {'9' * 100_000}", "not valid YAML"),
        "date": ("input: 2001-99-99", "not valid YAML"),
        "control": ("input: \x07", "not valid YAML"),
        "key": ("__class__: x\ninput: a\noutput: b\nmodel: c", "__class__: unknown key"),
        "nested key": ("predict: {__init__: {__globals__: 1}}\ninput: a\noutput: b\nmodel: c", "unknown key"),
        "large": ("# " + "x" * MAX_CONFIG_BYTES, "is it the right file?"),
        "no mapping": ("x", "'key: value' lines"),
    }


@pytest.mark.parametrize("name", _texts(Path()))
def test_hostile_settings_are_refused_with_a_message(tmp_path: Path, name: str) -> None:
    text, message = _texts(tmp_path / "canary")[name]
    (tmp_path / "job.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(SegmentConfig, str(tmp_path / "job.yaml"))
    assert time.monotonic() - start < 20, "seconds on the slowest machine"
    assert len(str(caught.value)) < 5000
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("value", ["!!python/name:os.system", "[*a]", "[" * 50_000, "9" * 100_000, "2001-99-99"])
def test_so_are_single_settings(value: str) -> None:
    with pytest.raises(ConfigError, match="--set input"):
        load_config(SegmentConfig, None, [f"input={value}"])
