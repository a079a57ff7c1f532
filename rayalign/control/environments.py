"""Gymnasium environments as a run sees them: vectors in, actions in [-1, 1] out, episodes of one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayalign.config.control import EnvironmentConfig
from rayalign.config.explain import did_you_mean
from rayalign.errors import UserError

HORIZON_REASON = (
    "the sign alone of a reward then decides how long episodes last (environment.allow_variable_horizon: true allows it)"
)


@dataclass(frozen=True)
class Task:
    """What data and networks must fit: dimensions, bounds of the environment's actions, steps of an episode.

    Policies and rewards see an action as a vector of A numbers in [-1, 1]. A choice among A actions is 1 at the one taken
    and 0 elsewhere (`is_choice`); its bounds are then 0 and 1.
    """

    environment: str
    observation_size: int
    low: np.ndarray  # [A]
    high: np.ndarray  # [A]
    horizon: int
    allow_variable_horizon: bool = False
    is_choice: bool = False

    @property
    def action_size(self) -> int:
        return len(self.low)

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """From the environment's actions[..., A] within the bounds, or choices[...], to what networks see: [..., A]."""
        if self.is_choice:
            return np.eye(self.action_size, dtype=np.float32)[np.asarray(actions, dtype=np.int64)]
        return np.asarray(2.0 * (actions - self.low) / (self.high - self.low) - 1.0, dtype=np.float32)

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """And back."""
        if self.is_choice:
            return np.asarray(np.argmax(actions, axis=-1))
        return np.asarray(self.low + (actions + 1.0) / 2.0 * (self.high - self.low), dtype=np.float32)


def make_environment(config: EnvironmentConfig, render_mode: str | None = None) -> Any:
    """The environment, which with a `render_mode` of gymnasium's can be drawn.

    Raises UserError for a name that is not registered, a package that is missing, wrong options.
    """
    try:
        import gymnasium
    except ImportError:
        raise UserError("control needs gymnasium: pip install 'rayalign[control]'") from None
    errors = gymnasium.error
    # The user's own settings of the environment that was named; gymnasium.make takes them by keyword only.
    options: dict[str, Any] = dict(config.options)
    if render_mode is not None:
        options["render_mode"] = render_mode
    if config.max_episode_steps is not None:
        options["max_episode_steps"] = config.max_episode_steps
    from rayalign.control.wrappers import Checked

    try:
        return Checked(gymnasium.make(config.id, **options), config.id)
    except (errors.NameNotFound, errors.NamespaceNotFound, errors.VersionNotFound, errors.DeprecatedEnv) as error:
        meant = did_you_mean(config.id, list(gymnasium.registry))
        told = f"{config.id}: {_brief(error)}" if not meant else f"no environment {config.id!r} is registered{meant}"
        raise UserError(f"environment.id: {told}") from None
    except (errors.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"environment.id: {config.id}: {_brief(error)}{_remedy(config.id, error)}") from None
    except (TypeError, ValueError, OSError, errors.Error) as error:
        raise UserError(f"environment.options: {config.id} does not take them: {_brief(error)}") from None
    except Exception as error:
        raise UserError(f"environment: {config.id} cannot be made: {type(error).__name__}: {_brief(error)}") from error


def make_training_environment(config: EnvironmentConfig, cut: int | None, max_unhealthy: int | None) -> Any:
    """The environment with its episodes truncated after `cut` steps, and after `max_unhealthy` unhealthy ones in a row.

    Raises UserError where the environment does not say what is healthy.
    """
    found = make_environment(config if cut is None else config.model_copy(update={"max_episode_steps": cut}))
    if max_unhealthy is None:
        return found
    if not hasattr(found.unwrapped, "is_healthy"):
        raise UserError(f"policy.max_unhealthy_steps: {config.id} does not say when it is unhealthy; leave it out")
    from rayalign.control.wrappers import CutWhenUnhealthy

    return CutWhenUnhealthy(found, max_unhealthy)


def look_at(config: EnvironmentConfig) -> Task:
    """The task of an environment. Raises UserError for one that is not of vectors, or whose episodes vary in length."""
    environment = make_environment(config)
    try:
        return _task(config, environment)
    finally:
        environment.close()


def _task(config: EnvironmentConfig, environment: Any) -> Task:
    from gymnasium.spaces import Box, Discrete

    observations, actions = environment.observation_space, environment.action_space
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise UserError(f"environment.id: {config.id} observes {observations}; only vectors of numbers are supported")
    is_choice = isinstance(actions, Discrete) and actions.start == 0
    if not is_choice and not (isinstance(actions, Box) and len(actions.shape) == 1 and actions.is_bounded()):
        raise UserError(
            f"environment.id: {config.id} acts by {actions}; only vectors with bounds, and choices numbered from 0, are "
            "supported"
        )
    horizon = environment.spec.max_episode_steps
    if horizon is None:
        raise UserError(f"environment.max_episode_steps: {config.id} has no limit of its own; set one")
    if environment_may_end_early(environment) and not config.allow_variable_horizon:
        raise UserError(
            f"environment: episodes of {config.id} end early when it is unhealthy, and {HORIZON_REASON}; set "
            "environment.options.terminate_when_unhealthy=false"
        )
    size = observations.shape[0]
    if config.observation_scale is not None and len(config.observation_scale) != size:
        raise UserError(
            f"environment.observation_scale: {len(config.observation_scale)} numbers, and {config.id} observes {size}"
        )
    bounds = (np.zeros(int(actions.n)), np.ones(int(actions.n))) if is_choice else (actions.low, actions.high)
    low, high = (np.asarray(bound, dtype=np.float64) for bound in bounds)
    if (low >= high).any():
        fixed = int((low >= high).argmax())
        raise UserError(f"environment.id: {config.id} acts by {actions}, whose number {fixed} has one value only")
    return Task(environment.spec.id, size, low, high, horizon, config.allow_variable_horizon, is_choice)


def environment_may_end_early(environment: Any) -> bool:
    """Whether a MuJoCo environment says so; others show it by an episode that ends, which the run watches for."""
    kwargs = environment.spec.kwargs
    return bool(kwargs.get("terminate_when_unhealthy", hasattr(environment.unwrapped, "_terminate_when_unhealthy")))


def _remedy(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and ":" in name:
        return f"; PYTHONPATH has to name the folder that holds {name.partition(':')[0]}"
    return "; pip install 'rayalign[control]'" if "mujoco" in str(error).lower() else ""


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
