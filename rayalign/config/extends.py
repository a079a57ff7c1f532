"""`extends: FILE` in a config: its values are laid over those of the file, which may extend another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayalign.config.explain import stage_name
from rayalign.errors import ConfigError

KEY = "extends"
MAX_DEPTH = 50


def read_extended(path: Path, read: Callable[[Path], dict[str, Any]], below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of `path` with those that it extends beneath; FILE is relative to the config that names it.

    Args:
        read: gives one file's own values, or raises ConfigError.
        below: the files that led here.

    Raises ConfigError for a file that is not there, and for files that extend each other in a circle.
    """
    values = read(path)
    if KEY not in values:
        return values
    named = values.pop(KEY)
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{path}: {KEY}: expected the path of one YAML config")
    base = path.parent / os.path.expanduser(named)
    chain = (*below, path)
    if len(chain) > MAX_DEPTH:
        raise ConfigError(f"{chain[0]}: {KEY}: more than {MAX_DEPTH} files below one another; write some of them out")
    if _is_one_of(base, chain):
        raise ConfigError(f"{path}: {KEY}: {named} leads back to itself ({' -> '.join(f.name for f in (*chain, base))})")
    return merged(read_extended(base, read, chain), values)


def _is_one_of(base: Path, files: tuple[Path, ...]) -> bool:
    """Raises ConfigError where there is no such file."""
    try:
        if os.path.exists(base):
            return any(base.samefile(file) for file in files)
    except OSError:  # gone since
        pass
    raise ConfigError(f"{files[-1]}: {KEY}: {base}: no such file; {KEY} is relative to the config that it stands in")


def merged(base: Any, own: Any) -> Any:
    """`own` over `base`: keys merge into each other, stages of one name too; any other value takes the base's place."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    result = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if key == "stages" and isinstance(before, list) and isinstance(value, list):
            result[key] = _stages(before, value)
        else:
            result[key] = merged(before, value)
    return result


def _stages(base: list[Any], own: list[Any]) -> list[Any]:
    """The base's stages in their order, then new ones. A stage of the same name and another kind takes the base's place."""
    result = list(base)
    names = [stage_name(stage) for stage in base]
    for stage in own:
        name = stage_name(stage)
        if name is None or name not in names:
            result.append(stage)
            continue
        place = names.index(name)
        same_kind = isinstance(stage, dict) and stage.get("kind", base[place].get("kind")) == base[place].get("kind")
        result[place] = merged(base[place], stage) if same_kind else stage
    return result
