"""Strategies for configs that are damaged as values: keys, types, numbers, references and paths."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from rayalign.config.load import dump_config, load_config, parse_config
from rayalign.config.run import RunConfig
from rayalign.doctor import check_config
from rayalign.errors import printable
from rayalign.preflight.check import check_run
from tests.hostile.judge import Case

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.parent.name != "control")
FILES = (*CONFIGS, REPOSITORY / "rayalign" / "planted" / "demo.yaml")
READY = tuple(file for file in FILES if "paper" not in file.parts and not file.name.startswith("rft"))  # lack nothing
FREE = ("deepspeed", "columns", "models", "scratch")  # keys of the user's own below these

Place = tuple[Any, ...]


@cache
def resolved(file: Path) -> dict[str, Any]:
    """A file of the repository with what it extends and every default: all the places that there are to damage."""
    return yaml.safe_load(dump_config(load_config(file)))


def places(node: Any, path: Place = ()) -> list[Place]:
    """Every place below the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


@cache
def places_of(file: Path) -> list[Place]:
    """Those of a file of the repository."""
    return places(resolved(file))


def at(node: Any, path: Place) -> Any:
    """What is there."""
    for key in path:
        node = node[key]
    return node


def key_of(place: Place) -> str:
    """The name by which a message calls a place: its key, or that of the list or the source around it."""
    return next(key for key in reversed(place) if isinstance(key, str) and (key != "path" or place[:-1] == ("model",)))


def use(config: RunConfig) -> None:
    """What happens to a config before anything starts: it prints as itself, is examined, and is checked."""
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    list(check_config(config, []))
    check_run(config, config.stages)


def names_a_key(values: dict[str, Any]) -> str:
    """A pattern: the source (where values do not fit), and then a key of the config or a name."""
    keys = {*RunConfig.model_fields, *map(str, values), *(printable(str(key)) for key in values)}
    shown = {key if key.strip() else " ".join(repr(key).split()) for key in keys}
    return rf"(config: )?({'|'.join(re.escape(key) for key in sorted(shown))}|two stages|a key)"


words = st.sampled_from(
    ["", " ", "sft", "stage:", "stage:sft/policy", "stage:world/", "irl", "policy", "gpus", "1e3", "a\nb", "\x1b[31m",
    "\0"]
)
numbers = st.sampled_from(
    [0, -0.0, -1, 1, 2**31 - 1, 2**31, 2**63, -(2**64), 10**400, 1e308, 5e-324, -1e-9, float("nan"), float("inf"), 0.5]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | numbers | words | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=8), inner, max_size=3)
)


def parsed(kind: str, config: dict[str, Any], damage: str, **known: Any) -> Case:
    """A case of plain values."""
    return Case(kind, damage, lambda: use(parse_config(config)), **known)


