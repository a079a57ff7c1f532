"""The workers' side of checkpoints: state is copied to host memory at once, and written while the engine works on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rayalign.config.model import LearnerConfig
from rayalign.engines.learner import whole_parameters
from rayalign.errors import RayalignError
from rayalign.storage.checkpoints import STATE, Files
from rayalign.storage.snapshot import Snapshot, Writing, read_tensors, read_values


class Checkpointed:
    """What an engine adds to be saved and resumed: `_snapshot` says what it keeps, `load_state` takes it back."""

    _writing: Writing | None = None

    def save_state(self, folder: str) -> None:
        """Copies all that a resumption needs, and begins to write it below `folder`; every rank calls it."""
        self._writing = Writing(self._snapshot(), Path(folder))

    def state_files(self, wait: bool) -> Files | None:
        """The files that this rank has written: {path: (bytes, SHA-256)}; None while it writes. Raises what went wrong."""
        if self._writing is None:
            raise RayalignError("state_files before save_state: nothing is being written")
        return self._writing.files(wait=wait)

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint; every rank calls it."""
        raise NotImplementedError

    def _snapshot(self) -> Snapshot:
        raise NotImplementedError


def joined(*parts: Snapshot) -> Snapshot:
    """One snapshot of several."""
    whole = Snapshot()
    for part in parts:
        whole.tensors |= part.tensors
        whole.values |= part.values
        whole.models |= part.models
    return whole


def random_state(name: str, rank: int) -> Snapshot:
    """The random numbers of this process: torch's on the host and the device, and numpy's."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors["numpy"] = torch.from_numpy(np.array(keys, dtype=np.int64))
    others = {"kind": str(kind), "position": int(position), "has_gauss": int(has_gauss), "cached": float(cached)}
    return Snapshot({f"{STATE}/random-{name}-{rank}": tensors}, {f"{STATE}/random-{name}-{rank}": others})


def restore_random_state(folder: Path, name: str, rank: int) -> None:
    """Takes up this rank's random numbers; a rank that the saved run did not have keeps its own."""
    path = folder / STATE / f"random-{name}-{rank}"
    if not path.with_suffix(".json").exists():
        return
    tensors, others = read_tensors(path.with_suffix(".safetensors")), read_values(path.with_suffix(".json"))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((others["kind"], keys, others["position"], others["has_gauss"], others["cached"]))


def generator_state(random: np.random.Generator) -> dict[str, Any]:
    """A numpy generator as plain values."""
    return dict(random.bit_generator.state)


def frozen_tensors(module: nn.Module, learner: LearnerConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of every parameter of a model for inference; a collective under ZeRO-3."""
    for name, parameter in module.named_parameters():
        with whole_parameters([parameter], learner):
            yield name, parameter.detach()


def load_frozen(module: nn.Module, tensors: dict[str, torch.Tensor], learner: LearnerConfig) -> None:
    """Takes what `frozen_tensors` gave; every rank calls it."""
    for name, parameter in module.named_parameters():
        with torch.no_grad(), whole_parameters([parameter], learner, written=True):
            parameter.data.copy_(tensors[name])
