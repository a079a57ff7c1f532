"""The reward model: a scalar head on any backbone, over the last response token or the mean of the response."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.errors import UserError
from rayalign.models.backbone import check_causal, check_packing, enable_checkpointing, load_pretrained, save_folder
from rayalign.models.batch import TokenBatch
from rayalign.models.wire import WireWeight, plain_weight
from rayalign.objectives.segments import segment_ids

Pooling = Literal["last", "mean"]
HEAD_WEIGHTS = ("score.weight", "classifier.weight", "classifier.bias")  # what a backbone need not bring


class RewardModel(nn.Module):
    """r(x, y): one number a sequence, with gradients. Scoring for the policy goes through the Scorer.

    The weights are those of transformers' AutoModelForSequenceClassification with one label, and are saved as such;
    pooling and normaliser stand in its config under `rayalign_reward`, which other programs ignore.
    """

    def __init__(self, classifier: Any, *, pooling: Pooling) -> None:
        super().__init__()
        self.lm = classifier
        score_head(classifier).__class__ = Float32Head  # the same weights under the same name
        self.pooling = pooling
        self.mean = 0.0
        self.std = 1.0

    @classmethod
    def from_backbone(
        cls, path: str, model: ModelConfig, learner: LearnerConfig, *, pooling: Pooling, seed: int
    ) -> RewardModel:
        """A fresh head, of zeros apart from a seeded tenth of the usual scale, on the weights at `path`."""
        classifier: Any = load_pretrained(
            AutoModelForSequenceClassification, path, model, num_labels=1, new_weights=HEAD_WEIGHTS
        )
        check_causal(classifier, path)
        head = score_head(classifier)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            noise = torch.randn(head.weight.shape, generator=generator)
            head.weight.copy_(0.1 * noise / head.weight.shape[-1] ** 0.5)
        check_packing(classifier, learner)
        enable_checkpointing(classifier, learner)
        # Others find the last token by the pad token; one that also ends responses would hide that end from them.
        if classifier.config.pad_token_id in _end_token_ids(classifier.config):
            classifier.config.pad_token_id = None
        return cls(classifier.train(), pooling=pooling)

    @classmethod
    def from_pretrained(cls, path: str, model: ModelConfig) -> RewardModel:
        """A reward saved by rayalign, or any one-label sequence classifier (last-token pooling)."""
        classifier: Any = load_pretrained(AutoModelForSequenceClassification, path, model)
        if classifier.config.num_labels != 1:
            raise UserError(f"{path}: has {classifier.config.num_labels} labels; a reward model has one")
        check_causal(classifier, path)
        settings = getattr(classifier.config, "rayalign_reward", None) or {}
        reward = cls(classifier.eval(), pooling=settings.get("pooling", "last"))
        reward.mean, reward.std = settings.get("mean", 0.0), settings.get("std", 1.0)
        return reward

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Raw rewards [B] in float32."""
        states = self.lm.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        response = states.reshape(-1, states.shape[-1]).index_select(0, batch.responses_at).float()
        if self.pooling == "mean":
            ids = segment_ids(batch.response_lengths, num_tokens=len(response))
            sums = response.new_zeros(len(batch.rows), response.shape[-1]).index_add(0, ids, response)
            pooled = sums / batch.response_lengths.unsqueeze(-1)
        else:
            pooled = response[batch.response_lengths.cumsum(0) - 1]
        return score_head(self.lm)(pooled).squeeze(-1)

    def scores(self, batch: TokenBatch) -> tuple[torch.Tensor, None]:
        """As `forward`; a sequence reward has no rewards of single tokens."""
        return self(batch), None

    def wire_weights(self) -> Iterator[WireWeight]:
        """Every weight under its checkpoint's name."""
        for name, parameter in self.named_parameters():
            yield plain_weight(name.removeprefix("lm."), parameter)

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """A Hugging Face folder, with pooling and normaliser in its config."""
        self.lm.config.rayalign_reward = {"pooling": self.pooling, "mean": self.mean, "std": self.std}
        save_folder(self.lm, folder, weights)


class Float32Head(nn.Linear):
    """A linear head that computes in float32 whatever its weights are kept in: bfloat16 scores would tie."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, H] -> [B, 1] float32."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias)


def score_head(classifier: Any) -> nn.Linear:
    """The linear head of a Hugging Face classifier. Raises UserError where it has none."""
    head = getattr(classifier, "score", None) or getattr(classifier, "classifier", None)
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(classifier).__name__} has no linear score head; use a decoder with one")
    return head


def _end_token_ids(config: Any) -> list[int]:
    ids = config.eos_token_id
    return ids if isinstance(ids, list) else [ids]