@st.composite
def damaged(draw: st.DrawFn) -> Case:
    """One to four values of a config replaced, removed, renamed, doubled or moved elsewhere."""
    config = copy.deepcopy(resolved(draw(st.sampled_from(FILES))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(places(config) or [("name",)]))
        node = at(config, place[:-1])
        action = draw(st.sampled_from(["replace", "remove", "rename", "move"]))
        if action == "replace" or not node:
            node[place[-1]] = draw(values)
        elif action == "move":
            node[place[-1]] = copy.deepcopy(at(config, draw(st.sampled_from(places(config)))))
        elif isinstance(node, list):
            node.append(node.pop(place[-1]) if action == "rename" else copy.deepcopy(node[place[-1]]))
        else:
            value = node.pop(place[-1])
            if action == "rename":
                node[draw(words | st.text(max_size=8))] = value
    return parsed("values moved, renamed, replaced", config, repr(config), pattern=names_a_key(config))


@st.composite
def of_wrong_type(draw: st.DrawFn) -> Case:
    """One value of a type that nothing takes: the message names its key."""
    file = draw(st.sampled_from(FILES))
    place = draw(st.sampled_from(places_of(file)))
    wrong = draw(st.sampled_from([[[[]]], {"zz": {"zz": []}}, {3: None}, [{}], [[1], 2], {"": {"": ""}}]))
    config = copy.deepcopy(resolved(file))
    at(config, place[:-1])[place[-1]] = wrong
    free = "deepspeed" in place or (place[-1] in FREE and wrong == {3: None})
    damage = f"{file.name}: {place} = {wrong!r}"
    if free:
        return parsed("a wrong type", config, damage)
    return parsed("a wrong type", config, damage, place=(key_of(place),), must="refuse")


@st.composite
def with_a_number(draw: st.DrawFn) -> Case:
    """One number, or text for one, replaced by a huge, negative, tiny or infinite one."""
    file = draw(st.sampled_from(FILES))
    config = copy.deepcopy(resolved(file))
    found = [p for p in places_of(file) if isinstance(at(config, p), (int, float)) and "deepspeed" not in p]
    place = draw(st.sampled_from(found))
    number = draw(numbers | st.floats() | st.integers() | numbers.map(str))
    at(config, place[:-1])[place[-1]] = number
    never = isinstance(number, float) and number - number != 0
    damage = f"{file.name}: {place} = {number!r:.40}"
    return parsed("a number", config, damage, pattern=names_a_key(config), must="refuse" if never else None)


@st.composite
def with_an_unknown_key(draw: st.DrawFn) -> Case:
    """A key that is none: look-alikes, control characters, numbers, nothing."""
    file = draw(st.sampled_from(FILES))
    config = copy.deepcopy(resolved(file))
    place = draw(st.sampled_from([p for p in places_of(file) if isinstance(at(config, p), dict)]))
    known = sorted(map(str, at(config, place)))
    look_alikes = [f"{name}{mark}" for name in known for mark in ("\u200b", " ", "\0", "\ufeff", "s")]
    look_alikes += [name.replace("a", "\u0430").replace("e", "\u0435") for name in known] or ["\u0430"]
    strange = st.sampled_from(["", "a.b", "a\nb", "\u202e", "\x1b]0;x\x07", "\ud800", "k" * 3000, "__class__"])
    key = draw(st.sampled_from(look_alikes or ["x"]) | strange | st.sampled_from([None, True, 7,
    1.5]) | st.text(min_size=1))
    if key in at(config, place):
        key = f"{key}!"
    at(config, place)[key] = draw(scalars)
    damage = f"{file.name}: {place}: {key!r:.60}"
    if set(FREE) & set(place):
        return parsed("an unknown key", config, damage)
    return parsed("an unknown key", config, damage, place=(key_of(place),), must="refuse")


REFERENCES = (
    "stage:", "stage:/", "stage://", "stage:..", "stage:nothing/policy", "stage:sft/policy/../../..",
    "stage:sft//policy",
    "stage:sft/policy\n", "stage: sft/policy", "STAGE:sft/policy", "stage:world/tokenizer", "stage:irl/reward",
    "stage:rft/policy",
    "stage:evaluate/results.json", "stage:sft/nothing", "stage:\0/policy", "stage:sft/\ud800", f"stage:{'x/' * 3000}",
)  # fmt: skip


@st.composite
def place_values(draw: st.DrawFn, kind: str, keys: tuple[str, ...], given: st.SearchStrategy[str]) -> Case:
    """One text under one of these keys, in a config that lacks nothing, replaced by what is given: the key is named."""
    file = draw(st.sampled_from(READY))
    config = copy.deepcopy(resolved(file))
    found = [p for p in places_of(file) if p[-1] in keys and isinstance(at(config, p), str)]
    place = draw(st.sampled_from(found))
    value = draw(given)
    at(config, place[:-1])[place[-1]] = value
    return parsed(kind, config, f"{file.name}: {place} = {value!r:.80}", place=(key_of(place),))


def references() -> st.SearchStrategy[Case]:
    """References of every shape where a location is named."""
    keys = ("path", "policy", "init", "reward", "reference", "tokenizer", "chat_template", "run_dir", "better", "worse")
    shapes = st.sampled_from(REFERENCES) | st.text(max_size=12).map("stage:{}".format)
    return place_values("a reference", keys, shapes)
