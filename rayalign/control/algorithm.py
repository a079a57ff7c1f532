"""What RLlib is told: networks, learners and env runners of a run, from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayalign.config.control import ControlConfig, Schedule
from rayalign.control.environments import Task
from rayalign.control.learner import POLICY, POLICY_SETTINGS, REWARD_SETTINGS, RewardedLearner
from rayalign.control.networks import REWARD, RewardModule
from rayalign.control.ppo import PpoLearner, PpoModule
from rayalign.control.sac import SacLearner, SacModule

ENVIRONMENT = "rayalign-control"


@dataclass(frozen=True)
class Algorithm:
    """A policy's networks and their learner."""

    module: type[SacModule] | type[PpoModule]
    learner: type[RewardedLearner]


ALGORITHMS = {"sac": Algorithm(SacModule, SacLearner), "ppo": Algorithm(PpoModule, PpoLearner)}
OF_REWARD_MODULE = {"hidden", "inputs", "clamp", "divergence", "ensemble", "pessimism"}


def algorithm_config(
    config: ControlConfig, task: Task, scale: np.ndarray, coefficients: tuple[float, float] | None
) -> SACConfig:
    """As `RlSession` takes them."""
    policy, placement = config.policy, config.placement
    settings = {POLICY_SETTINGS: _policy_settings(config, task)}
    if coefficients is not None:
        settings[REWARD_SETTINGS] = _reward_settings(config, task, coefficients)
    found = (
        SACConfig()  # of it only what env runners and learners ask for: the loss is ours
        .environment(ENVIRONMENT, observation_space=_box(task, task.observation_size), action_space=_bounds(task))
        .env_runners(num_env_runners=placement.num_env_runners, rollout_fragment_length=policy.fragment)
        .fault_tolerance(restart_failed_env_runners=False)  # else one that fails is left out without a word
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
    policy = {"hidden": list(config.policy.hidden), "entropy_coef": coef, "ema_decay": config.policy.ema_decay} | sizes
    specs = {POLICY: RLModuleSpec(module_class=ALGORITHMS[config.policy.algorithm].module, model_config=policy, **spaces)}
    if learned:
        settings = config.reward.model_dump(include=OF_REWARD_MODULE) | sizes
        specs[REWARD] = RLModuleSpec(module_class=RewardModule, model_config=settings, learner_only=True, **spaces)
    return MultiRLModuleSpec(rl_module_specs=specs)


def _policy_settings(config: ControlConfig, task: Task) -> dict[str, Any]:
    policy = config.policy
    rate = _learning_rate(policy.learning_rate, policy.schedule, config)
    shared = {"discount": policy.discount, "learning_rate": rate, "weight_decay": 0.0}
    if policy.algorithm == "ppo":
        return shared | policy.ppo.model_dump(exclude={"epochs"})
    return shared | {
        "tau": policy.tau,
        "learns_entropy_coef": policy.entropy_coef == "auto",
        "cloning_weight": policy.cloning_weight,
        "demonstration_share": policy.demonstration_share,
        "target_entropy": -float(task.action_size),
    }


def _reward_settings(config: ControlConfig, task: Task, coefficients: tuple[float, float]) -> dict[str, Any]:
    reward = config.reward
    return {
        "demonstration_coef": coefficients[0],
        "preference_coef": coefficients[1],
        "preference_temperature": reward.preference_temperature,
        "horizon": task.horizon,
        "gradient_penalty": reward.gradient_penalty,
        # What one step's reward weighs in the loss.
        "step_coef": coefficients[0] * (task.horizon if reward.loss == "linear" else 1.0),
        "loss": reward.loss,
        "clamp": reward.clamp,
        "learning_rate": _learning_rate(reward.optimizer.learning_rate, reward.optimizer.schedule, config),
        "weight_decay": reward.optimizer.weight_decay,
    }


def _learning_rate(highest: float, schedule: Schedule, config: ControlConfig) -> float | list[list[float]]:
    """As RLlib takes it: one number, or what it is after so many environment steps, with straight lines between."""
    if schedule == "constant":
        return highest
    first = config.policy.warmup_steps if config.policy.algorithm == "sac" else 0
    last = first + (config.rounds + 1) * config.policy.steps_per_round  # the last round still learns
    return [[0, highest], *([[first, highest]] if first else []), [last, 0.0]]


def _box(task: Task, size: int) -> Any:
    from gymnasium.spaces import Box

    return Box(-np.inf, np.inf, (size,), np.float32)


def _bounds(task: Task) -> Any:
    from gymnasium.spaces import Box, Discrete

    if task.is_choice:
        return Discrete(task.action_size)
    return Box(task.low.astype(np.float32), task.high.astype(np.float32), dtype=np.float32)
