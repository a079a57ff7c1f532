"""RLlib's learner with a reward beside the policy: both are learned, saved and averaged over learners together.

A batch holds one module's rows: the policy's, which are relabelled with the newest reward the moment they are used, or the
reward's. What is not in the batch stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from rayalign.control.networks import REWARD
from rayalign.control.rows import AGENT, DEMONSTRATION, PREFERENCE, SEGMENT, SIDE
from rayalign.objectives.control import (
    clamped_frac,
    discriminator_loss,
    occupancy_gap_loss,
    segment_returns,
    slope_penalty,
)
from rayalign.objectives.reward import pair_accuracy, preference_loss

POLICY = DEFAULT_MODULE_ID
POLICY_SETTINGS, REWARD_SETTINGS = "policy", "reward"  # of learner_config_dict: see `algorithm.py`
SKIPPED = "skipped_in_a_row"


class RewardedLearner(TorchLearner):
    """A policy's learner whose reward is learned too; without a reward module it follows the environment's.

    Subclasses say what the policy's loss is. Of a call's updates the last one's numbers are reported.
    """

    def policy_loss(
        self, settings: dict[str, Any], batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of one batch, and what there is to see of it."""
        raise NotImplementedError

    def policy_parameters(self, module: Any, settings: dict[str, Any]) -> list[Any]:
        """What the policy's optimiser moves."""
        return [parameter for parameter in self.get_parameters(module) if parameter.requires_grad]

    def after_policy_update(self) -> None:
        """What follows each update of the policy."""

    def build(self) -> None:
        super().build()
        if self.config.num_learners > 1:
            self.draw_anew(0)
        # Of each module the updates in a row whose loss was not finite, and which were not made.
        self._num_skipped: dict[str, int] = {}
        self._shown: dict[str, dict[str, Tensor]] = {}

    def draw_anew(self, more: int) -> None:
        """Other random numbers than another learner's, and than those of this one `more` steps before."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.manual_seed(self.config.seed + more + 1000 * (1 + rank))

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        settings = self.config.learner_config_dict[_settings_of(module_id)]
        module = self._module[module_id]
        parameters = list(self.get_parameters(module))
        if module_id == POLICY:
            parameters = self.policy_parameters(module, settings)
        optimizer = torch.optim.Adam(parameters, weight_decay=settings["weight_decay"], fused=True)
        self.register_optimizer(
            module_id=module_id,
            optimizer=optimizer,
            params=parameters,
            lr_or_lr_schedule=settings["learning_rate"],
        )

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        found = batch.get(POLICY)
        if found is not None and Columns.REWARDS in found and REWARD in self._module:
            reward = self._module[REWARD].unwrapped()
            found[Columns.REWARDS] = reward.paid(found[Columns.OBS], found[Columns.ACTIONS])
        result = super()._update(batch, **kwargs)
        if found is not None:
            self.after_policy_update()
        return result

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        settings = self.config.learner_config_dict[_settings_of(module_id)]
        if module_id == REWARD:
            loss, shown = ensemble_loss(fwd_out[Columns.REWARDS], batch[SIDE], batch[SEGMENT], settings)
            if settings["gradient_penalty"] and (batch[SIDE] == AGENT).any():
                penalty = self._slope_penalty(batch)
                loss = loss + settings["gradient_penalty"] * settings["step_coef"] * penalty
                shown["slope_penalty"] = penalty.detach()
        else:
            loss, shown = self.policy_loss(settings, batch, fwd_out)
        self._shown[module_id] = shown
        return loss

    def _slope_penalty(self, batch: dict[str, Any]) -> Tensor:
        """Summed over the ensemble, between rows of the two sides that are paired by chance."""
        module = self._module[REWARD].unwrapped()
        sides = [batch[SIDE] == side for side in (DEMONSTRATION, AGENT)]
        inputs = [module.inputs(batch[Columns.OBS][rows], batch[Columns.ACTIONS][rows]) for rows in sides]
        num = min(len(rows) for rows in inputs)
        drawn = [rows[torch.randperm(len(rows), device=rows.device)[:num]] for rows in inputs]
        return torch.stack([slope_penalty(slopes) for slopes in module.slopes(*drawn)]).sum()

    def compute_gradients(self, loss_per_module: Mapping[str, Tensor], **kwargs: Any) -> dict[Any, Tensor]:
        """Every optimiser is stepped by every update, so the gradients that an earlier one left are cleared first.

        A loss that is not finite leaves no gradient, and so no step. Of several learners each looks at the gradients, which
        are averaged and so alike, and not at its own loss: all make the step, or none.
        """
        gradients = super().compute_gradients(dict(loss_per_module), **kwargs)
        seen: Iterable[Tensor] = loss_per_module.values()
        if self.config.num_learners > 1:
            seen = [gradient for gradient in gradients.values() if gradient is not None]
        if all(bool(torch.isfinite(tensor).all()) for tensor in seen):
            self._num_skipped |= dict.fromkeys(loss_per_module, 0)
            return {name: gradient for name, gradient in gradients.items() if gradient is not None}
        self._num_skipped |= {name: self._num_skipped.get(name, 0) + 1 for name in loss_per_module}
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        return {}

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Reports the last of the call's updates, and moves the learning rates on. The targets have moved."""
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, lr=schedule.update(timestep=timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME]))
        for module_id, shown in self._shown.items():
            self.metrics.log_dict(shown | {SKIPPED: float(self._num_skipped[module_id])}, key=module_id, window=1)
        self._shown = {}


