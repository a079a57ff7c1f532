"""One run's alternation: policy steps on the newest reward, then reward steps against the newest policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from rayalign.config.control import ControlConfig
from rayalign.control.algorithm import ALGORITHMS
from rayalign.control.data import ControlData
from rayalign.control.demonstrations import Demonstrations
from rayalign.control.environments import Task
from rayalign.control.learner import POLICY
from rayalign.control.networks import REWARD, REWARD_ACTIVATION
from rayalign.control.policies import Network, SavedPolicy, network_of, reward_network_of
from rayalign.control.replay import Replay
from rayalign.control.rows import CRITICS_ALONE, DEMONSTRATED, Steps, reward_rows
from rayalign.control.session import RlSession
from rayalign.errors import UserError

Numbers = dict[str, float]


class Alternation:
    """Policy, reward and replay of a run, and what one round does to them. Close it.

    Without data the policy follows the environment's own reward.
    """

    def __init__(
        self,
        config: ControlConfig,
        task: Task,
        data: ControlData,
        scale: np.ndarray,
        weights: tuple[float, float] | None,
    ) -> None:
        """
        Args:
            weights: the two terms' coefficients; None for the environment's reward.
        """
        self.config, self.task, self.scale, self._data = config, task, scale, data
        self._learns_reward = weights is not None
        torch.manual_seed(config.seed)
        np.random.seed(
            config.seed
        )  # RLlib's env runners and Gymnasium's spaces draw from it where nothing else is given
        self.rng = np.random.default_rng(config.seed)
        self.session = RlSession(config, task, scale, coefficients=weights)
        self.replay = Replay(config.policy.replay_size, task.observation_size, task.action_size)
        self._shown: Replay | None = None  # what is demonstrated, for SAC's batches
        if config.policy.demonstration_share and data.demonstrations is not None:
            self._shown = self._demonstrated(data.demonstrations)
        self.num_in_round = 0  # environment steps of the round in progress
        self.num_updates = 0.0  # that are due: what is left of a whole one stays for the next fragment

    def warm_up(self, stopping: Callable[[], bool] = lambda: False, clone: Network | None = None) -> bool:
        """Random steps, which PPO has no use for, and the reward's first lessons where it has any before the first round.

        With a `clone` the policy begins as it, and the steps are its own. Then reward and critics learn from them, before
        critics that know nothing spoil the actor. Whether it came to its end: `stopping` did not say so before.
        """
        if clone is not None:
            self.session.begin_as(clone)
        for lesson in self._first_lessons(is_cloned=clone is not None):
            if stopping():
                return False
            lesson()
        return True

    def _first_lessons(self, *, is_cloned: bool) -> Iterator[Callable[[], object]]:
        policy, reward = self.config.policy, self.config.reward
        while policy.algorithm == "sac" and len(self.replay) < policy.warmup_steps:
            yield partial(self._collect, policy.fragment, random=not is_cloned)
        for _ in range(reward.pretrain_steps if self._learns_reward else 0):
            yield partial(self._reward_step, preferences_only=True)
        if is_cloned:
            yield self.reward_steps
            for _ in range(0, policy.warmup_steps, policy.fragment):
                yield self._critic_updates

    def _critic_updates(self) -> None:
        rows = self._replayed_rows(self.config.policy.fragment)
        if len(rows["obs"]):
            self.session.update_policy(rows | {CRITICS_ALONE: np.ones(len(rows["obs"]), np.float32)})

    def policy_steps(
        self, advanced: Callable[[int], None], stopping: Callable[[], bool] = lambda: False
    ) -> Numbers | None:
        """`steps_per_round` environment steps and the updates that are due for them; the last update's numbers.

        None where `stopping` said so before they were done; the next call does the rest.
        """
        policy = self.config.policy
        numbers: Numbers = {}
        while self.num_in_round < policy.steps_per_round:
            if stopping():
                return None
            pieces = self._collect(min(policy.fragment, policy.steps_per_round - self.num_in_round), random=False)
            num = sum(len(piece["rewards"]) for piece in pieces)
            self.num_in_round += num
            rows = self._newest_rows(pieces) if policy.algorithm == "ppo" else self._replayed_rows(num)
            if len(rows["obs"]):
                numbers = self.session.update_policy(rows)
            self.session.push_weights()
            advanced(num)
        self.num_in_round = 0
        return numbers

    def reward_steps(self) -> Numbers:
        """The round's lessons of the reward; the last one's numbers."""
        numbers: Numbers = {}
        for _ in range(self.config.reward.steps):
            numbers = self._reward_step()
        return numbers

    def _demonstrated(self, demonstrations: Demonstrations) -> Replay:
        rows = demonstrations.transitions()
        if not len(rows["rewards"]):
            raise UserError("policy.demonstration_share: no demonstration has two steps; leave it out")
        replay = Replay(len(rows["rewards"]), self.task.observation_size, self.task.action_size)
        replay.add(rows)
        return replay

    def _collect(self, num: int, *, random: bool) -> list[dict[str, np.ndarray]]:
        pieces = self.session.sample(num, random=random)
        for piece in pieces:
            self.replay.add(piece)
        return pieces

    def _replayed_rows(self, num_steps: int) -> dict[str, np.ndarray]:
        """SAC's batches for the updates that are due after `num_steps` more, from the whole replay."""
        self.num_updates += num_steps * self.config.policy.updates_per_step
        num = int(self.num_updates)
        self.num_updates -= num
        rows = self.replay.sample(num * self.config.policy.batch_size, self.rng)
        if self._shown is not None:
            is_shown = self.rng.random(len(rows["rewards"])) < self.config.policy.demonstration_share
            shown = self._shown.sample(int(is_shown.sum()), self.rng)
            for name, array in rows.items():
                array[is_shown] = shown[name]
            rows[DEMONSTRATED] = is_shown.astype(np.float32)
        return rows

    def _newest_rows(self, pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """PPO's batches: every step once an epoch, in another order each time; what fills no batch is left out."""
        found = self.session.advantage_rows(pieces)
        num, size = len(found["obs"]), self.config.policy.batch_size
        orders = [self.rng.permutation(num)[: num // size * size] for _ in range(self.config.policy.ppo.epochs)]
        order = np.concatenate(orders)
        return {name: array[order] for name, array in found.items()}

    def _reward_step(self, *, preferences_only: bool = False) -> Numbers:
        data, reward = self._data, self.config.reward
        demonstrations = agent = preferences = None
        if data.demonstrations is not None and not preferences_only:
            steps = Steps(data.demonstrations.observations, data.demonstrations.actions)
            demonstrations = self._some(steps, reward.demonstration_batch)
            agent = self.replay.newest(reward.agent_window)
        if data.preferences is not None:
            rows = self.rng.permutation(data.preferences.num)[: reward.preference_batch]
            preferences = data.preferences.at(rows)
        return self.session.update_reward(reward_rows(demonstrations, agent, preferences, self.session.num_shares))

    def _some(self, steps: Steps, num: int | None) -> Steps:
        if num is None or num >= len(steps):
            return steps
        return steps.at(self.rng.integers(0, len(steps), num))

    def policy(self) -> SavedPolicy:
        """The policy as it is now, or the average of its weights over its updates where one is kept."""
        module = ALGORITHMS[self.config.policy.algorithm].module
        part = "average" if self.config.policy.ema_decay else "actor"
        network = network_of(self.session.weights(POLICY), part, module.activation)
        return SavedPolicy(network, self.task.is_choice)

    def reward(self) -> Network:
        """The reward as it is now."""
        return reward_network_of(self.session.weights(REWARD), REWARD_ACTIVATION, self.config.reward)

    def state(self) -> dict[str, Any]:
        """All that a resumption needs; what an episode in progress holds is not among it: a new one begins."""
        return {
            "learner": self.session.state(),
            "replay": self.replay.state(),
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "num_updates": self.num_updates,
            "num_in_round": self.num_in_round,
            "num_steps": self.session.num_steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.session.restore(state["learner"])
        self.replay.restore(state["replay"])
        self.rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(torch.as_tensor(state["torch"], dtype=torch.uint8))
        self.num_updates, self.num_in_round = state["num_updates"], state["num_in_round"]
        self.session.goes_on_at(state["num_steps"])
        np.random.seed((self.config.seed + self.session.num_steps) % 2**32)

    def close(self) -> None:
        """Ends RLlib's workers."""
        self.session.close()
