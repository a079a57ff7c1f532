"""Reads a YAML file and `key.sub=value` overrides into a RunConfig; every fault is one line that names the key."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rayalign.config.explain import did_you_mean, first_fault, stage_name
from rayalign.config.extends import read_extended
from rayalign.config.run import RunConfig
from rayalign.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads `path` over what it extends, applies the overrides from left to right, validates.

    Raises ConfigError for a missing or malformed file and for values that do not fit.
    """
    return _validate(_apply(read_extended(Path(path), _read), overrides), str(path), overrides)


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """Validates plain values, such as a dictionary written in Python."""
    return _validate(values, source, ())


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _validate(values: dict[str, Any], source: str, overrides: Sequence[str]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        fault = first_fault(error, RunConfig, values)
    # Who wrote the faulty value: the last override of this key, or the file.
    blamed = next((o for o in reversed(overrides) if _sets(o, fault.key)), None)
    if blamed and blamed.partition("=")[0] == fault.key:
        fault = replace(fault, key="")  # the override names it
    raise ConfigError(fault.line(f"override {blamed!r}" if blamed else source))


def _sets(override: str, key: str) -> bool:
    written = override.partition("=")[0]
    return bool(key) and (key == written or key.startswith(f"{written}.") or written.startswith(f"{key}."))


class _Loader(yaml.SafeLoader):
    """PyYAML's own, except that a key written twice is an error; there the last one wins without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = None if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is set twice, first in line {lines[key]}; remove one",
                    problem_mark=key_node.start_mark,
                )
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def _parse_yaml(text: str, source: str) -> Any:
    """Raises ConfigError with the line for text that is no YAML."""
    try:
        # Values that an alias repeats must not change together when an override changes one.
        return _unshared(yaml.load(text, _Loader))  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML ({_brief(error.problem or error.context)})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({_brief(error)})") from None
    except RecursionError:
        raise ConfigError(f"{source}: an alias contains itself, or nesting is too deep; write it out") from None
    except (ValueError, OverflowError, AttributeError) as error:  # a date that is none, an int without digits
        raise ConfigError(f"{source}: a value cannot be read ({_brief(error)}); put it in quotes") from None


def _unshared(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(value) for value in node] if isinstance(node, list) else node


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:160]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file; give the path of a YAML config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder; give the path of a YAML config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 ({error.reason}); give a YAML config") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path}: cannot be read ({_brief(error)}); check its permissions") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected keys and values at the top level, found {found}")
    return values


def _apply(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{override!r}: an override is written key.sub=value, for instance seed=1")
        try:
            value = _parse_yaml(text, "value") if text else None
        except ConfigError:
            raise ConfigError(f"{override!r}: the value is not valid YAML; quote it, as in key='\"text\"'") from None
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
    names = [stage_name(item) for item in node]
    if head in names:
        return names.index(head)
    if head.isdecimal() and int(head) < len(node):
        return int(head)
    known = [name for name in names if name] or [str(number) for number in range(len(node))]
    there = f"there are: {', '.join(known)}" if known else "it is empty"
    raise ConfigError(f"{full_key}: no entry {head!r} in the list ({there}){did_you_mean(head, known)}")
