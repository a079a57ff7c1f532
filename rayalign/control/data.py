"""The data of a run: loaded by its method, and what follows from it: the scale of observations, the terms' weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayalign.config.control import ControlConfig
from rayalign.control.demonstrations import Demonstrations, load_demonstrations
from rayalign.control.environments import Task
from rayalign.control.preferences import Preferences, load_preferences
from rayalign.errors import UserError
from rayalign.objectives.reward import joint_coefficients
from rayalign.storage.checkpoints import file_hash

SMALLEST = 1e-3  # an observation that never leaves 0 is not blown up


@dataclass(frozen=True)
class ControlData:
    """What the method learns from; None for what it does not read."""

    demonstrations: Demonstrations | None = None
    preferences: Preferences | None = None

    def observations(self) -> np.ndarray:
        """All of them: [B, O]."""
        found = [] if self.demonstrations is None else [self.demonstrations.observations]
        if self.preferences is not None:
            size = self.preferences.observations.shape[-1]
            found.append(self.preferences.observations.reshape(-1, size))
        return np.concatenate(found)


def file_hashes(config: ControlConfig) -> dict[str, str]:
    """SHA-256 of the files that the method learns from, by name."""
    used = {"demonstrations": config.uses_demonstrations, "preferences": config.uses_preferences}
    sources = {"demonstrations": config.demonstrations, "preferences": config.preferences}
    found = {name: source for name, source in sources.items() if source is not None and used[name]}
    return {name: file_hash(Path(source.path).expanduser()) for name, source in found.items()}


def load_data(config: ControlConfig, task: Task) -> ControlData:
    """Raises UserError for a source that the method needs and the config does not name, DataError for a bad file."""
    demonstrations = preferences = None
    if config.uses_demonstrations:
        source = config.demonstrations
        if source is None:
            raise UserError(f"demonstrations: method {config.method} learns from them; set demonstrations.path")
        demonstrations = load_demonstrations(Path(source.path).expanduser(), task, source.num)
    if config.uses_preferences:
        source = config.preferences
        if source is None:
            raise UserError(f"preferences: method {config.method} learns from them; set preferences.path")
        preferences = load_preferences(Path(source.path).expanduser(), task, source.num)
        if preferences.num < config.placement.num_learners:
            raise UserError(
                f"placement.num_learners: {config.placement.num_learners} learners, and {source.path} has "
                f"{preferences.num} pairs to share; lower it"
            )
    return ControlData(demonstrations, preferences)


def observation_scale(config: ControlConfig, observations: np.ndarray) -> np.ndarray:
    """What observations are divided by, [O]: the config's, or their root mean squares."""
    if config.environment.observation_scale is not None:
        return np.asarray(config.environment.observation_scale, np.float32)
    size = np.sqrt(np.mean(np.square(observations.astype(np.float64)), axis=0))
    return np.where(size < SMALLEST, 1.0, size).astype(np.float32)


def coefficients(config: ControlConfig, data: ControlData) -> tuple[float, float]:
    """Of the mean loss of a demonstration and of a pair (`joint_coefficients`); a source that is not read has none."""
    reward = config.reward
    return joint_coefficients(
        demo_weight=reward.demonstration_weight if data.demonstrations else 0.0,
        preference_weight=reward.preference_weight if data.preferences else 0.0,
        num_demonstrations=data.demonstrations.num if data.demonstrations else 0,
        num_preferences=data.preferences.num if data.preferences else 0,
        weighting=reward.weighting,
    )
