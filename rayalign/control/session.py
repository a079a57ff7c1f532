"""RLlib at work for one run: env runners that sample, and learners that hold policy and reward.

Without remote runners and learners everything is in this process and Ray is not started, for a debugger as for two cores;
with them the same classes are Ray actors of a cluster.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune.registry import register_env

from rayalign.config.control import ControlConfig
from rayalign.control.environments import HORIZON_REASON, Task, make_environment
from rayalign.control.learner import POLICY, POLICY_SETTINGS, REWARD_SETTINGS, SKIPPED, RewardedLearner
from rayalign.control.networks import REWARD, RewardModule
from rayalign.control.ppo import PpoLearner, PpoModule
from rayalign.control.sac import SacLearner, SacModule
from rayalign.errors import Diverged, UserError, WorkerLost

ENVIRONMENT = "rayalign-control"
SKIPS_ALLOWED = 3


@dataclass(frozen=True)
class Algorithm:
    """A policy's networks and their learner."""

    module: type[SacModule] | type[PpoModule]
    learner: type[RewardedLearner]


ALGORITHMS = {"sac": Algorithm(SacModule, SacLearner), "ppo": Algorithm(PpoModule, PpoLearner)}
OF_REWARD_MODULE = {"hidden", "inputs", "clamp", "divergence", "ensemble", "pessimism"}
SAMPLE_TIMEOUT_S = 600.0
METRICS = {
    POLICY: ("critic_loss", "q_mean", "entropy", "entropy_coef", "clipped_frac", "kl_from_sampler"),
    REWARD: (
        "margin_demo_minus_agent",
        "demo_mean",
        "agent_mean",
        "preference_nll",
        "preference_accuracy",
        "clamped_frac",
        "ensemble_std",
    ),
}


