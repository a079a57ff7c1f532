"""What a policy earns, and how a learned reward compares with the true one. Nothing here reaches a loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rayalign.config.control import EnvironmentConfig
from rayalign.control.demonstrations import Demonstrations
from rayalign.control.environments import Task, make_environment

Act = Callable[[np.ndarray], np.ndarray]  # observation[O] -> action[A], as `Task` has them


def roll_out(config: EnvironmentConfig, task: Task, act: Act, num: int, seed: int) -> Demonstrations:
    """`num` whole episodes from the resets seed, seed + 1, ...; the same policy gives the same episodes."""
    environment = make_environment(config)
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    lengths: list[int] = []
    try:
        for episode in range(num):
            observation, _ = environment.reset(seed=seed + episode)
            done, before = False, len(rewards)
            while not done:
                action = np.clip(act(np.asarray(observation, np.float32)), -1.0, 1.0)
                observations.append(np.asarray(observation, np.float32))
                actions.append(action)
                observation, reward, terminated, truncated, _ = environment.step(task.to_environment(action))
                rewards.append(float(reward))
                done = terminated or truncated
            lengths.append(len(rewards) - before)
    finally:
        environment.close()
    return Demonstrations(
        np.stack(observations), np.stack(actions), np.asarray(lengths), np.asarray(rewards, dtype=np.float32)
    )


def random_act(task: Task, seed: int) -> Act:
    """Actions drawn evenly from the bounds, or from the choices."""
    rng = np.random.default_rng(seed)
    if task.is_choice:
        return lambda _: task.to_unit(np.asarray(rng.integers(task.action_size)))
    return lambda _: rng.uniform(-1.0, 1.0, task.action_size).astype(np.float32)


def correlation(learned: np.ndarray, true: np.ndarray) -> float:
    """Pearson's, of rewards [B] and [B]; NaN where one of them does not vary.

    High on a mixture of good and bad steps does not mean that a policy on the reward does well.
    """
    if learned.std() == 0 or true.std() == 0:
        return float("nan")
    return float(np.corrcoef(learned, true)[0, 1])


def measure_return(config: EnvironmentConfig, task: Task, act: Act, num: int, seed: int) -> float:
    """The mean true return of `num` episodes."""
    return roll_out(config, task, act, num, seed).mean_return()
