"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayalign.errors import Diverged, UserError

PART, BEFORE = "part", "before"
TRIES = 10  # to put a folder in place, while others do the same
_numbers = itertools.count()
_open: set[Path] = set()  # parts of this process that are being written


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`; when the block ends well it takes the place of `path`, else it is removed.

    A file is replaced in one step. What stood in a folder's place goes only after the new one is there. Several may write
    the same path at one time, each aside: the last to end stays. What a process left that was killed goes with the next
    write of that path. Where the block ends with Diverged, what it has written are the last good weights, and they are kept.
    """
    _remove_left(path)
    aside, before = _beside(path)
    _open.update((aside, before))
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
        except Diverged:
            if aside.exists():
                _put(aside, path, before)
            raise
        _put(aside, path, before)
    finally:
        remove(aside)
        _open.difference_update((aside, before))


def check_writable(file: Path) -> None:
    """Before long work: raises UserError where its result could not be written to `file`. Makes the folder."""
    aside, _ = _beside(file)
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


def _beside(path: Path) -> tuple[Path, Path]:
    """Names that no other writer has: for the new one, and for what stood in its place."""
    own = f"{os.getpid()}-{next(_numbers)}"
    return path.with_name(f".{path.name}.{own}.{PART}"), path.with_name(f".{path.name}.{own}.{BEFORE}")


def _remove_left(path: Path) -> None:
    """What writers of `path` left that are no longer there."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?:(\d+)-\d+\.)?(?:{PART}|{BEFORE})")
    try:
        names = os.listdir(path.parent)
    except OSError:  # no folder yet, or one that cannot be listed
        return
    for name in names:
        found = pattern.fullmatch(name)
        left = path.with_name(name)
        if found and left not in _open and not _is_at_work(found[1]):
            with contextlib.suppress(FileNotFoundError):  # another writer removes it too
                remove(left)


def _is_at_work(pid: str | None) -> bool:
    """Whether another process of this number is there; this one's parts are told by `_open`."""
    if pid is None or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _open_as_folder(aside: Path) -> None:
    """Files that a library made for their owner alone (safetensors does) can be read by whom the folder lets read."""
    shared = aside.parent.stat().st_mode & 0o044
    for file in [aside] if aside.is_file() else [file for file in aside.rglob("*") if file.is_file()]:
        if not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600:
            file.chmod(0o600 | shared)


def _put(aside: Path, path: Path, before: Path) -> None:
    _open_as_folder(aside)
    for left in reversed(range(TRIES)):
        try:
            if path.is_dir():
                path.rename(before)
            aside.replace(path)
            break
        except OSError as error:  # another writer put its own there, or took what stood there, in between
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST) or (error.errno == errno.ENOENT and aside.exists())
            if not taken or not left:
                raise
            remove(before)
    remove(before)
