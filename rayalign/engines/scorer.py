"""A saved reward that only scores: no optimiser, no DeepSpeed. In a loop it is the reward that learns nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rayalign.engines.batching import Rank, concatenated_rows, rank_micro_batches
from rayalign.engines.learner import local_device
from rayalign.errors import UserError
from rayalign.models.batch import TokenBatch, token_batch
from rayalign.models.rewards import ScoringModel, load_reward
from rayalign.objectives.reward import standardise
from rayalign.ports import ScorerSetup
from rayalign.telemetry.metrics import Metrics
from rayalign.types import Ragged, Rollout, Scores, Sequences


class RewardScorer:
    """One worker of a group that scores with a saved reward of any kind; satisfies the RewardWorker Protocol."""

    def __init__(self, setup: ScorerSetup) -> None:
        self._learner, self._device, self._of_tokens = setup.learner, local_device(), setup.token_rewards
        self._reward: ScoringModel = load_reward(setup.path, setup.model, setup.learner)
        if isinstance(self._reward, torch.nn.Module):
            self._reward.to(self._device).eval()

    def update(self, rollouts: Sequence[Rollout]) -> Metrics:
        """Nothing to learn."""
        return {}

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Scores of this worker's share of the samples."""
        return self.score_sequences(Sequences.concatenate([r.sequences for r in rollouts]))

    @torch.no_grad()
    def score_sequences(self, sequences: Sequences) -> Scores:
        """Normalised rewards of this worker's share, as they were while training; with those of tokens, if asked for."""
        results: list[tuple[np.ndarray, torch.Tensor]] = []
        tokens: list[Any] = []
        for part in rank_micro_batches(sequences, self._learner, Rank.from_environment()):
            if part.weight:
                batch = token_batch(sequences, part.rows, packing=self._learner.packing, device=self._device)
                values, dense = self._reward.scores(batch)
                results.append((part.rows, values))
                if self._of_tokens:
                    tokens += _rows(dense, batch)
        rows, raw = concatenated_rows(results)
        values = standardise(torch.from_numpy(raw), mean=self._reward.mean, std=self._reward.std)
        return Scores(rows, values.numpy(), 0, Ragged.from_list(tokens, np.float32) if self._of_tokens else None)

    def save(self, folder: str) -> None:
        """A fixed reward lies where it was made; nothing is written."""


def _rows(values: torch.Tensor | None, batch: TokenBatch) -> list[np.ndarray]:
    """[T] values as one array a sequence. Raises UserError for a reward that has none."""
    if values is None:
        raise UserError("token_rewards: this reward gives one number a response; set it to false")
    ends = batch.response_lengths.cumsum(0)[:-1].cpu().numpy()
    return np.split(values.float().cpu().numpy(), ends)
