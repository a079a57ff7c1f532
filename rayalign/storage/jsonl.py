"""Files of one JSON object a line: lines are added at the end, and a run that goes back to a checkpoint takes some away.

Lines end at a newline only: other separators that Unicode knows may stand in their texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rayalign.storage.aside import written_aside

Line = dict[str, Any]
BLOCK = 2**20  # bytes that are looked through at a time for the last line


def add_line(file: Path, line: Mapping[str, Any], *, instead_of: Callable[[Line], bool] = lambda last: False) -> None:
    """Adds `line`, in the place of the last one if `instead_of` says so; what a killed run left of one goes.

    Costs the same however long the file is.
    """
    added = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with file.open("ab") as opened:
        pass
    with file.open("r+b") as opened:
        end = _end_of_lines(opened, opened.seek(0, 2))
        begin = _end_of_lines(opened, end - 1)
        opened.seek(begin)
        last = parsed(opened.read(end - begin))
        end = begin if last is not None and instead_of(last) else end
        opened.truncate(end)
        opened.seek(end)
        opened.write(added)


def drop_lines(file: Path, dropped: Callable[[Line], bool]) -> None:
    """Leaves out the lines that `dropped` says, and keeps what is no JSON object; nothing is written for nothing."""
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n")[:-1]
    kept = [line for line in lines if (found := parsed(line)) is None or not dropped(found)]
    if len(kept) < len(lines):
        with written_aside(file) as aside:
            aside.write_bytes(b"".join(line + b"\n" for line in kept))


def read_lines(file: Path) -> Iterator[Line | None]:
    """Each line's object, None for what is none; a last line without its end, of a killed run, is left out."""
    if not file.is_file():
        return
    with file.open("rb") as opened:
        for line in opened:
            if line.endswith(b"\n"):
                yield parsed(line)


def parsed(line: bytes) -> Line | None:
    """The object of a line; None where it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _end_of_lines(opened: IO[bytes], stop: int) -> int:
    """The byte after the last newline before `stop`; 0 where there is none."""
    while stop > 0:
        begin = max(0, stop - BLOCK)
        opened.seek(begin)
        place = opened.read(stop - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        stop = begin
    return 0
