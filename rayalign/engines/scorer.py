"""A saved reward that only scores: no optimiser, no DeepSpeed."""

from __future__ import annotations

import torch

from rayalign.engines.batching import Rank, concatenated_rows, rank_micro_batches
from rayalign.engines.learner import local_device
from rayalign.models.batch import token_batch
from rayalign.models.reward import RewardModel
from rayalign.objectives.reward import standardise
from rayalign.ports import ScorerSetup
from rayalign.types import Scores, Sequences


class RewardScorer:
    """One worker of a group that scores stored sequences with a reward model's folder."""

    def __init__(self, setup: ScorerSetup) -> None:
        self._learner, self._device = setup.learner, local_device()
        self._reward = RewardModel.from_pretrained(setup.path, setup.model).to(self._device)

    @torch.no_grad()
    def score_sequences(self, sequences: Sequences) -> Scores:
        """Normalised rewards of this worker's share, as they were while training."""
        results = []
        for part in rank_micro_batches(sequences, self._learner, Rank.from_environment()):
            if part.weight:
                batch = token_batch(sequences, part.rows, packing=self._learner.packing, device=self._device)
                results.append((part.rows, self._reward(batch)))
        rows, raw = concatenated_rows(results)
        values = standardise(torch.from_numpy(raw), mean=self._reward.mean, std=self._reward.std)
        return Scores(rows, values.numpy(), reward_version=0)
