"""A worker's part of a checkpoint: copied to host memory at once, written while the worker goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rayalign.storage.checkpoints import Files, files_below, flushed
from rayalign.types import Ragged, Sequences


@dataclass
class Snapshot:
    """Tensors and plain values under their files' names without ending, and models, each written by a function."""

    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # on the host, shared with nobody
    values: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Callable[[Path], None]] = field(default_factory=dict)  # by folder

    def write(self, folder: Path) -> Files:
        """Writes everything below `folder`: NAME.safetensors, NAME.json, and the models' folders."""
        written: Files = {}
        for name, tensors in self.tensors.items():
            path = folder / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            written |= _file(folder, path)
        for name, values in self.values.items():
            path = folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
            written |= _file(folder, path)
        for name, write in self.models.items():
            write(folder / name)
            written |= files_below(folder, folder / name)
        return written


class Writing:
    """A snapshot that is being written by a thread."""

    def __init__(self, snapshot: Snapshot, folder: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future: Future[Files] = self._thread.submit(snapshot.write, folder)
        self._thread.shutdown(wait=False)

    def files(self, *, wait: bool) -> Files | None:
        """What was written; None while that goes on. Raises what went wrong."""
        return self._future.result() if wait or self._future.done() else None


def read_values(path: Path) -> Any:
    """The plain values of a file NAME.json."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file NAME.safetensors."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary


def pack_sequences(sequences: Sequences, prefix: str) -> dict[str, torch.Tensor]:
    """Sequences as tensors of a snapshot."""
    arrays = {
        "tokens": sequences.tokens.values,
        "lengths": sequences.tokens.lengths,
        "prompt_lengths": sequences.prompt_lengths,
        "prompt_ids": sequences.prompt_ids,
        "ended": sequences.ended,
    }
    return {f"{prefix}/{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def unpack_sequences(tensors: Mapping[str, torch.Tensor], prefix: str) -> Sequences:
    """What `pack_sequences` packed."""
    found = {name: tensors[f"{prefix}/{name}"].numpy() for name in _PARTS}
    tokens = Ragged(found["tokens"], found["lengths"])
    return Sequences(tokens, found["prompt_lengths"], found["prompt_ids"], found["ended"])


_PARTS = ("tokens", "lengths", "prompt_lengths", "prompt_ids", "ended")


def _file(folder: Path, path: Path) -> Files:
    return {path.relative_to(folder).as_posix(): flushed(path)}
