"""Reads a YAML file and `key.sub=value` overrides into a RunConfig; every fault is one line that names the key."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rayalign.config.base import Strict
from rayalign.config.explain import did_you_mean, first_fault, stage_name, unwritable
from rayalign.config.extends import read_extended
from rayalign.config.run import RunConfig
from rayalign.errors import ConfigError

MERGE, SET = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:set"
MAX_BYTES = 2**20
MAX_VALUES = 100_000

Root = TypeVar("Root", bound=Strict)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads `path` over what it extends, applies the overrides from left to right, validates.

    Raises ConfigError for a missing or malformed file and for values that do not fit.
    """
    return load_config_as(RunConfig, path, overrides)


def load_config_as(root: type[Root], path: str | Path, overrides: Sequence[str] = ()) -> Root:
    """As `load_config`, for another root than a run of stages."""
    values = _apply(read_extended(Path(path), _read), overrides)
    _check_family(root, values, path)
    return _validate(root, values, str(path), overrides)


def _check_family(root: type[Strict], values: dict[str, Any], path: str | Path) -> None:
    """A whole config of the other side is told as one, and not as a list of keys that it lacks."""
    if "stages" in values and "stages" not in root.model_fields:
        raise ConfigError(f"{path}: a config of language models (it has stages); use rayalign train, config or doctor")
    if "environment" in values and "stages" in root.model_fields and "stages" not in values:
        raise ConfigError(f"{path}: a config of control (it has an environment); use rayalign control train or config")


def parse_as(root: type[Root], values: dict[str, Any], source: str) -> Root:
    """Validates plain values of another root; `source` is named where they do not fit. Raises ConfigError."""
    return _validate(root, values, source, ())


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """Validates plain values, such as a dictionary written in Python."""
    return _validate(RunConfig, values, source, ())


def dump_config(config: Strict) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _validate(root: type[Root], values: dict[str, Any], source: str, overrides: Sequence[str]) -> Root:
    if place := unwritable(values):
        raise ConfigError(f"{source}: {place}: holds a NUL or half of a surrogate pair, which no file can; mend the text")
    try:
        return root.model_validate(values)
    except ValidationError as error:
        fault = first_fault(error, root, values)
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

    def get_single_node(self) -> yaml.Node | None:
        """The document, unless its aliases make more of it than memory holds."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count_values(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag == SET:  # pydantic would take one for a list, in whatever order
            raise _fault("a set has no order; write a list", node)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, AttributeError, LookupError) as error:  # a date that is none, !!int ''
            raise _fault(f"a value cannot be read, {_brief(error)}; put it in quotes", node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = None if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue
            if key in lines:
                raise _fault(f"{key!r} is set twice, first in line {lines[key]}; remove one", key_node)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def _count_values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values in a node with its aliases written out; `known` has those counted, and None for those on the way here."""
    if id(node) in known:
        num = known[id(node)]
        if num is None:
            raise _fault("an alias contains itself; write it out", node)
        return num
    known[id(node)] = None
    children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
    num = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_count_values(child, known) for child in children)
    if num > MAX_VALUES:
        raise _fault(f"with its aliases it has more than {MAX_VALUES} values; a config has some hundred", node)
    known[id(node)] = num
    return num


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _parse_yaml(text: str, source: str) -> Any:
    """Raises ConfigError with the line for text that is no YAML."""
    try:
        # Values that an alias repeats must not change together when an override changes one.
        return _unshared(yaml.load(text, _Loader))  # noqa: S506 - a SafeLoader
    except yaml.reader.ReaderError as error:  # a character that YAML does not take
        line, why = text.count("\n", 0, error.position) + 1, f"{error.reason}: {chr(error.character)!r}"
        raise ConfigError(f"{source}:{line}: not valid YAML ({_brief(why)})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML ({_brief(error.problem or error.context)})") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: "\\U00110000"
        raise ConfigError(f"{source}: not valid YAML ({_brief(error)})") from None
    except RecursionError:
        raise ConfigError(f"{source}: nesting is too deep; write it flat") from None


def _unshared(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(value) for value in node] if isinstance(node, list) else node


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:160]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = _content(path)
        text = content.decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file; give the path of a YAML config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder; give the path of a YAML config") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not text in UTF-8 ({error.reason}); give a YAML config") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except ValueError:
        raise ConfigError(f"{path}: no file can have this name; give the path of a YAML config") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES // 2**20} MiB; give the path of a YAML config")
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected keys and values at the top level, found {found}")
    return values


def _content(path: Path) -> bytes:
    """The file, or its beginning where it is too long. A pipe that nobody writes to reads as empty: nothing waits for it."""

    def without_waiting(name: str, flags: int) -> int:
        opened = os.open(name, flags | os.O_NONBLOCK)
        os.set_blocking(opened, True)
        return opened

    with open(path, "rb", opener=without_waiting) as file:
        return file.read(MAX_BYTES + 1)


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
