"""Wrappers of Gymnasium's, for environments of training. Imported where Gymnasium is there."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium


class CutWhenUnhealthy(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Truncates an episode after `num` steps in a row in which the environment calls itself unhealthy (`is_healthy`)."""

    def __init__(self, environment: gymnasium.Env[Any, Any], num: int) -> None:
        super().__init__(environment)
        self._num, self._in_a_row = num, 0

    def reset(self, **keys: Any) -> tuple[Any, dict[str, Any]]:
        self._in_a_row = 0
        return super().reset(**keys)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, told = super().step(action)
        self._in_a_row = 0 if self.get_wrapper_attr("is_healthy") else self._in_a_row + 1
        return observation, reward, terminated, truncated or self._in_a_row >= self._num, told
