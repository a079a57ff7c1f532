"""A flat replay of transitions: arrays in a ring. RLlib's own buffers slice episodes in Python, at ten times the cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rayalign.control.rows import Steps

GROWTH = 4096  # rows at least by which it grows: a million rows of a large observation need not be there from the start


class Replay:
    """The newest `capacity` transitions. Rewards are the environment's; a learned one takes their place at use."""

    def __init__(self, capacity: int, observation_size: int, action_size: int) -> None:
        self._capacity = capacity
        self._arrays = {
            "obs": np.empty((0, observation_size), np.float32),
            "new_obs": np.empty((0, observation_size), np.float32),
            "actions": np.empty((0, action_size), np.float32),
            "rewards": np.empty(0, np.float32),
            "terminateds": np.empty(0, np.float32),
        }
        self._next = self._num = 0

    def __len__(self) -> int:
        return self._num

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Transitions in their order: obs[B, O], new_obs[B, O], actions[B, A] in [-1, 1], rewards[B], terminateds[B]."""
        num = len(rows["rewards"])
        self._make_room(num)
        places = (self._next + np.arange(num)) % self._capacity
        for name, array in self._arrays.items():
            array[places] = rows[name]
        self._next = int((self._next + num) % self._capacity)
        self._num = min(self._num + num, self._capacity)

    def sample(self, num: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`num` transitions, each drawn alike and with replacement."""
        rows = rng.integers(0, self._num, num)
        return {name: array[rows] for name, array in self._arrays.items()}

    def newest(self, num: int) -> Steps:
        """The last `num` transitions, or all if there are fewer."""
        places = (self._next - 1 - np.arange(min(num, self._num))) % self._capacity
        return Steps(self._arrays["obs"][places], self._arrays["actions"][places])

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        return {name: array[: self._num] for name, array in self._arrays.items()} | {"next": np.array(self._next)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""
        self._num, self._next = len(state["rewards"]), int(state["next"])
        self._arrays = {name: np.array(state[name]) for name in self._arrays}

    def _make_room(self, num: int) -> None:
        there = len(self._arrays["rewards"])
        needed = min(self._num + num, self._capacity)
        if needed <= there:
            return
        size = min(self._capacity, max(needed, 2 * there, GROWTH))
        for name, array in self._arrays.items():
            grown = np.empty((size, *array.shape[1:]), array.dtype)
            grown[:there] = array
            self._arrays[name] = grown
