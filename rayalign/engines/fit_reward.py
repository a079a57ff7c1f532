"""A sequence reward fitted to stored pairs, on the same learner and the same step as the alternation's reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.engines.batching import concatenated_rows
from rayalign.engines.checkpointed import Checkpointed, joined, random_state, restore_random_state
from rayalign.engines.learner import Learner, init_distributed, local_device, seed_everything
from rayalign.engines.pair_step import PairTerm, pair_step
from rayalign.errors import Diverged
from rayalign.models.reward import RewardModel
from rayalign.objectives.reward import PAIR_LOSSES, standardise
from rayalign.ports import FitSetup
from rayalign.storage.snapshot import Snapshot
from rayalign.telemetry.metrics import Metrics
from rayalign.types import Sequences


class RewardFitEngine(Checkpointed):
    """One rank of fitting a reward to pairs (RLHF's reward model; AfD's discriminators, paper 2 section 2.2)."""

    def __init__(self, setup: FitSetup) -> None:
        init_distributed()
        seed_everything(setup.seed)
        self._device = local_device()
        self._loss = setup.loss or PAIR_LOSSES[setup.config.loss]
        self._reward = RewardModel.from_backbone(
            setup.path, setup.model, setup.learner, pooling=setup.config.pooling, seed=setup.seed
        ).to(self._device)
        self._learner = Learner(
            self._reward, setup.config.optimizer, setup.learner, total_steps=setup.total_steps, device=self._device
        )

    def fit(self, pairs: Sequences) -> Metrics:
        """One optimiser step on [better, worse, better, worse, ...]; the loss is the mean over pairs."""
        return pair_step(self._learner, [(PairTerm(self._loss, 2 / len(pairs), ""), pairs)])

    def normalise_on(self, sequences: Sequences) -> None:
        """Sets the mean and deviation that scores are standardised by."""
        raw = self._raw(sequences).astype(np.float64)  # whose squares overflow no more
        self._reward.mean, self._reward.std = float(raw.mean()), max(float(raw.std()), 1e-6)

    def scores(self, sequences: Sequences) -> np.ndarray:
        """[B] normalised scores of all sequences, on every rank. A collective."""
        raw = torch.from_numpy(self._raw(sequences))
        return np.asarray(standardise(raw, mean=self._reward.mean, std=self._reward.std))

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint; every rank calls it."""
        self._learner.restore(Path(folder), "reward")
        restore_random_state(Path(folder), "reward", self._learner.rank.rank)

    def _snapshot(self) -> Snapshot:
        rank, model = self._learner.rank.rank, self._reward
        weights = self._learner.host_weights()
        models = {"reward": lambda folder: model.save(folder, weights)} if rank == 0 else {}
        return joined(self._learner.snapshot("reward"), random_state("reward", rank), Snapshot(models=models))

    def all_gather(self, value: Any) -> list[Any]:
        """One small value from each rank, in rank order."""
        return self._learner.all_gather(value)

    def save(self, folder: str) -> None:
        """Writes the reward model as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))

    def _raw(self, sequences: Sequences) -> np.ndarray:
        own = concatenated_rows(self._learner.map(sequences, lambda engine, batch: engine(batch)))
        found = np.empty(len(sequences), dtype=np.float32)
        for rows, values in self._learner.all_gather(own):
            found[rows] = values
        if not np.isfinite(found).all():
            raise Diverged("the reward model gives scores that are not finite; lower optimizer.learning_rate")
        return found
