"""From text to a checked config and back: YAML files, `--set a.b=1`, flags, and messages that name the mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fcn_ray.config import Section
from fcn_ray.errors import ConfigError

MAX_CONFIG_BYTES = 1_000_000
"""Larger config files are refused before they are parsed."""

MAX_DEPTH = 20
"""Lists and mappings within one another; the parser's time grows with the square of it."""

_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)

Config = TypeVar("Config", bound=Section)


def load_config(
    kind: type[Config],
    file: str | None = None,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """A checked config of type `kind`: its defaults, then `file` (YAML), then "a.b=1" `settings`, then set `flags`.

    Flags that are None are not set. Raises ConfigError with the key, the value found and the way out.
    """
    data = _read_yaml(file) if file else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: expected KEY=VALUE, for example --set epochs=10")
        _put(data, key.strip(), _parse_yaml(text, f"--set {key}"))
    for key, value in (flags or {}).items():
        if value is not None:
            _put(data, key, value)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        where = f" in {file}" if file else ""
        lines = [f"{_describe(kind, dict(problem))}" for problem in error.errors()]
        raise ConfigError(f"configuration{where}: " + "; ".join(lines)) from None


def parse_size(text: str) -> tuple[int, int]:
    """ "640x480" -> (640, 480), width and height in pixels. Raises ConfigError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise ConfigError(f"--size {text!r}: expected WIDTHxHEIGHT in pixels, for example 640x480")
    return int(match[1]), int(match[2])


def dump_config(config: Section) -> str:
    """YAML text of a resolved config; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Section) -> dict[str, Any]:
    """{dotted key: plain value} of every setting."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        inner = getattr(config, name)
        flat |= (
            {f"{name}.{key}": v for key, v in flatten(inner).items()} if isinstance(inner, Section) else {name: value}
        )
    return flat


def describe_config(kind: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every knob of a job, in the order of fcn_ray.config."""
    rows: list[tuple[str, str, str]] = []
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Section):
            rows += describe_config(type(field.default), f"{prefix}{name}.")
        else:
            default = (
                "(required)" if field.is_required() else yaml.safe_dump(_plain(field.default), default_flow_style=True)
            )
            rows.append(
                (prefix + name, default.replace("...", "").strip(), " ".join((field.description or "").split()))
            )
    return rows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read_yaml(file: str) -> dict[str, Any]:
    path = Path(file)
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"config file {file} has {size} bytes, more than {MAX_CONFIG_BYTES}: is it the right file?"
            )
        data = _parse_yaml(path.read_text(encoding="utf-8"), f"config file {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"config file {file} must hold 'key: value' lines, found {type(data).__name__}")
    return data


def _parse_yaml(text: str, where: str) -> Any:
    try:
        _check_tokens(text, where)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that is none
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


def _check_tokens(text: str, where: str) -> None:
    """Raise ConfigError for what a few characters can fill the memory with, or keep the parser busy for ever."""
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if isinstance(token, yaml.AliasToken):
            raise ConfigError(f"{where}: YAML aliases (*name) are not accepted; write the value out")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where} is nested more than {MAX_DEPTH} deep; settings are three deep at most")


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{key}: {parent} is a single value, it has no {last}")
    data[last] = value


def _describe(kind: type[Section], problem: dict[str, Any]) -> str:
    # Of a choice of types pydantic names the type too, as in class_weights.tuple[constrained-float, ...].
    *parents, last = problem["loc"] or ("settings",)
    location = [str(part) for part in (*parents, last) if isinstance(part, int) or part.isidentifier()]
    if problem["type"] == "extra_forbidden":
        location = [str(part) for part in parents if str(part).isidentifier()] + [str(last)]  # what the user wrote
    name = ".".join(location) or "settings"
    if problem["type"] == "extra_forbidden":
        valid = _fields_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1].replace("-", "_"), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"{name}: unknown key, {hint}"
    if problem["type"] == "missing":
        return f"{name}: required, but not given"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "tuple_type":
        reason = f"expected a list, as {name}=[a, b]"
    if problem["type"] in ("model_type", "model_attributes_type"):
        reason = f"this is a section; set one of {', '.join(f'{name}.{field}' for field in _fields_at(kind, location))}"
    return f"{name}: {reason}" if not location else f"{name} = {problem['input']!r}: {reason}"


def _fields_at(kind: type[Section], location: list[str]) -> list[str]:
    for part in location:
        default = kind.model_fields[part].default
        if not isinstance(default, Section):
            return []
        kind = type(default)
    return list(kind.model_fields)
