"""PPO's critic: a value for every response token, learned by the policy group beside the policy.

Paper 1 starts it from the reward model of the round, so that its first values are already rewards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.config.improve import CriticConfig
from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.engines.learner import Learner, LossOutput
from rayalign.engines.scored_batch import token_places
from rayalign.models.batch import TokenBatch
from rayalign.models.value import ValueModel
from rayalign.objectives.critic import clipped_value_loss
from rayalign.storage.checkpoints import STATE
from rayalign.storage.snapshot import Snapshot
from rayalign.telemetry.metrics import Mean, Metrics, prefixed
from rayalign.types import Sequences


class Critic:
    """One rank of the critic. Every rank makes every call with the same global batch."""

    def __init__(
        self,
        path: str,
        config: CriticConfig,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        total_steps: int,
        device: torch.device | str,
    ) -> None:
        self._config = config
        plain = model.model_copy(update={"lora": None})
        self._model: Any = ValueModel.load(path, plain, learner).to(device)
        self._learner = Learner(self._model, config.optimizer, learner, total_steps=total_steps, device=device)

    def values(self, sequences: Sequences) -> list[tuple[np.ndarray, torch.Tensor]]:
        """This rank's share of the values before each response token: (rows, [t] values) pairs."""
        return self._learner.map(sequences, lambda engine, batch: engine(batch))

    def step(
        self, sequences: Sequences, rows: np.ndarray, old_values: torch.Tensor, returns: torch.Tensor
    ) -> Metrics:
        """One optimiser step on the sequences at `rows`; old_values and returns are [T] of the whole batch."""
        chosen = sequences.take(rows)

        def loss(model: Any, batch: TokenBatch) -> LossOutput:
            tokens = token_places(sequences.response_lengths, rows[batch.rows])
            values = model(batch)
            old, wanted = old_values[tokens].to(values.device), returns[tokens].to(values.device)
            loss_sum, clipped = clipped_value_loss(values, old, wanted, clip=self._config.value_clip)
            count = len(tokens)
            found = values.detach()
            metrics: Metrics = {
                "loss": Mean(float(loss_sum.detach()), count),
                "clipped_frac": Mean(float(clipped), count),
                "value_mean": Mean(float(found.sum()), count),
                "error_mean": Mean(float((found - wanted).abs().sum()), count),
            }
            return LossOutput(loss_sum, metrics)

        return prefixed(self._learner.step(chosen, loss, denominator=chosen.num_response_tokens), "critic")

    def snapshot(self) -> Snapshot:
        """Its model and its optimiser's state, in host memory; a collective."""
        weights, model = self._learner.host_weights(), self._model
        found = self._learner.snapshot("critic")
        if self._learner.rank.rank == 0:
            found.models[f"{STATE}/critic"] = lambda folder: model.save(folder, weights)
        return found

    def restore(self, folder: Path) -> None:
        """Goes on from a checkpoint; every rank calls it."""
        self._learner.restore(folder, "critic")

    def save(self, folder: str) -> None:
        """Writes the critic as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))

    def close(self) -> None:
        """Gives the memory back."""
        self._learner.close()
