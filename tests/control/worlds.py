"""What the tests of control share: Pendulum-v1, and an expert of it that needs no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayalign.config.control import EnvironmentConfig
from rayalign.control.demonstrations import Demonstrations, save_demonstrations
from rayalign.control.environments import Task, look_at, make_environment
from rayalign.control.preferences import Preferences, save_preferences

PENDULUM = EnvironmentConfig(id="Pendulum-v1", observation_scale=[1.0, 1.0, 4.0])


def pendulum() -> Task:
    """Its task: 3 observations, torques within [-2, 2], 200 steps."""
    return look_at(PENDULUM)


def swing_up(observation: np.ndarray) -> np.ndarray:
    """Torque in [-1, 1]: pumps energy while the rod hangs, and balances it once it is up."""
    cosine, sine, speed = (float(number) for number in observation)
    angle = np.arctan2(sine, cosine)
    if cosine > 0.9 and abs(speed) < 3.0:
        torque = -(12.0 * angle + 3.0 * speed)
    else:
        energy = speed**2 / 2 + 15.0 * (cosine - 1.0)  # 0 at rest upright
        torque = -2.0 * np.sign(speed if speed else 1.0) * np.sign(energy)
    return np.array([np.clip(torque / 2.0, -1.0, 1.0)], dtype=np.float32)


def demonstrate(num: int, *, noise: float = 0.1, seed: int = 0) -> Demonstrations:
    """Episodes of the scripted expert, with some noise in its actions."""
    task, rng = pendulum(), np.random.default_rng(seed)
    environment = make_environment(PENDULUM)
    observations, actions, rewards = [], [], []
    for episode in range(num):
        observation, _ = environment.reset(seed=seed + episode)
        for _ in range(task.horizon):
            action = np.clip(swing_up(observation) + noise * rng.normal(size=1), -1, 1).astype(np.float32)
            observations.append(observation)
            actions.append(action)
            observation, reward, _, _, _ = environment.step(task.to_environment(action))
            rewards.append(reward)
    environment.close()
    lengths = np.full(num, task.horizon)
    return Demonstrations(np.stack(observations), np.stack(actions), lengths, np.asarray(rewards, dtype=np.float32))


def write_demonstrations(path: Path, num: int) -> Path:
    """A file of them."""
    save_demonstrations(path, demonstrate(num), pendulum())
    return path


def some_preferences(num: int, length: int = 20, seed: int = 0) -> Preferences:
    """Pairs of segments of the expert (preferred) and of random states and actions."""
    rng = np.random.default_rng(seed)
    episodes = demonstrate(2)
    starts = rng.integers(0, len(episodes.observations) - length, num)
    rows = starts[:, None] + np.arange(length)
    angles, speeds = rng.uniform(-np.pi, np.pi, (num, length)), rng.uniform(-8, 8, (num, length))
    random = np.stack([np.cos(angles), np.sin(angles), speeds], axis=-1).astype(np.float32)
    observations = np.stack([episodes.observations[rows], random], axis=1)
    actions = np.stack([episodes.actions[rows], rng.uniform(-1, 1, (num, length, 1)).astype(np.float32)], axis=1)
    return Preferences(observations, actions)


def write_preferences(path: Path, num: int) -> Path:
    """A file of them."""
    save_preferences(path, some_preferences(num), pendulum())
    return path
