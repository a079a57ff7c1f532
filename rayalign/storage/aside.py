"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayalign.errors import Diverged, UserError


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`; when the block ends well it takes the place of `path`, else it is removed.

    A file is replaced in one step. What stood in a folder's place goes only after the new one is there. Where the block
    ends with Diverged, what it has written are the last good weights, and they are kept.
    """
    aside, before = (path.with_name(f".{path.name}.{ending}") for ending in ("part", "before"))
    remove(aside)
    remove(before)
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            yield aside
        except Diverged:
            if aside.exists():
                _put(aside, path, before)
            raise
        _put(aside, path, before)
    finally:
        remove(aside)


def check_writable(file: Path) -> None:
    """Before long work: raises UserError where its result could not be written to `file`. Makes the folder."""
    aside = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        aside.unlink()
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); give another --out") from None
    if file.is_dir():
        raise UserError(f"{file}: is a folder; give a file")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        flush(aside)


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk: a crash of the machine finds it there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(aside: Path, path: Path, before: Path) -> None:
    if path.is_dir():
        path.rename(before)
    aside.replace(path)
    remove(before)
