"""Checkpoints of a control run: reward, policy, optimisers, replay and random numbers, as tensors and JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayalign.config.control import ControlConfig
from rayalign.control.alternation import Alternation
from rayalign.control.data import file_hashes
from rayalign.control.folder import DONE_FILE, POLICY_FILE, PRODUCTS, RESULTS_FILE, REWARD_FILE, STAGE
from rayalign.errors import UserError
from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import STATE, CheckpointStore
from rayalign.storage.differences import differences
from rayalign.storage.snapshot import Snapshot, read_tensors, read_values
from rayalign.telemetry.tracker import Tracker

# What may change between a run and its going on: how it is watched and where it runs.
FREE = {"name", "run_dir", "evaluation", "expert", "placement", "telemetry", "checkpoints", "resume", "rounds", "max_s"}


class ControlCheckpoints:
    """Saves the alternation when it is due, and takes it up again."""

    def __init__(self, config: ControlConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._store = CheckpointStore(folder / "checkpoints" / STAGE, keep=config.checkpoints.keep)
        free = FREE - {"rounds"} if "linear" in (config.policy.schedule, config.reward.optimizer.schedule) else FREE
        self._settings = config.model_dump(mode="json", exclude=free)
        for source in ("demonstrations", "preferences"):  # known by their content, wherever they lie
            if self._settings[source] is not None:
                self._settings[source].pop("path")
        self._settings |= {f"content of {name}": found for name, found in file_hashes(config).items()}
        self._saved_at = time.monotonic()

    def is_finished(self) -> bool:
        """Whether the run in this folder is finished. Raises UserError where it is, with other settings or data."""
        file = self._folder / DONE_FILE
        if self._config.resume == "anew" or not file.exists():
            return False
        self._check(_readable(file), self._folder, {"rounds": self._config.rounds})
        for name in (POLICY_FILE, RESULTS_FILE, *([REWARD_FILE] if self._config.method != "behaviour_cloning" else [])):
            if not (self._folder / name).exists():
                raise UserError(
                    f"{self._folder / name}: is gone, and the run was finished; put it back, set name= for a new run, or "
                    "resume=anew to begin again and lose this one"
                )
        _readable(self._folder / RESULTS_FILE)
        return True

    def accept(self, tell: Callable[[str], None]) -> None:
        """Before anything is written: forgets what was there, with `resume: anew`; else raises UserError where what was
        interrupted has other settings or data."""
        if self._config.resume == "anew":
            self._store.clear()
            for name in PRODUCTS:
                (self._folder / name).unlink(missing_ok=True)
            return
        newest = self._store.newest(tell, needs=("settings", "records"))
        if newest is not None:
            self._check(newest.manifest["settings"], newest.folder)

    def restore(self, alternation: Alternation, tracker: Tracker, tell: Callable[[str], None]) -> int | None:
        """The rounds that were done at the newest checkpoint, where the alternation then is; None without one."""
        newest = self._store.newest(tell, needs=("settings", "records"))
        if newest is None:
            tracker.keep(STAGE, 0)
            return None
        state = unpacked(read_values(newest.state / "values.json"), read_tensors(newest.state / "tensors.safetensors"))
        alternation.restore(state)
        tracker.keep(STAGE, int(newest.manifest["records"]))
        tell(f"{STAGE}: goes on after round {newest.step}")
        return newest.step

    def save_if_due(self, alternation: Alternation, number: int, tracker: Tracker) -> None:
        """Saves after round `number` where seconds or rounds since the last one ask for it."""
        rules = self._config.checkpoints
        by_time = rules.every_s is not None and time.monotonic() - self._saved_at >= rules.every_s
        if by_time or (rules.every_steps is not None and number % rules.every_steps == 0):
            self.save(alternation, number, tracker)

    def save(self, alternation: Alternation, number: int, tracker: Tracker) -> None:
        """Saves the state after `number` rounds, and what is done of the next one."""
        values, tensors = packed(alternation.state())
        part = self._store.begin(number)
        snapshot = Snapshot(tensors={f"{STATE}/tensors": tensors}, values={f"{STATE}/values": values})
        files = snapshot.write(part)
        manifest = {"step": number, "score": None, "settings": self._settings, "records": tracker.count(STAGE)}
        self._store.commit(part, manifest, files)
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """The run is done: what only a resumption needs goes."""
        write_json(self._folder / DONE_FILE, self._settings | {"rounds": self._config.rounds})
        self._store.clear()

    def _check(self, before: Any, place: Path, further: Mapping[str, Any] = MappingProxyType({})) -> None:
        if not isinstance(before, dict):
            raise UserError(f"{place}: not of this program; set name= for a new run")
        now = self._settings | dict(further)
        if changed := differences({key: before.get(key) for key in now}, now):
            raise UserError(
                f"{place}: was made with another {', '.join(changed)}; set name= for a new run, or resume=anew to begin "
                "again and lose this one"
            )


def _readable(file: Path) -> Any:
    try:
        return read_values(file)
    except (OSError, ValueError):
        raise UserError(
            f"{file}: cannot be read; set name= for a new run, or resume=anew to begin again and lose this one"
        ) from None


def packed(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nest of dictionaries, lists, numbers and arrays as JSON and the tensors that it names. `unpacked` takes it back.

    Raises TypeError for anything else, such as an object that would need pickle.
    """
    tensors: dict[str, Tensor] = {}
    return _packed(state, tensors), tensors


def _packed(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        return {"items": [[key, _packed(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {"tuple" if isinstance(node, tuple) else "list": [_packed(value, tensors) for value in node]}
    if isinstance(node, (np.ndarray, np.generic, Tensor)):
        name = str(len(tensors))
        is_tensor = isinstance(node, Tensor)
        tensors[name] = node.detach().cpu().clone() if isinstance(node, Tensor) else torch.from_numpy(np.array(node))
        return {"tensor" if is_tensor else "array": name}
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a {type(node).__name__} cannot be saved without pickle")


def unpacked(node: Any, tensors: dict[str, Tensor]) -> Any:
    """What was packed."""
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "items":
        return {key: unpacked(child, tensors) for key, child in value}
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    children = [unpacked(child, tensors) for child in value]
    return tuple(children) if kind == "tuple" else children
