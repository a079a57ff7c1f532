"""Reads a YAML file and `key.sub=value` overrides into a RunConfig; every fault is one line that names the key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rayalign.config.run import RunConfig
from rayalign.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads `path`, applies the overrides from left to right, validates.

    Raises ConfigError for a missing or malformed file and for values that do not fit.
    """
    return parse_config(_apply(_read(Path(path)), overrides), source=str(path))


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """Validates plain values, such as a dictionary written in Python."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, values, source)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, found {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r}: an override is written key.sub=value")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            raise ConfigError(f"{override!r}: the value is not valid YAML; quote it") from None
        _set(values, key, key.split("."), value)
    return values


def _set(node: Any, full_key: str, parts: list[str], value: Any) -> None:
    """Sets a nested value; stages are addressed by name or by number (`stages.sft.epochs=2`)."""
    head: Any = parts[0]
    rest = parts[1:]
    if isinstance(node, list):
        head = _place_in_list(node, full_key, head)
    elif not isinstance(node, dict):
        raise ConfigError(f"{full_key}: {head!r} is inside a plain value; there is nothing below it to set")
    if not rest:
        node[head] = value
        return
    child = node[head] if isinstance(node, list) else node.setdefault(head, {})
    if child is None:
        child = node[head] = {}
    _set(child, full_key, rest, value)


def _place_in_list(node: list[Any], full_key: str, head: str) -> int:
    names = [_stage_name(item) for item in node]
    if head in names:
        return names.index(head)
    if head.isdigit() and int(head) < len(node):
        return int(head)
    known = ", ".join(name for name in names if name) or f"0 to {len(node) - 1}"
    raise ConfigError(f"{full_key}: no entry {head!r} in the list (there are: {known})")


def _stage_name(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    return item.get("name") or ("world" if item.get("kind") == "planted" else item.get("kind"))


def _one_line(error: ValidationError, values: dict[str, Any], source: str) -> str:
    """The first fault as `file: key: what is wrong`, and how many more there are."""
    faults = error.errors()
    first = faults[0]
    key = ".".join(_path_names(first["loc"], values)) or "config"
    message = {
        "extra_forbidden": "unknown key; check the spelling, or remove it",
        "missing": "required, but not set",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    shown = "" if first["type"] in {"missing", "extra_forbidden", "value_error"} else f" (got {first['input']!r})"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    line = f"{source}: {key}: {message}{shown}{more}" if first["loc"] else f"{source}: {message}{more}"
    return " ".join(line.split())


def _path_names(location: tuple[int | str, ...], values: dict[str, Any]) -> list[str]:
    """pydantic's location with stage names in place of list positions and union tags."""
    names: list[str] = []
    stages = values.get("stages")
    for position, part in enumerate(location):
        if position == 1 and location[0] == "stages" and isinstance(part, int) and isinstance(stages, list):
            names.append(_stage_name(stages[part]) or str(part))
        elif position == 2 and location[0] == "stages":
            continue  # the union's tag
        else:
            names.append(str(part))
    return names
