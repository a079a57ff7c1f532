"""The two RLModules of a run: SAC's networks as plain MLPs, and the reward beside them in the learner.

RLlib's default critic is several times as wide as it says (separate encoders and fusion layers); these are what other
libraries call SAC of the same sizes. Small networks spend their time between operations, not in them: both critics are
one batched network, and what can be one pass is one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from rayalign.control.policies import scaled, sequential
from rayalign.objectives.reward import DIVERGENCES

REWARD = "reward"  # its module id


class TwinCritics(nn.Module):
    """Two Q networks of the same sizes [in, ..., 1], as one batched one."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(nn.Parameter(_uniform((2, before, after), before)) for before, after in pairs)
        self.biases = nn.ParameterList(nn.Parameter(_uniform((2, 1, after), before)) for before, after in pairs)

    def forward(self, inputs: Tensor, *, frozen: bool = False) -> Tensor:
        """inputs[B, in] -> Q[2, B]; `frozen`: the gradient goes to the inputs only, as the actor's loss needs it."""
        found = inputs.expand(2, *inputs.shape)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                found = torch.relu(found)
            found = torch.baddbmm(bias.detach() if frozen else bias, found, weight.detach() if frozen else weight)
        return found.squeeze(-1)


def _uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
    """As nn.Linear begins."""
    return torch.empty(shape).uniform_(-1.0, 1.0) / math.sqrt(fan_in)


class SacModule(TorchRLModule, InferenceOnlyAPI):
    """Actor, two critics with their targets, and the entropy coefficient, which so is saved and averaged like the rest.

    `model_config` holds `hidden`, `scale` and `entropy_coef`. On env runners there is the actor alone.
    """

    def setup(self) -> None:
        hidden, scale = self.model_config["hidden"], self.model_config["scale"]
        num_actions = self.action_space.shape[0]
        self.action_dist_cls = TorchSquashedGaussian
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.actor = sequential([len(scale), *hidden, 2 * num_actions], nn.ReLU)
        if self.inference_only:
            return
        self.critics = TwinCritics([len(scale) + num_actions, *hidden, 1])
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_entropy_coef = nn.Parameter(torch.tensor(math.log(self.model_config["entropy_coef"])))

    def get_non_inference_attributes(self) -> list[str]:
        return ["critics", "targets", "log_entropy_coef"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.actor(scaled(batch[Columns.OBS], self.scale))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """For B transitions: q[2, B] of the actions taken; q_actor[B] and logprob[B] of new actions; the same at the next
        observations under the targets, without gradient: next_q[B], next_logprob[B]."""
        now, later = scaled(batch[Columns.OBS], self.scale), scaled(batch[Columns.NEXT_OBS], self.scale)
        actions, logprobs = TorchSquashedGaussian.from_logits(self.actor(torch.cat([now, later]))).rsample_and_logp()
        num = len(now)
        with torch.no_grad():
            next_q = self.targets(torch.cat([later, actions[num:]], dim=-1)).amin(dim=0)
        return {
            "q": self.critics(torch.cat([now, batch[Columns.ACTIONS]], dim=-1)),
            "q_actor": self.critics(torch.cat([now, actions[:num]], dim=-1), frozen=True).amin(dim=0),
            "logprob": logprobs[:num],
            "next_q": next_q,
            "next_logprob": logprobs[num:].detach(),
        }

    def move_targets(self, tau: float) -> None:
        """A step of the targets towards the critics."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), tau)


class RewardModule(TorchRLModule):
    """r(s) or r(s, a), in the learner only. `model_config`: `hidden`, `scale`, `inputs`, `clamp`, `divergence`."""

    def setup(self) -> None:
        config = self.model_config
        num_actions = self.action_space.shape[0] if config["inputs"] == "state_action" else 0
        self.register_buffer("scale", torch.tensor(config["scale"], dtype=torch.float32))
        self.layers = sequential([len(config["scale"]) + num_actions, *config["hidden"], 1], nn.Tanh)
        self._takes_actions = num_actions > 0
        self._clamp = config["clamp"]
        self._paid = DIVERGENCES[config["divergence"]]

    def rewards(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the losses see: observations[B, O], actions[B, A] in [-1, 1] -> [B]."""
        found = scaled(observations, self.scale)
        if self._takes_actions:
            found = torch.cat([found, actions], dim=-1)
        values: Tensor = self.layers(found).squeeze(-1)
        return values if self._clamp is None else values.clamp(-self._clamp, self._clamp)

    def paid(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the policy is paid, without gradient: [B]."""
        with torch.no_grad():
            return self._paid(self.rewards(observations, actions))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.REWARDS: self.rewards(batch[Columns.OBS], batch[Columns.ACTIONS])}