class RlSession:
    """Samples of the policy in, updates of policy and reward out. Close it."""

    def __init__(
        self, config: ControlConfig, task: Task, scale: np.ndarray, *, coefficients: tuple[float, float] | None
    ) -> None:
        """
        Args:
            scale: [O], what observations are divided by.
            coefficients: of the demonstrations' and the preferences' mean loss (`joint_coefficients`); None: no reward is
                learned, and the policy follows the environment's.
        """
        for noisy in ("ray.rllib", "ray._common.deprecation"):  # they warn of RLlib's own code at every start
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.task = task
        self._policy = config.policy
        self._num_learners = max(1, config.placement.num_learners)
        algorithm = _algorithm_config(config, task, scale, coefficients)
        register_env(ENVIRONMENT, lambda _: make_environment(config.environment))
        self._group: EnvRunnerGroup | None = None
        self._local: SingleAgentEnvRunner | None = None
        with warnings.catch_warnings():
            # Of RLlib's own name for the environment, where a process has had a session before.
            warnings.filterwarnings("ignore", message=".*Overriding environment")
            if config.placement.num_env_runners:
                self._group = EnvRunnerGroup(config=algorithm, local_env_runner=False)
                self._group.foreach_env_runner(_seed_random_actions, local_env_runner=False)
            else:
                self._local = SingleAgentEnvRunner(config=algorithm, worker_index=0)
                _seed_random_actions(self._local)
        self._learners = algorithm.build_learner_group(rl_module_spec=algorithm.rl_module_spec)
        self.num_steps = 0
        self.push_weights()

    @property
    def num_shares(self) -> int:
        """Among how many learners a batch is divided."""
        return self._num_learners

    def sample(self, num: int, *, random: bool = False) -> list[dict[str, np.ndarray]]:
        """At least `num` steps of the policy, or random ones, as pieces of episodes of one environment each.

        Each piece holds obs[B, O], new_obs[B, O], actions[B, A] in [-1, 1], rewards[B], terminateds[B]. Raises UserError
        where an episode ends early and that is not allowed.
        """
        pieces = [self._piece(episode, random) for episode in self._episodes(num, random) if len(episode)]
        self.num_steps += sum(len(piece["rewards"]) for piece in pieces)
        return pieces

    def _episodes(self, num: int, random: bool) -> list[Any]:
        if self._local is not None:
            return list(self._local.sample(num_timesteps=num, random_actions=random))
        assert self._group is not None
        each = -(-num // max(1, self._group.num_healthy_remote_workers()))
        found = self._group.foreach_env_runner(
            lambda runner: runner.sample(num_timesteps=each, random_actions=random),
            local_env_runner=False,
            timeout_seconds=SAMPLE_TIMEOUT_S,
        )
        if not found:
            raise WorkerLost(f"sampling: no env runner answered within {SAMPLE_TIMEOUT_S:g} s; see Ray's logs")
        return [episode for episodes in found for episode in episodes]

    def _piece(self, episode: Any, random: bool) -> dict[str, np.ndarray]:
        observations = np.asarray(episode.get_observations(), np.float32)
        actions = np.asarray(episode.get_actions())
        ended = np.zeros(len(episode), np.float32)
        ended[-1] = episode.is_terminated
        if episode.is_terminated and not self.task.allow_variable_horizon:
            raise UserError(f"environment: {self.task.environment} ended an episode early, and {HORIZON_REASON}")
        return {
            "obs": observations[:-1],
            "new_obs": observations[1:],
            "actions": self._seen(actions, random),
            "rewards": np.asarray(episode.get_rewards(), np.float32),
            "terminateds": ended,
        }

    def _seen(self, actions: np.ndarray, random: bool) -> np.ndarray:
        """As networks see them. RLlib keeps the policy's own in [-1, 1], but random ones in the environment's scale."""
        if self.task.is_choice:
            return self.task.to_unit(actions)
        vectors = np.asarray(actions, np.float32).reshape(len(actions), -1)
        return np.clip(self.task.to_unit(vectors), -1, 1) if random else vectors

    def advantage_rows(self, pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """PPO's rows of the steps of `sample`, under the newest reward and critic, which all learners have alike."""
        found = self._learners.foreach_learner(lambda learner: learner.advantage_rows(pieces))
        return dict(next(iter(found)).get())

    def update_policy(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Updates on rows of several batches: as many as `batch_size` goes into them, in one call."""
        return self._update(POLICY, rows, self._policy.batch_size // self._num_learners)

    def update_reward(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """One step of the reward on the rows of `reward_rows`."""
        return self._update(REWARD, rows, None)

    def _update(self, module: str, rows: Mapping[str, np.ndarray], minibatch: int | None) -> dict[str, float]:
        tensors = SampleBatch({name: torch.from_numpy(array) for name, array in rows.items()})
        batch = MultiAgentBatch({module: tensors}, env_steps=len(tensors))
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_steps}
        results = self._learners.update(batch=batch, timesteps=timesteps, minibatch_size=minibatch)
        for result in results:
            if _number(result.get(SKIPPED, 0.0)) >= SKIPS_ALLOWED:
                raise Diverged(
                    f"the {module} loss was not finite {SKIPS_ALLOWED} times in a row; lower the learning rates"
                )
        found = [result[module] for result in results if module in result]
        return {name: float(np.mean([_number(r[name]) for r in found])) for name in METRICS[module] if name in found[0]}

    def push_weights(self) -> None:
        """Gives the env runners the newest policy."""
        weights = self.weights(POLICY)
        if self._local is not None:
            self._local.set_state({"rl_module": weights})
        else:
            assert self._group is not None
            self._group.foreach_env_runner(
                lambda runner: runner.set_state({"rl_module": weights}),
                local_env_runner=False,
                timeout_seconds=SAMPLE_TIMEOUT_S,
            )

    def weights(self, module: str) -> dict[str, Any]:
        """A module's parameters, as arrays by name."""
        state = self._learners.get_weights(module_ids=[module])
        return dict(state[module])

    def of_each_learner(self, module: str) -> list[dict[str, Any]]:
        """As `weights`, of every learner: they should not differ."""
        found = self._learners.foreach_learner(lambda learner: learner.module[module].unwrapped().get_state())
        return [dict(result.get()) for result in found]

    def state(self) -> dict[str, Any]:
        """All of the learners: modules, targets, optimisers, entropy coefficient."""
        return dict(self._learners.get_state())

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._learners.set_state(state)
        self.push_weights()

    def close(self) -> None:
        """Ends env runners and learners."""
        self._learners.shutdown()
        if self._local is not None:
            self._local.stop()
        if self._group is not None:
            self._group.stop()


def _seed_random_actions(runner: SingleAgentEnvRunner) -> None:
    """RLlib seeds resets and policies, and leaves these to chance."""
    runner.env.action_space.seed(runner.config.seed + runner.worker_index)


def _algorithm_config(
    config: ControlConfig, task: Task, scale: np.ndarray, coefficients: tuple[float, float] | None
) -> SACConfig:
    policy, placement = config.policy, config.placement
    settings = {POLICY_SETTINGS: _policy_settings(config, task)}
    if coefficients is not None:
        settings[REWARD_SETTINGS] = _reward_settings(config, task, coefficients)
    found = (
        SACConfig()  # of it only what env runners and learners ask for: the loss is ours
        .environment(ENVIRONMENT, observation_space=_box(task, task.observation_size), action_space=_bounds(task))
        .env_runners(num_env_runners=placement.num_env_runners, rollout_fragment_length=policy.fragment)
        .learners(
            num_learners=placement.num_learners,
            num_gpus_per_learner=placement.gpus_per_learner,
            learner_class=ALGORITHMS[policy.algorithm].learner,
            learner_config_dict=settings,
        )
        .rl_module(rl_module_spec=_modules(config, task, scale, learned=coefficients is not None))
        .debugging(seed=config.seed, log_level="ERROR")
    )
    found.torch_skip_nan_gradients = True  # the learner looks at the losses; looking at each gradient costs a sixth
    return found


def _modules(config: ControlConfig, task: Task, scale: np.ndarray, *, learned: bool) -> MultiRLModuleSpec:
    spaces: dict[str, Any] = {"observation_space": _box(task, task.observation_size), "action_space": _bounds(task)}
    shared = [float(number) for number in scale]
    coef = config.policy.initial_entropy_coef if config.policy.entropy_coef == "auto" else config.policy.entropy_coef
    sizes = {"scale": shared, "action_size": task.action_size}
    policy = {"hidden": list(config.policy.hidden), "entropy_coef": coef} | sizes
    specs = {POLICY: RLModuleSpec(module_class=ALGORITHMS[config.policy.algorithm].module, model_config=policy, **spaces)}
    if learned:
        settings = config.reward.model_dump(include=OF_REWARD_MODULE) | sizes
        specs[REWARD] = RLModuleSpec(module_class=RewardModule, model_config=settings, learner_only=True, **spaces)
    return MultiRLModuleSpec(rl_module_specs=specs)


def _policy_settings(config: ControlConfig, task: Task) -> dict[str, Any]:
    policy = config.policy
    shared = {"discount": policy.discount, "learning_rate": policy.learning_rate, "weight_decay": 0.0}
    if policy.algorithm == "ppo":
        return shared | policy.ppo.model_dump(exclude={"epochs"})
    return shared | {
        "tau": policy.tau,
        "learns_entropy_coef": policy.entropy_coef == "auto",
        "target_entropy": -float(task.action_size),
    }


def _reward_settings(config: ControlConfig, task: Task, coefficients: tuple[float, float]) -> dict[str, Any]:
    reward = config.reward
    return {
        "demonstration_coef": coefficients[0],
        "preference_coef": coefficients[1],
        "preference_temperature": reward.preference_temperature,
        "horizon": task.horizon,
        "loss": reward.loss,
        "clamp": reward.clamp,
        "learning_rate": reward.optimizer.learning_rate,
        "weight_decay": reward.optimizer.weight_decay,
    }


def _box(task: Task, size: int) -> Any:
    from gymnasium.spaces import Box

    return Box(-np.inf, np.inf, (size,), np.float32)


def _bounds(task: Task) -> Any:
    from gymnasium.spaces import Box, Discrete

    if task.is_choice:
        return Discrete(task.action_size)
    return Box(task.low.astype(np.float32), task.high.astype(np.float32), dtype=np.float32)


def _number(value: Any) -> float:
    """A plain number of RLlib's statistics, which may be objects."""
    if hasattr(value, "peek"):
        value = value.peek()
    return float(value)
