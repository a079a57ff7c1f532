"""The configuration reference, from the JSON schemas of the pydantic models: key, type, bounds, default, description."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from generate.markdown import prose, several
from rayalign.config.control import ControlConfig
from rayalign.config.run import RunConfig

Schema = dict[str, Any]

CONFIGURATION, STAGES, CONTROL = "configuration.md", "stages.md", "control.md"
LARGEST = 2**31 - 1  # the bound of every count, which says nothing
INTROS = {
    CONFIGURATION: "# Configuration\n\nEvery key of a run's YAML file. `rayalign config FILE` prints one with all of them; "
    "`KEY=VALUE` behind a command sets one. Unknown keys are errors. What stands between keys is told by the messages "
    "([from the configuration](messages.md#configuration)); the stages have [a page of their own](stages.md).",
    STAGES: "# Stages\n\nThe entries of `stages:` by their `kind`, and below them the parts that they share. "
    "`stages.NAME.KEY=VALUE` sets a key of the stage with that name; unless a file says otherwise the name is the kind.",
    CONTROL: "# Control configuration\n\nEvery key of a file for `rayalign control` ([guide](../control.md)); "
    "`rayalign control config FILE` prints a file with all of them.",
}
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "nothing"}
SIGNS = (("gt", ">"), ("exclusiveMinimum", ">"), ("ge", ">="), ("minimum", ">="), ("lt", "<"), ("exclusiveMaximum", "<"),
         ("le", "<="), ("maximum", "<="))  # fmt: skip


@dataclass
class Reference:
    """The sections of the three pages: which model stands where, and at which keys it is used."""

    definitions: dict[str, Schema] = field(default_factory=dict)
    page_of: dict[str, str] = field(default_factory=dict)  # name of a model -> page
    used_at: dict[str, list[str]] = field(default_factory=dict)  # name of a model -> keys


def configuration_pages() -> dict[str, str]:
    """{file name below reference/: Markdown}."""
    run, control = RunConfig.model_json_schema(), ControlConfig.model_json_schema()
    found = Reference(control["$defs"] | run["$defs"])
    union = [_target(stage["$ref"]) for stage in run["properties"]["stages"]["items"]["oneOf"]]
    kinds = {name: run["$defs"][name]["properties"]["kind"]["const"] for name in union}
    _place(found, "RunConfig", run, CONFIGURATION, "", leave_out=set(kinds))
    for name, kind in kinds.items():
        _place(found, name, found.definitions[name], STAGES, f"stages.{kind}")
    _place(found, "ControlConfig", control, CONTROL, "")
    found.definitions |= {"RunConfig": run, "ControlConfig": control}
    bodies: dict[str, list[str]] = {page: [INTROS[page]] for page in INTROS}
    for name in [*kinds, *(name for name in found.page_of if name not in kinds)]:
        bodies[found.page_of[name]].append(_section(found, name, kinds.get(name)))
    return {page: "\n\n".join(body) + "\n" for page, body in bodies.items()}


def _place(
    found: Reference, name: str, schema: Schema, page: str, key: str, leave_out: Collection[str] = ()
) -> None:
    """Puts a model on the first page that reaches it, and notes each key that does."""
    found.page_of.setdefault(name, page)
    found.used_at.setdefault(name, [])
    if key:
        found.used_at[name].append(key)
    for below, part in schema["properties"].items():
        for inner in _references(part):
            if inner not in leave_out:
                _place(found, inner, found.definitions[inner], page, f"{key}.{below}".lstrip("."), leave_out)


def _references(schema: Any) -> Iterator[str]:
    """Names of the models that a schema names, each once a place."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield _target(schema["$ref"])
        for key, part in schema.items():
            if key not in ("default", "discriminator"):
                yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _target(reference: str) -> str:
    return reference.rpartition("/")[2]


def _section(found: Reference, name: str, kind: str | None) -> str:
    schema, used = found.definitions[name], found.used_at[name]
    alone = len(used) == 1 and [used] == [keys for keys in found.used_at.values() if keys == used]
    heading = kind or (used[0] if alone else name)
    lines = [f"## {heading} {{ #{name.lower()} }}" if used else f"## All keys {{ #{name.lower()} }}"]
    about = schema.get("description", "").split("\n\n")
    lines += [prose(part) for part in about if part]
    if kind is None and used and not alone:
        lines.append(f"At {several([f'`{key}`' for key in used])}.")
    lines.append("\n".join(_table(found, name, schema)))
    return "\n\n".join(lines)


def _table(found: Reference, name: str, schema: Schema) -> Iterator[str]:
    yield "| key | value | default | |\n| --- | --- | --- | --- |"
    for key, part in schema["properties"].items():
        required = key in schema.get("required", ())
        default = "**required**" if required else _default(found, part)
        yield f"| `{key}` | {_value(found, part, found.page_of[name])} | {default} | {prose(part.get('description', ''))} |"


def _value(found: Reference, schema: Schema, page: str) -> str:
    """The type in words, with bounds; models are links."""
    if "$ref" in schema:
        name = _target(schema["$ref"])
        there = found.page_of[name]
        return f"[{name}]({there if there != page else ''}#{name.lower()})"
    if "oneOf" in schema:
        return f"one of [the stages]({STAGES})"
    if "anyOf" in schema:
        return " or ".join(_value(found, part, page) for part in schema["anyOf"])
    if "enum" in schema:
        return several([f"`{choice}`" for choice in schema["enum"]], "or")
    if "const" in schema:
        return f"`{schema['const']}`"
    return _plain(found, schema, page)


def _plain(found: Reference, schema: Schema, page: str) -> str:
    kind = schema.get("type", "")
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_value(found, schema['prefixItems'][0], page)}"
    if kind == "array":
        least = f" (at least {schema['minItems']})" if schema.get("minItems") else ""
        return f"list{least} of: {_value(found, schema['items'], page)}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"names with: {_value(found, inner, page)}" if isinstance(inner, dict) else "any keys"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in SIGNS if key in schema and schema[key] != LARGEST]
    if "maxLength" in schema:
        bounds.append(f"at most {schema['maxLength']} characters")
    if "pattern" in schema:
        bounds.append(f"of the form `{schema['pattern']}`")
    return ", ".join([WORDS.get(kind, "anything"), *bounds])


def _default(found: Reference, schema: Schema) -> str:
    if "default" not in schema:
        return "empty"  # pydantic shows no default that a function makes
    value = schema["default"]
    if isinstance(value, dict) and "$ref" in schema:
        own = found.definitions[_target(schema["$ref"])]["properties"]
        value = {key: inner for key, inner in value.items() if own[key].get("default", inner) != inner}
        return ", ".join(f"`{key}: {_yaml(inner)}`" for key, inner in value.items())
    return "unset" if value is None else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
