"""SAC on RLlib: its networks as plain MLPs, and its learner.

RLlib's default critic is several times as wide as it says (separate encoders and fusion layers); these are what other
libraries call SAC of the same sizes. The loss is ours (`objectives/control.py`) too, not that of RLlib's SAC: one backward
pass and one optimiser instead of four, plain squared errors as in other libraries.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from rayalign.control.learner import POLICY, POLICY_SETTINGS, RewardedLearner
from rayalign.control.networks import ParallelMlp
from rayalign.control.policies import scaled, sequential
from rayalign.control.rows import CRITICS_ALONE, DEMONSTRATED
from rayalign.objectives.control import cloning_loss, sac_loss


class SacModule(TorchRLModule, InferenceOnlyAPI):
    """Actor, two critics with their targets, and the entropy coefficient, which so is saved and averaged like the rest.

    `model_config` holds `hidden`, `scale`, `entropy_coef` and `ema_decay`; where that is not 0, `average` is the actor's
    over its updates (of few updates over about the last tenth, so that how it began is soon forgotten). On env runners there
    is the actor alone.
    """

    activation = "relu"

    def setup(self) -> None:
        hidden, scale = self.model_config["hidden"], self.model_config["scale"]
        num_actions = self.action_space.shape[0]
        self.action_dist_cls = TorchSquashedGaussian
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.actor = sequential([len(scale), *hidden, 2 * num_actions], nn.ReLU)
        if self.inference_only:
            return
        self.critics = ParallelMlp(2, [len(scale) + num_actions, *hidden, 1], self.activation)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        if self.model_config["ema_decay"]:
            self.average = copy.deepcopy(self.actor).requires_grad_(False)
            self.register_buffer("num_averaged", torch.zeros(()))
        self.log_entropy_coef = nn.Parameter(torch.tensor(math.log(self.model_config["entropy_coef"])))

    def get_non_inference_attributes(self) -> list[str]:
        averaged = ["average", "num_averaged"] if self.model_config["ema_decay"] else []
        return ["critics", "targets", "log_entropy_coef", *averaged]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.actor(scaled(batch[Columns.OBS], self.scale))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """For B transitions: q[2, B] of the actions taken; q_actor[B] and logprob[B] of new actions, and means[B, A] of
        all; the same at the next observations under the targets, without gradient: next_q[B], next_logprob[B]."""
        now, later = scaled(batch[Columns.OBS], self.scale), scaled(batch[Columns.NEXT_OBS], self.scale)
        outputs = self.actor(torch.cat([now, later]))
        actions, logprobs = TorchSquashedGaussian.from_logits(outputs).rsample_and_logp()
        num, size = len(now), outputs.shape[-1] // 2
        with torch.no_grad():
            next_q = self.targets(torch.cat([later, actions[num:]], dim=-1)).amin(dim=0)
        return {
            "q": self.critics(torch.cat([now, batch[Columns.ACTIONS]], dim=-1)),
            "q_actor": self.critics(torch.cat([now, actions[:num]], dim=-1), frozen=True).amin(dim=0),
            "logprob": logprobs[:num],
            "means": torch.tanh(outputs[:num, :size]),
            "next_q": next_q,
            "next_logprob": logprobs[num:].detach(),
        }

    def move_targets(self, tau: float) -> None:
        """A step of the targets towards the critics."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), tau)

    def move_average(self) -> None:
        """A step of the average, where one is kept, towards the actor."""
        if not self.model_config["ema_decay"]:
            return
        with torch.no_grad():
            self.num_averaged += 1
            step = (9.0 / (10.0 + self.num_averaged)).clamp(min=1.0 - self.model_config["ema_decay"])
            for average, now in zip(self.average.parameters(), self.actor.parameters(), strict=True):
                average.lerp_(now, step)


class SacLearner(RewardedLearner):
    """SAC, on transitions of any age."""

    def policy_parameters(self, module: Any, settings: dict[str, Any]) -> list[Any]:
        """The entropy coefficient is learned too, unless it is fixed."""
        found = super().policy_parameters(module, settings)
        fixed = None if settings["learns_entropy_coef"] else module.unwrapped().log_entropy_coef
        return [parameter for parameter in found if parameter is not fixed]

    def policy_loss(
        self, settings: dict[str, Any], batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        means = fwd_out.pop("means")
        self._holds_actor = CRITICS_ALONE in batch
        loss, shown = sac_loss(
            **fwd_out,
            log_entropy_coef=self._module[POLICY].unwrapped().log_entropy_coef,
            rewards=batch[Columns.REWARDS],
            terminated=batch[Columns.TERMINATEDS],
            discount=settings["discount"],
            target_entropy=settings["target_entropy"],
            actor_weight=0.0 if self._holds_actor else 1.0,
        )
        if settings["cloning_weight"] and DEMONSTRATED in batch and not self._holds_actor:
            share = settings["demonstration_share"]
            distance = cloning_loss(means, batch[Columns.ACTIONS], batch[DEMONSTRATED], fwd_out["q_actor"], share=share)
            loss = loss + settings["cloning_weight"] * distance
            shown = shown | {"cloning_loss": distance.detach()}
        return loss, shown

    def compute_gradients(self, loss_per_module: Mapping[str, Tensor], **kwargs: Any) -> dict[Any, Tensor]:
        """Where the critics learn alone the others have no gradients: those of 0 would still count as Adam's steps."""
        found = super().compute_gradients(loss_per_module, **kwargs)
        if POLICY not in loss_per_module or not self._holds_actor:
            return found
        critics = set(self._module[POLICY].unwrapped().critics.parameters())
        for name in [name for name in found if self._params[name] not in critics]:
            self._params[name].grad = None
            del found[name]
        return found

    def after_policy_update(self) -> None:
        module = self._module[POLICY].unwrapped()
        module.move_targets(self.config.learner_config_dict[POLICY_SETTINGS]["tau"])
        if not self._holds_actor:
            module.move_average()
