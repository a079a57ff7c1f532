"""Files of one JSON object a line, to which a run that went back to a checkpoint adds again what it had added before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayalign.storage.aside import written_aside

Line = dict[str, Any]


def add_line(file: Path, line: Mapping[str, Any], instead_of: Callable[[Line], bool]) -> None:
    """Adds `line` at the end, in the place of the lines that `instead_of` says; the file appears whole or not at all."""
    drop_lines(file, instead_of, then=line)


def drop_lines(file: Path, dropped: Callable[[Line], bool], then: Mapping[str, Any] | None = None) -> None:
    """Leaves out the lines that `dropped` says; what is no JSON object (of a disk that failed) goes too."""
    old = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept: list[Mapping[str, Any]] = [line for text in old if (line := _parsed(text)) is not None and not dropped(line)]
    if then is not None:
        kept.append(then)
    elif len(kept) == len(old):
        return
    with written_aside(file) as aside, aside.open("w", encoding="utf-8") as new:
        new.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in kept)


def _parsed(text: str) -> Line | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
