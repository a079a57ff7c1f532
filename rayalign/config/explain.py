"""A failed validation as one line: the key as a person writes it, what is wrong there, and the key that was meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Location = tuple[int | str, ...]

SHOWN = 80  # characters of a faulty value
WORDS = {
    "missing": "required, but not set",
    "model_type": "expected keys and values",
    "model_attributes_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "list_type": "expected a list; write [VALUE] for one entry",
    "string_type": "expected text; put it in quotes",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "finite_number": "expected a finite number",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores only, and a letter or digit first",
    "too_short": "needs at least one entry",
    "recursion_loop": "contains itself; write it out",
}


@dataclass(frozen=True)
class Fault:
    """The first fault of a validation, and how many other keys are at fault."""

    key: str
    message: str
    num_more: int

    def line(self, source: str) -> str:
        """`source: key: what is wrong (and N more)`, on one line."""
        where = f"{source}: {self.key}: " if self.key else f"{source}: "
        more = f" (and {self.num_more} more)" if self.num_more else ""
        return " ".join(f"{where}{self.message}{more}".split())


def first_fault(error: ValidationError, root: type[BaseModel], values: Any) -> Fault:
    """What is wrong with `values` as a `root`; keys that are not known come with the ones that were meant."""
    faults = error.errors()
    names = [_names(fault["loc"], root, values) for fault in faults]
    keys = [".".join(name if name.strip() else repr(name) for name in path) for path in names]
    first = faults[0]
    return Fault(keys[0], _message(first, root), len(set(keys)) - 1)


def stage_name(item: Any) -> str | None:
    """What a stage of a YAML file is called: its name, or its kind's."""
    if not isinstance(item, dict):
        return None
    name = item.get("name") or ("world" if item.get("kind") == "planted" else item.get("kind"))
    return None if name is None else str(name)


def unwritable(node: Any, key: str = "") -> str | None:
    """The first key whose text, or whose name, no file and no path can hold; None where there is none."""
    if isinstance(node, str):
        return key if "\0" in node or any("\ud800" <= character <= "\udfff" for character in node) else None
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for part, value in items:
        name = stage_name(value) if key == "stages" else None
        below = f"{key}.{name or part}" if key else str(part)
        if found := unwritable(part, below) or unwritable(value, below):
            return found
    return None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean NAME?`, or nothing where no known name is near."""
    if len(name) > SHOWN:
        return ""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        other for other in known if len(name) >= 4 and other.startswith(name[:4])
    ]
    return f"; did you mean {near[0]}?" if near else ""


def _message(fault: Any, root: type[BaseModel]) -> str:
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if kind == "extra_forbidden":
        name = str(fault["loc"][-1])
        spelt = "" if name.isascii() else f" ({ascii(name)[:SHOWN]}: not in plain letters)"  # they may look the same
        return f"unknown key{spelt}{_meant(fault['loc'], root) or '; check the spelling, or remove it'}"
    if kind == "union_tag_not_found":
        return f"kind is not set; it is one of {', '.join(_tags(fault['loc'], root))}"
    if kind == "union_tag_invalid":
        tags = _tags(fault["loc"], root)
        found = str(fault["input"].get("kind"))
        return f"no stage is of kind {_short(found)} (there are: {', '.join(tags)}){did_you_mean(found, tags)}"
    if kind in {"missing", "value_error"}:
        return WORDS.get(kind, message)
    found = "nothing, and it cannot be unset" if fault["input"] is None else _short(fault["input"])
    return f"{WORDS.get(kind, message)} (got {found})"


def _meant(location: Location, root: type[BaseModel]) -> str:
    """The same name further down, or elsewhere in the config; else the key beside it that is spelt like it."""
    *_, (model, _) = [(None, None), *_walk(location[:-1], root)]
    owner = model if location[:-1] else root
    wrong = str(location[-1])
    if not _is_model(owner):
        return ""
    inside = [path for path in _paths(owner) if path.split(".")[-1] == wrong]
    elsewhere = [path for path in _paths(root) if path.split(".")[-1] == wrong]
    same = inside or elsewhere
    return f"; did you mean {same[0]}?" if same else did_you_mean(wrong, list(owner.model_fields))


def _names(location: Location, root: type[BaseModel], values: Any) -> list[str]:
    """pydantic's location as a person writes it: stages by name, and no tags of unions."""
    names: list[str] = []
    for part, (_, shown) in zip(location, _walk(location, root), strict=True):
        if names == ["stages"] and isinstance(part, int):
            names.append(stage_name(values["stages"][part]) or str(part))
        elif shown:
            names.append(str(part))
    return names


def _walk(location: Location, root: type[BaseModel]) -> Iterator[tuple[Any, bool]]:
    """For each part of a location: the annotation it leads to, and whether it is a key (not a union's tag)."""
    node: Any = root
    for part in location:
        node = _bare(node)
        members = _members(node)
        if len(members) > 1:
            node = next((m for m in members if _is_model(m) and part in _kinds(m)), None)
            yield node, False
            continue
        node = _below(members[0] if members else node, part)
        yield node, True


def _below(node: Any, part: int | str) -> Any:
    """The annotation of a part of `node`; None where there is none."""
    node = _bare(node)
    if _is_model(node):
        field = node.model_fields.get(str(part))
        return field.annotation if field else None
    arguments = get_args(node)
    if get_origin(node) is dict:
        return arguments[1]
    return arguments[0] if get_origin(node) in (list, tuple) else None


def _paths(model: type[BaseModel]) -> Iterator[str]:
    """The keys below a model, with dots; not those of lists, whose entries have names of their own."""
    for name, field in model.model_fields.items():
        yield name
        inner = [m for m in (_members(_bare(field.annotation)) or [_bare(field.annotation)]) if _is_model(m)]
        for member in inner:
            yield from (f"{name}.{path}" for path in _paths(member))


def _tags(location: Location, root: type[BaseModel]) -> list[str]:
    *_, (node, _) = _walk(location, root)
    return [kind for member in _members(_bare(node)) for kind in _kinds(member)]


def _kinds(model: Any) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def _members(node: Any) -> list[Any]:
    """The members of a union without None; empty for anything else."""
    if get_origin(node) not in (Union, types.UnionType):
        return []
    return [_bare(member) for member in get_args(node) if member is not type(None)]


def _bare(node: Any) -> Any:
    while get_origin(node) is Annotated:
        node = get_args(node)[0]
    return node


def _is_model(node: Any) -> bool:
    return isinstance(node, type) and issubclass(node, BaseModel)


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
