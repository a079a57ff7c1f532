"""A run's folder: made, kept to one process, and with the resolved config in it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from rayalign.errors import UserError, is_disk_full
from rayalign.storage.aside import written_aside

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"  # of the newest start


def make_folder(folder: Path) -> None:
    """Makes it, or takes it as it is. Raises UserError where it cannot be written, and OSError where the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"run_dir: {folder} cannot be written ({error.strerror}); choose another run_dir") from None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps the run folder to this process; the lock goes with it, however it ends."""
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another run; wait for it, or set name= for a new one") from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a run works in it now."""
    file = folder / ".lock"
    if not file.exists():
        return False
    with file.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_config(folder: Path, text: str) -> None:
    """The resolved config, as config.yaml."""
    with written_aside(folder / CONFIG_FILE) as path:
        path.write_text(text, encoding="utf-8")
