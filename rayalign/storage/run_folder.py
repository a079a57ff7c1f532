"""A run's folder: made, kept to one process, and with the resolved config in it."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rayalign.errors import UserError, is_disk_full
from rayalign.storage.aside import written_aside

CONFIG_FILE, LOCK_FILE = "config.yaml", ".lock"
ENVIRONMENT_FILE = "environment.json"  # of the newest start that had something to do
METRICS_FILE, ROUNDS_FILE, ALARMS_FILE = "metrics.jsonl", "rounds.jsonl", "alarms.jsonl"
TRIES, TRY_EVERY_S = 10, 0.1  # who only looks whether a run holds the folder (`is_held`) has the lock for an instant


def make_folder(folder: Path) -> None:
    """Makes it, or takes it as it is. Raises UserError where it cannot be written, and OSError where the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_FILE).touch()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"run_dir: {folder} cannot be written ({error.strerror}); choose another run_dir") from None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps the run folder to this process; the lock goes with it, however it ends."""
    with (folder / LOCK_FILE).open("a+") as lock:
        for left in reversed(range(TRIES)):
            if _take(lock, fcntl.LOCK_EX):
                break
            if not left:
                raise UserError(f"{folder} is in use by another run; wait for it, or set name= for a new one")
            time.sleep(TRY_EVERY_S)
        yield


def is_held(folder: Path) -> bool:
    """Whether a run is at work in the folder; one elsewhere, too, where the file system tells of its locks."""
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            return not _take(lock, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _take(lock: IO[Any], kind: int) -> bool:
    """Takes the lock if it is free, and says whether; closing the file gives it back."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_content(file: Path) -> bool:
    """Whether it is there, and not empty."""
    return file.is_file() and file.stat().st_size > 0


def write_config(folder: Path, text: str) -> None:
    """The resolved config, as config.yaml."""
    with written_aside(folder / CONFIG_FILE) as path:
        path.write_text(text, encoding="utf-8")
