"""AVA's model: a causal LM, a Gaussian reward of each response token, and the Q that the reward is tied to.

Source: AVA (paper 4), section 4.2 ("TQR"). A saved folder is the language model's, which transformers and vLLM load by
itself; the heads lie in a folder of their own inside it, because vLLM takes every safetensors file beside a model's
config for weights of that model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.errors import UserError
from rayalign.models.backbone import logit_head
from rayalign.models.batch import TokenBatch
from rayalign.models.policy import PolicyModel
from rayalign.models.reward import Float32Head
from rayalign.models.wire import WireWeight, plain_weight
from rayalign.objectives.ava import AvaTokens, attention_weights, floored
from rayalign.objectives.boltzmann import chunked_q
from rayalign.objectives.segments import repeat_per_token, segment_sum

KIND = "token"
HEADS = "rayalign_heads"  # the folder, and the prefix of its weights' names
WIDEST_ATTENTION = 64


@dataclass(frozen=True)
class TokenRewardSettings:
    """What the heads are; config/ava.py says what each setting does."""

    pretrained_q: bool
    reward_weights: bool
    weights_scale: Literal["length", "one"]
    sigma_floor: float
    alpha: float
    beta: float


class TokenRewardModel(nn.Module):
    """r(y_t | x, y_<=t) for every response token; a response's reward is their sum. Satisfies ScoringModel.

    The reward of a token reads the state after it, Q the state before it.
    """

    def __init__(self, policy: PolicyModel, settings: TokenRewardSettings, *, chunk_tokens: int, seed: int = 0) -> None:
        super().__init__()
        self.policy = policy
        num_tokens, width = policy.plain.get_output_embeddings().weight.shape
        self.heads = TokenHeads(width, num_tokens, settings, seed=seed)
        self.settings = settings
        self.mean, self.std = 0.0, 1.0
        self._chunk_tokens = chunk_tokens

    @classmethod
    def from_backbone(
        cls, path: str, model: ModelConfig, learner: LearnerConfig, settings: TokenRewardSettings, *, seed: int
    ) -> TokenRewardModel:
        """Fresh heads on the language model at `path`."""
        policy = PolicyModel.load(path, model, learner)
        return cls(policy, settings, chunk_tokens=learner.logprob_chunk_tokens, seed=seed)

    @classmethod
    def from_pretrained(cls, path: str, model: ModelConfig, learner: LearnerConfig) -> TokenRewardModel:
        """A folder that `save` has written, to score with. Raises UserError."""
        plain = model.model_copy(update={"lora": None})
        policy = PolicyModel.load(path, plain, learner, trainable=False)
        saved = dict(policy.plain.config.rayalign_reward)
        saved.pop("kind")
        try:
            reward = cls(policy, TokenRewardSettings(**saved), chunk_tokens=learner.logprob_chunk_tokens)
            reward.heads.load_state_dict(load_file(Path(path) / HEADS / "model.safetensors"))
        except (OSError, SafetensorError, TypeError, RuntimeError) as error:
            brief = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: its {HEADS} cannot be loaded ({brief}); give a whole folder of a stage ava") from error
        return reward.eval()

    def forward(self, batch: TokenBatch, *, rewards_only: bool = False) -> AvaTokens:
        """Everything about the response tokens; Q is left out where only rewards are wanted (all zeros then)."""
        plain = self.policy.plain
        states = plain.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        states = states.reshape(-1, states.shape[-1])
        means, deviations = self.heads(states.index_select(0, batch.responses_at), batch.response_lengths)
        if rewards_only:
            zeros = torch.zeros_like(means)
            return AvaTokens(zeros, zeros, zeros, means, deviations)
        settings = self.settings
        found = chunked_q(
            logit_head(plain) if settings.pretrained_q else self.heads.q,
            states.index_select(0, batch.predicts_at),
            batch.labels,
            alpha=settings.alpha if settings.pretrained_q else None,
            beta=settings.beta,
            chunk_tokens=self._chunk_tokens,
            min_chunks=-(-batch.most_labels // self._chunk_tokens),
        )
        return AvaTokens(*found, means, deviations)

    def scores(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] rewards, and the [T] token rewards mu_t, weighted as trained, that sum to them."""
        means = self(batch, rewards_only=True).means
        return segment_sum(means, batch.response_lengths), means

    def wire_weights(self) -> Iterator[WireWeight]:
        """The language model's weights under its checkpoint's names, and the heads'."""
        yield from self.policy.wire_weights()
        for name, parameter in self.heads.named_parameters():
            yield plain_weight(f"{HEADS}.{name}", parameter)

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """A Hugging Face folder of the language model, with the heads inside and their settings in its config."""
        prefix = f"{HEADS}."
        heads = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        config = self.policy.plain.config
        config.rayalign_reward = {"kind": KIND, **asdict(self.settings)}
        self.policy.save(folder, _without_heads(weights))
        del config.rayalign_reward
        (folder / HEADS).mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in heads.items()}, folder / HEADS / "model.safetensors")

    def save_policy(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """The language model alone, as any other policy."""
        if hasattr(self.policy.plain.config, "rayalign_reward"):  # of a reward that training started from
            del self.policy.plain.config.rayalign_reward
        self.policy.save(folder, _without_heads(weights))


class TokenHeads(nn.Module):
    """Reward, attention and Q heads. They compute in float32 whatever they are kept in, and begin near 0, 1 and even."""

    def __init__(self, width: int, num_tokens: int, settings: TokenRewardSettings, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.settings = settings
        self.reward = _head(width, 2, 0.1, generator, bias=True)  # mu and log sigma
        if settings.reward_weights:
            attention_width = min(width, WIDEST_ATTENTION)
            self.query = _head(width, attention_width, 1.0, generator)
            self.key = _head(width, attention_width, 0.1, generator)
        if not settings.pretrained_q:
            self.q = _head(width, num_tokens, 0.1, generator)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and deviations of the tokens' rewards, weighted: states[T, H], lengths[B] -> two [T]."""
        means, log_deviations = self.reward(states).unbind(-1)
        deviations = log_deviations.exp()
        if self.settings.reward_weights:
            weights = attention_weights(self.query(states), self.key(states), lengths)
            if self.settings.weights_scale == "length":
                weights = weights * repeat_per_token(lengths.to(weights.dtype), lengths)
            means, deviations = means * weights, deviations * weights
        return means, floored(deviations, self.settings.sigma_floor)


def _head(
    width: int, num_outputs: int, scale: float, generator: torch.Generator, *, bias: bool = False
) -> Float32Head:
    """Seeded weights of `scale` times the usual size, and a bias of 0."""
    head = Float32Head(width, num_outputs, bias=bias)
    with torch.no_grad():
        head.weight.copy_(scale * torch.randn(head.weight.shape, generator=generator) / width**0.5)
        if bias:
            head.bias.zero_()
    return head


def _without_heads(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(f"{HEADS}.")}
