"""The rows of a reward step: transitions of demonstrations, of the policy, and of preferred and rejected segments.

They travel as one table, since RLlib cuts a batch by rows when there are several learners. Rows are laid so that each
learner's share holds as many of each kind as another's: then the mean of their gradients is the gradient of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayalign.control.preferences import Preferences

SIDE, SEGMENT = "side", "segment"
CRITICS_ALONE = "critics_alone"  # of a row of the policy, [B]: there where only the critics are to learn
DEMONSTRATED = "demonstrated"  # of a row of the policy, [B]: 1 where it is a demonstration's; may be left out
DEMONSTRATION, PREFERENCE, AGENT = 1, 0, -1


@dataclass(frozen=True)
class Steps:
    """Transitions without an order: observations[B, O], actions[B, A] in [-1, 1]."""

    observations: np.ndarray
    actions: np.ndarray

    def __len__(self) -> int:
        return len(self.observations)

    def at(self, rows: np.ndarray | slice) -> Steps:
        """Some of them."""
        return Steps(self.observations[rows], self.actions[rows])


def reward_rows(
    demonstrations: Steps | None, agent: Steps | None, preferences: Preferences | None, num_shares: int = 1
) -> dict[str, np.ndarray]:
    """One table of all, in `num_shares` equal parts: obs[R, O], actions[R, A], side[R], segment[R].

    What does not divide by `num_shares` is left out, some rows of each kind at most.
    """
    groups = []
    if demonstrations is not None and agent is not None:
        groups.append(_of_steps(demonstrations, DEMONSTRATION, num_shares))
        groups.append(_of_steps(agent, AGENT, num_shares))
    if preferences is not None:
        groups.append(_of_pairs(preferences, num_shares))
    names = ("obs", "actions", SIDE, SEGMENT)
    # [shares, rows of a share, ...] of each kind, joined share by share
    joined = [np.concatenate(column, axis=1) for column in zip(*groups, strict=True)]
    return {name: column.reshape(-1, *column.shape[2:]) for name, column in zip(names, joined, strict=True)}


def _of_steps(steps: Steps, side: int, num_shares: int) -> tuple[np.ndarray, ...]:
    each = len(steps) // num_shares
    kept = steps.at(slice(each * num_shares))
    shape = (num_shares, each)
    return (
        kept.observations.reshape(*shape, -1),
        kept.actions.reshape(*shape, -1),
        np.full(shape, side),
        np.full(shape, -1),
    )


def _of_pairs(preferences: Preferences, num_shares: int) -> tuple[np.ndarray, ...]:
    each = preferences.num // num_shares
    num, length = each * num_shares, preferences.length
    kept = preferences.at(slice(num))
    shape = (num_shares, each * 2 * length)
    return (
        kept.observations.reshape(*shape, -1),
        kept.actions.reshape(*shape, -1),
        np.full(shape, PREFERENCE),
        np.repeat(np.arange(2 * num), length).reshape(shape),
    )
