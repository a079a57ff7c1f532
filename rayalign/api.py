"""The Python face: the same run as the command line's, with your own reward or rollout in the built-in one's place.

Example:

    from rayalign.api import train

    def polite(prompts: list[str], responses: list[str]) -> list[float]:
        return [float("thank you" in response) for response in responses]

    run = train("configs/rft.yaml", overrides=["seed=1"], reward=polite)
    print(run.summary["golden"], run.artifacts["irl/policy"])
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rayalign.config.load import load_config, parse_config
from rayalign.config.run import RunConfig
from rayalign.data.template import Template, load_tokenizer
from rayalign.engines.function_reward import FunctionReward, RewardFunction
from rayalign.errors import ConfigError, UserError, one_line_errors
from rayalign.ports import PairLossFn, RewardSetup, RewardWorker, RolloutWorker, SamplerSetup
from rayalign.run import artifacts_of, built_in, run
from rayalign.stages.context import Components


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, where its models lie, and the numbers of its last evaluation."""

    folder: Path
    artifacts: dict[str, str]  # {"irl/policy": path, "irl/reward": path, ...}: folders that from_pretrained loads
    summary: dict[str, Any]  # content of summary.json; empty without an evaluate stage


def train(
    config: str | Path | dict[str, Any] | RunConfig,
    *,
    overrides: Sequence[str] = (),
    reward: RewardFunction | type[RewardWorker] | None = None,
    rollout: type[RolloutWorker] | None = None,
    reward_loss: PairLossFn | None = None,
    implicit_loss: PairLossFn | None = None,
) -> Run:
    """Runs all stages of a config that are not done yet.

    Args:
        config: path of a YAML file, its content as a dictionary, or a RunConfig.
        overrides: "key.sub=value" strings; for a path only.
        reward: a function (prompt texts, response texts) -> numbers, which is then fixed; or a class that satisfies
            `ports.RewardWorker` and is built from a `ports.RewardSetup` in each reward actor.
        rollout: a class that satisfies `ports.RolloutWorker` and is built from a `ports.SamplerSetup` in each rollout
            actor; usually a subclass of `engines.vllm_backend.sampler.VllmSampler` with its own `generate`.
        reward_loss: an objective of your own for `irl` and `fit_reward`, in the place of their `loss`:
            (demo_scores[N], agent_scores[N]) -> the sum over the N pairs, as a tensor that gradients flow through.
        implicit_loss: the same for `implicit`, in the place of `demonstrations.loss`:
            (demo_log_ratios[N], agent_log_ratios[N]), each beta log(policy / reference) -> sum.

    Raises UserError for what you can mend, RayalignError for what failed on the way.
    """
    resolved = _resolve(config, overrides)
    components = built_in()
    components = Components(
        rollout=_built_from(rollout) if rollout is not None else components.rollout,
        reward=_reward_factory(reward) if reward is not None else components.reward,
        reward_learns=reward is None or inspect.isclass(reward),
        reward_loss=_checked_loss("reward_loss", reward_loss, resolved),
        implicit_loss=_checked_loss("implicit_loss", implicit_loss, resolved),
    )
    folder = run(resolved, components)
    file = folder / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return Run(folder, artifacts_of(resolved, folder), summary)


def main(
    *,
    reward: RewardFunction | type[RewardWorker] | None = None,
    rollout: type[RolloutWorker] | None = None,
    reward_loss: PairLossFn | None = None,
    implicit_loss: PairLossFn | None = None,
) -> None:
    """`train` as a script's command line, CONFIG [KEY=VALUE ...], with the errors and exit codes of `rayalign train`."""
    with one_line_errors():
        if len(sys.argv) < 2:
            raise UserError(f"a config is missing: python {sys.argv[0]} CONFIG [KEY=VALUE ...]")
        run = train(
            sys.argv[1],
            overrides=sys.argv[2:],
            reward=reward,
            rollout=rollout,
            reward_loss=reward_loss,
            implicit_loss=implicit_loss,
        )
        print(run.folder, run.artifacts)


@dataclass(frozen=True)
class FunctionRewardFactory:
    """Builds the reward worker around a user's function, in the actor."""

    function: RewardFunction

    @property
    def __wrapped__(self) -> RewardFunction:
        """The function, as `inspect.unwrap` looks for it."""
        return self.function

    def __call__(self, setup: RewardSetup) -> FunctionReward:
        tokenizer = load_tokenizer(setup.tokenizer, trust_remote_code=setup.model.trust_remote_code)
        template = Template(tokenizer, setup.chat_template)
        return FunctionReward(self.function, template.decode_prompt, template.decode_response)


def _resolve(config: str | Path | dict[str, Any] | RunConfig, overrides: Sequence[str]) -> RunConfig:
    if isinstance(config, (str, Path)):
        return load_config(config, overrides)
    if overrides:
        raise ConfigError("overrides go with a config file; change the dictionary instead")
    return parse_config(config) if isinstance(config, dict) else config


def _reward_factory(reward: Any) -> Callable[[RewardSetup], RewardWorker]:
    if inspect.isclass(reward):
        return _built_from(reward)
    if not callable(reward):
        raise ConfigError(f"reward: give a function or a class, not {type(reward).__name__}")
    return FunctionRewardFactory(reward)


def _checked_loss(name: str, loss: PairLossFn | None, config: RunConfig) -> PairLossFn | None:
    """Raises ConfigError for an objective that no stage would use, or that gives no sum that gradients flow through."""
    if loss is None:
        return None
    if not callable(loss):
        raise ConfigError(f"{name}: give a function of two tensors, not {type(loss).__name__}")
    if all(stage.pair_loss != name for stage in config.stages):
        raise ConfigError(f"{name}: no stage of this config would use it; add one, or leave {name} out")
    first, second = (
        torch.tensor([-1.0, 0.0, 1.0], requires_grad=True),
        torch.tensor([0.5, -0.5, 0.0], requires_grad=True),
    )
    whole, *parts = (_tried(name, loss, first[rows], second[rows]) for rows in (slice(3), slice(1), slice(1, 3)))
    if not torch.allclose(whole, sum(parts), rtol=1e-4, atol=1e-6):
        raise ConfigError(
            f"{name}: three pairs cost {float(whole):.4g}, one and the other two {float(sum(parts)):.4g}; return the sum "
            "over pairs, not a mean, and nothing random: the caller divides, and a batch may be split"
        )
    return loss


def _tried(name: str, loss: PairLossFn, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    try:
        found = loss(first, second)
    except Exception as error:
        raise ConfigError(
            f"{name}: on two tensors [{len(first)}] it failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, torch.Tensor) or found.dim() or not found.requires_grad or not torch.isfinite(found):
        raise ConfigError(
            f"{name}: for two tensors [{len(first)}] it gave {found!r}; return the sum over pairs: a finite scalar with a "
            "gradient"
        )
    return found.detach()


def _built_from(worker: Any) -> Callable[[Any], Any]:
    if not inspect.isclass(worker):
        raise ConfigError(f"give the class of your worker, not {type(worker).__name__}: it is built in the actor")
    return worker


__all__ = ["Run", "RewardSetup", "SamplerSetup", "main", "train"]