def _settings_of(module_id: str) -> str:
    return REWARD_SETTINGS if module_id == REWARD else POLICY_SETTINGS


def ensemble_loss(
    rewards: Tensor, side: Tensor, segment: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of `reward_loss` over the networks of rewards[E, R], and the means of what there is to see."""
    losses, shown = zip(*(reward_loss(member, side, segment, settings) for member in rewards), strict=True)
    means = {name: torch.stack([one[name] for one in shown]).mean() for name in shown[0]}
    if len(rewards) > 1:
        means["ensemble_std"] = rewards.detach().std(dim=0, correction=0).mean()
    return torch.stack(losses).sum(), means


def reward_loss(
    rewards: Tensor, side: Tensor, segment: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """AIHF's loss (5.1, negated) of rewards[R] on rows of both kinds, and what there is to see of them.

    Args:
        side: [R], 1 for a demonstration, -1 for the policy, 0 for a preference.
        segment: [R], twice the pair's number, and one more for the rejected; whatever it is elsewhere is not read.
        settings: `demonstration_coef`, `preference_coef`, `preference_temperature`, `horizon`, `loss`, `clamp`.

    A discriminator's logits are not cut to the clamp: one that is far on the wrong side has to find back.
    """
    cut = rewards if settings["clamp"] is None else rewards.clamp(-settings["clamp"], settings["clamp"])
    steps, pairs = rewards if settings["loss"] == "logistic" else cut, cut[side == PREFERENCE]
    demo, agent = steps[side > 0], steps[side < 0]
    loss = rewards.new_zeros(())
    metrics: dict[str, Tensor] = {}
    if len(demo):
        gap = occupancy_gap_loss(demo, agent, horizon=settings["horizon"])
        term = gap if settings["loss"] == "linear" else discriminator_loss(demo, agent)
        loss = loss + settings["demonstration_coef"] * term
        metrics |= {"margin_demo_minus_agent": demo.mean() - agent.mean(), "demo_mean": demo.mean()}
        metrics["agent_mean"] = agent.mean()
    if len(pairs):
        numbers = segment[side == PREFERENCE]
        numbers = numbers - numbers.min()  # each learner has some of the pairs
        num = int(numbers.max()) // 2 + 1
        returns = segment_returns(pairs, numbers, num=2 * num).reshape(num, 2)
        nll = preference_loss(returns[:, 0], returns[:, 1], kappa=settings["preference_temperature"]) / num
        loss = loss + settings["preference_coef"] * nll
        accuracy = pair_accuracy(returns[:, 0], returns[:, 1]) / num
        metrics |= {"preference_nll": nll, "preference_accuracy": accuracy}
    clamped = clamped_frac(rewards, settings["clamp"])
    return loss, {name: value.detach() for name, value in metrics.items()} | {"clamped_frac": clamped}
