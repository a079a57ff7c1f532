"""The value model of PPO: the reward model's head, applied before every response token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.models.backbone import check_causal, check_packing, enable_checkpointing, load_pretrained, save_folder
from rayalign.models.batch import TokenBatch
from rayalign.models.reward import HEAD_WEIGHTS, Float32Head, score_head
from rayalign.models.wire import WireWeight, plain_weight


class ValueModel(nn.Module):
    """V(x, y_<t): [T] values in float32, each from the state that predicts the token.

    From a reward's folder it starts with that reward's head and normaliser, which are then part of what is learned from:
    values begin as normalised rewards (paper 1, section 1.3). From any other model the head begins at zero.
    """

    def __init__(self, classifier: Any, *, mean: float, std: float) -> None:
        super().__init__()
        self.lm = classifier
        score_head(classifier).__class__ = Float32Head
        self.mean, self.std = mean, std

    @classmethod
    def load(cls, path: str, model: ModelConfig, learner: LearnerConfig) -> ValueModel:
        """A reward model's folder, or any causal LM's."""
        classifier: Any = load_pretrained(
            AutoModelForSequenceClassification, path, model, num_labels=1, new_weights=HEAD_WEIGHTS
        )
        check_causal(classifier, path)
        check_packing(classifier, learner)
        enable_checkpointing(classifier, learner)
        settings = getattr(classifier.config, "rayalign_reward", None) or {}
        is_reward = "classification" in " ".join(getattr(classifier.config, "architectures", None) or []).lower()
        if not is_reward:
            nn.init.zeros_(score_head(classifier).weight)
            settings = {}
        return cls(classifier.train(), mean=settings.get("mean", 0.0), std=settings.get("std", 1.0))

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Values [T] of the states before each response token."""
        states = self.lm.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        before = states.reshape(-1, states.shape[-1]).index_select(0, batch.predicts_at).float()
        return (score_head(self.lm)(before).squeeze(-1) - self.mean) / self.std

    def wire_weights(self) -> Iterator[WireWeight]:
        """Every weight under its checkpoint's name."""
        for name, parameter in self.named_parameters():
            yield plain_weight(name.removeprefix("lm."), parameter)

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """A Hugging Face folder, with the normaliser in its config."""
        self.lm.config.rayalign_reward = {"mean": self.mean, "std": self.std}
        save_folder(self.lm, folder, weights)
