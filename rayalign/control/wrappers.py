"""Wrappers of Gymnasium's, for environments of training. Imported where Gymnasium is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from rayalign.errors import UserError


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells what goes wrong inside an environment in one line that names it: what it raises, and numbers that are none.

    Observations come out in the shape and the precision of networks: float32[O].
    """

    def __init__(self, environment: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(environment)
        self._name, self._num_steps = name, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._num_steps = 0
        with self._named("reset"):
            observation, told = super().reset(seed=seed, options=options)
        return self._checked(observation), told

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self._num_steps += 1
        with self._named("step"):
            observation, reward, terminated, truncated, told = super().step(action)
        if not np.isfinite(float(reward)):
            raise UserError(f"environment: {self._name} paid {float(reward)} at step {self._num_steps} of an episode")
        return self._checked(observation), reward, terminated, truncated, told

    def _checked(self, observation: Any) -> np.ndarray:
        found = np.asarray(observation, dtype=np.float32)
        where = f"at step {self._num_steps} of an episode"
        if found.shape != self.observation_space.shape:
            raise UserError(f"environment: {self._name} observed {found.shape} {where}, not {self.observation_space.shape}")
        if not np.isfinite(found).all():
            raise UserError(f"environment: {self._name} observed {found[~np.isfinite(found)][0]} {where}")
        return found

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"environment: {self._name} failed in {what} {self._num_steps}: {type(error).__name__}: {told}"
            ) from error


class CutWhenUnhealthy(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Truncates an episode after `num` steps in a row in which the environment calls itself unhealthy (`is_healthy`)."""

    def __init__(self, environment: gymnasium.Env[Any, Any], num: int) -> None:
        super().__init__(environment)
        self._num, self._in_a_row = num, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._in_a_row = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, told = super().step(action)
        self._in_a_row = 0 if self.get_wrapper_attr("is_healthy") else self._in_a_row + 1
        return observation, reward, terminated, truncated or self._in_a_row >= self._num, told
