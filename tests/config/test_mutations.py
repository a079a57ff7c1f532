"""However a config is damaged, it loads or gives one line; nothing else ever comes out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayalign.config.load import dump_config, parse_config
from rayalign.errors import ConfigError

DEMO = Path(__file__).resolve().parents[2] / "rayalign" / "planted" / "demo.yaml"
VALID = yaml.safe_load(DEMO.read_text())

words = st.sampled_from(["", "sft", "stage:", "stage:sft/policy", "stage:world/", "irl", "policy", "gpus", "1e3", "a\nb"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=8), inner, max_size=3)
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place below the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """The demo's config with one to four values replaced, removed, renamed, doubled or moved elsewhere."""
    config = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(places(config) or [("name",)]))
        node = config
        for key in place[:-1]:
            node = node[key]
        action = draw(st.sampled_from(["replace", "remove", "rename", "move"]))
        if action == "replace" or not node:
            node[place[-1]] = draw(values)
        elif action == "move":
            other = draw(st.sampled_from(places(config)))
            node[place[-1]] = copy.deepcopy(at(config, other))
        elif isinstance(node, list):
            node.append(node.pop(place[-1]) if action == "rename" else copy.deepcopy(node[place[-1]]))
        else:
            value = node.pop(place[-1])
            if action == "rename":
                node[draw(words | st.text(max_size=8))] = value
    return config


def at(node: Any, path: tuple[Any, ...]) -> Any:
    """What is there."""
    for key in path:
        node = node[key]
    return node


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_a_damaged_config_loads_or_is_one_line(config: dict[str, Any]) -> None:
    """RunConfig or ConfigError, never another exception; what loads prints as itself."""
    try:
        loaded = parse_config(config)
    except ConfigError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, line
        assert line.startswith("config: ")
    else:
        assert parse_config(yaml.safe_load(dump_config(loaded))) == loaded
