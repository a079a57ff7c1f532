"""Preferences: pairs of segments of one length, of which one was preferred, in an npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayalign.control.environments import Task
from rayalign.control.files import check_environment, checked_numbers, read_arrays, unit_actions, write_arrays
from rayalign.errors import DataError

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Preferences:
    """M pairs of L steps: observations[M, 2, L, O] and actions[M, 2, L, A] in [-1, 1]; the preferred one first."""

    observations: np.ndarray
    actions: np.ndarray

    @property
    def num(self) -> int:
        """Pairs."""
        return len(self.observations)

    @property
    def length(self) -> int:
        """Steps of a segment."""
        return int(self.observations.shape[2])

    def at(self, rows: np.ndarray | slice) -> Preferences:
        """Some of the pairs."""
        return Preferences(self.observations[rows], self.actions[rows])


def load_preferences(path: Path, task: Task, num: int | None = None) -> Preferences:
    """Reads and checks a file; with `num` its first pairs. Raises DataError, one line, for what does not fit the task."""
    needed = [f"{side}_{part}" for side in SIDES for part in ("observations", "actions")]
    arrays = read_arrays(path, needed)
    check_environment(path, arrays, task)
    sizes = {name: arrays[name].shape[:2] for name in needed}
    if any(len(arrays[name]) == 0 for name in needed if arrays[name].ndim):
        raise DataError(f"{path}: holds no pairs; record some, or set method to ml_irl")
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in sizes.items())
        raise DataError(f"{path}: both sides of a pair need segments of one length, got pairs x steps of {told}")
    shape = sizes[needed[0]]
    if 0 in shape:
        raise DataError(f"{path}: its segments have no steps; record some, or set method to ml_irl")
    observations = [
        checked_numbers(path, f"{side}_observations", arrays[f"{side}_observations"], (*shape, task.observation_size))
        for side in SIDES
    ]
    names = [f"{side}_actions" for side in SIDES]
    actions = unit_actions(path, arrays, names, task, shape)
    if num is not None and num > shape[0]:
        raise DataError(f"{path}: has {shape[0]} pairs, and preferences.num asks for {num}")
    whole = Preferences(np.stack(observations, axis=1), np.stack(actions, axis=1))
    return whole if num is None else whole.at(slice(num))


def save_preferences(path: Path, preferences: Preferences, task: Task) -> None:
    """Writes them in the environment's scale."""
    arrays: dict[str, np.ndarray] = {
        "environment": np.array(task.environment),
        "action_scale": np.array("environment"),
    }
    for number, side in enumerate(SIDES):
        arrays[f"{side}_observations"] = preferences.observations[:, number]
        arrays[f"{side}_actions"] = task.to_environment(preferences.actions[:, number])
    write_arrays(path, arrays)
