"""The reward as an RLModule of the learner, and the networks side by side that it and SAC's critics are made of.

Small networks spend their time between operations, not in them: several of the same sizes are one batched network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from rayalign.control.policies import ACTIVATIONS, paid_of, scaled

REWARD = "reward"  # its module id
REWARD_ACTIVATION = "tanh"


class ParallelMlp(nn.Module):
    """`num` networks of the same sizes [in, ..., 1], as one batched one, each begun as nn.Linear begins."""

    def __init__(self, num: int, sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(nn.Parameter(_uniform((num, before, after), before)) for before, after in pairs)
        self.biases = nn.ParameterList(nn.Parameter(_uniform((num, 1, after), before)) for before, after in pairs)
        self._num, self._activation = num, ACTIVATIONS[activation]

    def forward(self, inputs: Tensor, *, frozen: bool = False) -> Tensor:
        """inputs[B, in] -> [num, B]; `frozen`: the gradient goes to the inputs only, as an actor's loss needs it."""
        found = inputs.expand(self._num, *inputs.shape)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                found = self._activation(found)
            found = torch.baddbmm(bias.detach() if frozen else bias, found, weight.detach() if frozen else weight)
        return found.squeeze(-1)


def _uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
    return torch.empty(shape).uniform_(-1.0, 1.0) / math.sqrt(fan_in)


class RewardModule(TorchRLModule):
    """r(s) or r(s, a), of one network or the mean of several, in the learner only.

    `model_config`: `hidden`, `scale`, `inputs`, `clamp`, `divergence`, `ensemble`, `pessimism`.
    """

    def setup(self) -> None:
        config = self.model_config
        self._takes_actions = config["inputs"] == "state_action"
        size = len(config["scale"]) + (config["action_size"] if self._takes_actions else 0)
        self.register_buffer("scale", torch.tensor(config["scale"], dtype=torch.float32))
        self.members = ParallelMlp(config["ensemble"], [size, *config["hidden"], 1], REWARD_ACTIVATION)
        self._clamp, self._divergence, self._pessimism = (config[key] for key in ("clamp", "divergence", "pessimism"))

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the losses see, of each of E networks: observations[B, O], actions[B, A] in [-1, 1] -> [E, B], not cut."""
        found: Tensor = self.members(self.inputs(observations, actions))
        return found

    def slopes(self, demonstrations: Tensor, agent: Tensor) -> Tensor:
        """Gradients of each network by its inputs, at points drawn between the two sides' rows: [E, B, inputs].

        Args:
            demonstrations: [B, inputs], as `inputs` gives them; agent likewise.
        """
        share = torch.rand(len(agent), 1, device=agent.device)
        between = (share * demonstrations + (1.0 - share) * agent).detach().requires_grad_()
        values = self.members(between)
        found = [torch.autograd.grad(one.sum(), between, create_graph=True)[0] for one in values]
        return torch.stack(found)

    def inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the networks see: observations in the data's scale, and actions where they take them: [B, inputs]."""
        found = scaled(observations, self.scale)
        return torch.cat([found, actions], dim=-1) if self._takes_actions else found

    def paid(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the policy is paid, without gradient: [B]."""
        with torch.no_grad():
            values = self.values(observations, actions)
            return paid_of(values, self._clamp, self._divergence, self._pessimism)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.REWARDS: self.values(batch[Columns.OBS], batch[Columns.ACTIONS])}
