"""Saved rewards of every kind behind one face: a score a sequence, and a reward a token where the kind has one.

A folder tells its kind: `log_ratio.json` names two policies, `rayalign_reward` in its config.json says more of the rest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from rayalign.config.fits import LOG_RATIO
from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.errors import UserError
from rayalign.models.batch import TokenBatch
from rayalign.models.policy import PolicyModel
from rayalign.models.reward import RewardModel
from rayalign.models.token_reward import KIND, TokenRewardModel
from rayalign.objectives.segments import segment_sum


class ScoringModel(Protocol):
    """What scores for the policy. Scores are raw; the normaliser is mean and std."""

    mean: float
    std: float

    def scores(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B] raw scores in float32, and the [T] token rewards that sum to them, if there are any."""


class LogRatioReward(nn.Module):
    """scale * log(policy(y|x) / reference(y|x)), the sum over the response's tokens, the end included.

    Source: AfD's optimal discriminator (paper 2, T21) and the implicit reward of IRFT, SPIN and DPO (eq. 3.5): equal to an
    explicit reward up to a constant a prompt, so it is compared within a prompt.
    """

    def __init__(self, policy: PolicyModel, reference: PolicyModel, *, scale: float) -> None:
        super().__init__()
        self.policy, self.reference, self.scale = policy, reference, scale
        self.mean, self.std = 0.0, 1.0

    def scores(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """As ScoringModel."""
        tokens = self.scale * (self.policy(batch)[0].float() - self.reference(batch)[0].float())
        return segment_sum(tokens, batch.response_lengths), tokens


def load_reward(path: str, model: ModelConfig, learner: LearnerConfig) -> ScoringModel:
    """The reward in a folder, or a one-label sequence classifier by its hub name. Raises UserError."""
    if (Path(path) / LOG_RATIO).is_file():
        return _log_ratio(Path(path), model, learner)
    if _saved_kind(Path(path)) == KIND:
        return TokenRewardModel.from_pretrained(path, model, learner)
    return RewardModel.from_pretrained(path, model)


def write_log_ratio(folder: Path, policy: str, reference: str, *, scale: float) -> None:
    """A reward that is two policies: a small file beside them. Folders are named from `folder`, so that a run can move."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {
        name: os.path.relpath(path, folder) if os.path.isdir(path) else path
        for name, path in (("policy", policy), ("reference", reference))
    }
    text = json.dumps({**sides, "scale": scale}, indent=2) + "\n"
    (folder / LOG_RATIO).write_text(text, encoding="utf-8")


def _saved_kind(folder: Path) -> str | None:
    """What a folder's config.json says of its reward; None for a hub name, and for a reward of a whole response."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # told by whoever loads it
    found: str | None = (settings.get("rayalign_reward") or {}).get("kind")
    return found


def _log_ratio(folder: Path, model: ModelConfig, learner: LearnerConfig) -> LogRatioReward:
    settings = json.loads((folder / LOG_RATIO).read_text(encoding="utf-8"))
    sides = []
    for name in ("policy", "reference"):
        named = settings[name]
        beside = (folder / named).resolve()
        if not beside.is_dir() and named.startswith("."):
            raise UserError(f"{folder}: its {name} is not at {beside}; keep the run's folders together")
        path = str(beside) if beside.is_dir() else named
        sides.append(PolicyModel.load(path, model, learner, trainable=False))
    return LogRatioReward(*sides, scale=settings["scale"])
