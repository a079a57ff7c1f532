"""Demonstrations: whole episodes of an expert, one after another in an npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayalign.control.environments import HORIZON_REASON, Task
from rayalign.control.files import Arrays, check_environment, checked_numbers, read_arrays, unit_actions, write_arrays
from rayalign.errors import DataError


@dataclass(frozen=True)
class Demonstrations:
    """Episodes end to end: observations[T, O], actions[T, A] in [-1, 1], lengths[N]; T is the sum of the lengths.

    `rewards[T]`, where the file has them, are the environment's: shown, never learned from.
    """

    observations: np.ndarray
    actions: np.ndarray
    lengths: np.ndarray
    rewards: np.ndarray | None = None

    @property
    def num(self) -> int:
        """Episodes."""
        return len(self.lengths)

    def returns(self) -> np.ndarray | None:
        """The episodes' true returns [N]."""
        if self.rewards is None:
            return None
        return np.add.reduceat(self.rewards.astype(np.float64), np.cumsum(self.lengths) - self.lengths)

    def mean_return(self) -> float:
        """Of the episodes; NaN where the file has no rewards."""
        returns = self.returns()
        return float("nan") if returns is None else float(returns.mean())

    def first(self, num: int) -> Demonstrations:
        """The first `num` episodes."""
        end = int(self.lengths[:num].sum())
        rewards = None if self.rewards is None else self.rewards[:end]
        return Demonstrations(self.observations[:end], self.actions[:end], self.lengths[:num], rewards)

    def transitions(self) -> dict[str, np.ndarray]:
        """As `Replay.add` takes them; an episode's last step, whose next observation is not kept, is left out.

        Their rewards are 0: whoever uses them pays them a learned one.
        """
        is_last = np.zeros(len(self.observations), bool)
        is_last[np.cumsum(self.lengths) - 1] = True
        at = np.flatnonzero(~is_last)
        zeros = np.zeros(len(at), np.float32)
        found = {"obs": self.observations[at], "new_obs": self.observations[at + 1], "actions": self.actions[at]}
        return found | {"rewards": zeros, "terminateds": zeros}


def load_demonstrations(path: Path, task: Task, num: int | None = None) -> Demonstrations:
    """Reads and checks a file; with `num` its first episodes. Raises DataError, one line, for what does not fit the task."""
    arrays = read_arrays(path, ("observations", "actions", "lengths"))
    check_environment(path, arrays, task)
    lengths = arrays["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths) or lengths.min() < 1:
        raise DataError(f"{path}: lengths is not a list of the episodes' steps, whole numbers of at least 1")
    if num is not None and num > len(lengths):
        raise DataError(f"{path}: has {len(lengths)} episodes, and demonstrations.num asks for {num}")
    total = int(lengths.sum())
    observations = checked_numbers(path, "observations", arrays["observations"], (None, task.observation_size))
    if len(observations) == total + len(lengths):
        observations = _without_last(observations, lengths)
    if len(observations) != total:
        raise DataError(
            f"{path}: observations has {len(observations)} rows, and the lengths add up to {total}; an episode has one for "
            "each action, or one more at its end"
        )
    (actions,) = unit_actions(path, arrays, ("actions",), task, (total,))
    rewards = checked_numbers(path, "rewards", arrays["rewards"], (total,)) if "rewards" in arrays else None
    whole = Demonstrations(observations, actions, lengths.astype(np.int64), rewards)
    read = whole if num is None else whole.first(num)
    _check_horizon(path, read, _ended(path, arrays, total), task)
    return read


def save_demonstrations(path: Path, demonstrations: Demonstrations, task: Task) -> None:
    """Writes them in the environment's scale."""
    arrays = {
        "environment": np.array(task.environment),
        "action_scale": np.array("environment"),
        "observations": demonstrations.observations,
        "actions": task.to_environment(demonstrations.actions),
        "lengths": demonstrations.lengths,
    }
    if demonstrations.rewards is not None:
        arrays["rewards"] = demonstrations.rewards
    write_arrays(path, arrays)


def _without_last(observations: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Episodes that also hold what was observed after their last action: no action belongs to it."""
    ends = np.cumsum(lengths + 1) - 1
    return np.delete(observations, ends, axis=0)


def _ended(path: Path, arrays: Arrays, total: int) -> np.ndarray:
    """Where the environment ended an episode: [T]."""
    if "terminated" not in arrays:
        return np.zeros(total, dtype=bool)
    found = arrays["terminated"]
    if found.dtype.kind != "b":
        found = checked_numbers(path, "terminated", found, (total,))
    if found.shape != (total,) or not np.isin(found, (0, 1)).all():
        raise DataError(f"{path}: terminated is not true or false for each of {total} steps; its shape is {found.shape}")
    return found.astype(bool)


def _check_horizon(path: Path, read: Demonstrations, terminated: np.ndarray, task: Task) -> None:
    """Of the episodes that were asked for."""
    if task.allow_variable_horizon:
        return
    lengths = read.lengths
    if len(set(lengths.tolist())) > 1:
        raise DataError(f"{path}: episodes are of {lengths.min()} to {lengths.max()} steps, and {HORIZON_REASON}")
    if lengths[0] != task.horizon:
        raise DataError(
            f"{path}: episodes are of {lengths[0]} steps, and those of {task.environment} run for {task.horizon} "
            f"(environment.max_episode_steps sets another number); {HORIZON_REASON}"
        )
    num_ended = int(terminated[: lengths.sum()].sum())
    if num_ended:
        raise DataError(f"{path}: {num_ended} episodes were ended by the environment, and {HORIZON_REASON}")
