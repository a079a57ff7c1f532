"""PPO on RLlib: for choices as for vectors of actions, on the steps of the policy as it is.

Advantages are computed in the learner, where the newest reward and critic are; the loss is of `objectives/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchSquashedGaussian
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from rayalign.control.learner import POLICY, POLICY_SETTINGS, RewardedLearner
from rayalign.control.networks import REWARD
from rayalign.control.policies import scaled, sequential
from rayalign.objectives.advantages import batch_whiten, generalised_advantages
from rayalign.objectives.control import ppo_loss

ROWS = ("obs", "actions")
OLD_LOGPROB, ADVANTAGES, RETURNS = "old_logprob", "advantages", "returns"


class PpoModule(TorchRLModule, InferenceOnlyAPI):
    """Actor and critic; on env runners the actor alone. `model_config` holds `hidden`, `scale` and `action_size`."""

    activation = "tanh"

    def setup(self) -> None:
        hidden, scale, num = (self.model_config[name] for name in ("hidden", "scale", "action_size"))
        self.is_choice = not self.action_space.shape
        self.action_dist_cls = TorchCategorical if self.is_choice else TorchSquashedGaussian
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.actor = sequential([len(scale), *hidden, num if self.is_choice else 2 * num], nn.Tanh)
        if not self.inference_only:
            self.critic = sequential([len(scale), *hidden, 1], nn.Tanh)

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.actor(scaled(batch[Columns.OBS], self.scale))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """logprob[B] of the actions taken, entropy[B] (of vectors an estimate from one draw), values[B]."""
        actions = self._distribution(batch[Columns.OBS])
        entropy = actions.entropy() if self.is_choice else -actions.rsample_and_logp()[1]
        taken = self._logprob(actions, batch[Columns.ACTIONS])
        return {"logprob": taken, "entropy": entropy, "values": self.values(batch[Columns.OBS])}

    def values(self, observations: Tensor) -> Tensor:
        """observations[B, O] -> [B]."""
        found: Tensor = self.critic(scaled(observations, self.scale)).squeeze(-1)
        return found

    def logprobs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """observations[B, O], actions[B, A] -> [B]."""
        return self._logprob(self._distribution(observations), actions)

    def _distribution(self, observations: Tensor) -> Any:
        return self.action_dist_cls.from_logits(self.actor(scaled(observations, self.scale)))

    def _logprob(self, distribution: Any, actions: Tensor) -> Tensor:
        found: Tensor = distribution.logp(actions.argmax(dim=-1) if self.is_choice else actions)
        return found


class PpoLearner(RewardedLearner):
    """PPO, on the newest steps alone."""

    def advantage_rows(self, pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The steps of pieces of episodes as rows of `policy_loss`, with advantages under the newest reward and critic.

        A piece that does not end its episode goes on with the critic's value. Advantages are whitened over all.
        """
        module, settings = self._module[POLICY].unwrapped(), self.config.learner_config_dict[POLICY_SETTINGS]
        place = self._device
        found = {name: torch.from_numpy(np.concatenate([piece[name] for piece in pieces])).to(place) for name in ROWS}
        lengths = torch.tensor([len(piece["rewards"]) for piece in pieces], device=place)
        with torch.no_grad():
            values = module.values(found["obs"])
            if REWARD in self._module:
                rewards = self._module[REWARD].unwrapped().paid(found["obs"], found["actions"])
            else:
                rewards = torch.from_numpy(np.concatenate([piece["rewards"] for piece in pieces])).to(place)
            last = torch.from_numpy(np.stack([piece["new_obs"][-1] for piece in pieces])).to(place)
            goes_on = torch.tensor([1.0 - float(piece["terminateds"][-1]) for piece in pieces], device=place)
            rewards[lengths.cumsum(0) - 1] += settings["discount"] * goes_on * module.values(last)
            advantages, returns = generalised_advantages(
                rewards, values, lengths, gamma=settings["discount"], gae_lambda=settings["gae_lambda"]
            )
            found[OLD_LOGPROB] = module.logprobs(found["obs"], found["actions"])
        found |= {ADVANTAGES: batch_whiten(advantages), RETURNS: returns}
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def policy_loss(
        self, settings: dict[str, Any], batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return ppo_loss(
            **fwd_out,
            old_logprob=batch[OLD_LOGPROB],
            advantages=batch[ADVANTAGES],
            returns=batch[RETURNS],
            clip=settings["clip"],
            value_coef=settings["value_coef"],
            entropy_coef=settings["entropy_coef"],
        )
