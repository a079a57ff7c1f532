"""AVA's joint ascent (paper 4, algorithm 1): reward heads, Q and language model in one step, without any sampling."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.config.ava import AvaStage
from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.engines.batching import concatenated_rows
from rayalign.engines.checkpointed import Checkpointed, joined, random_state, restore_random_state
from rayalign.engines.learner import Learner, LossOutput, init_distributed, local_device, seed_everything
from rayalign.errors import Diverged
from rayalign.models.batch import TokenBatch
from rayalign.models.token_reward import TokenRewardModel, TokenRewardSettings
from rayalign.objectives.ava import AvaObjective, AvaTerms, AvaTokens, ava_terms, response_rewards
from rayalign.objectives.reward import margin_demo_minus_agent, pair_accuracy_half_ties
from rayalign.objectives.segments import segment_sum
from rayalign.storage.snapshot import Snapshot
from rayalign.telemetry.metrics import Mean, Metrics, Min
from rayalign.types import Sequences

NEAR_FLOOR = 1.05  # a deviation below this many floors counts as on it


@dataclass(frozen=True)
class AvaSetup:
    """What a rank is built from."""

    path: str
    model: ModelConfig
    learner: LearnerConfig
    config: AvaStage
    total_steps: int
    seed: int


class AvaEngine(Checkpointed):
    """One rank. A batch is demonstrations (AVA-d) or [chosen, rejected, chosen, rejected, ...] (AVA-p)."""

    def __init__(self, setup: AvaSetup) -> None:
        init_distributed()
        seed_everything(setup.seed)
        device = local_device()
        config = setup.config
        self._config, self._paired = config, config.variant == "preferences"
        self._group_size = 2 if self._paired else 1
        self._bad_term = ""
        self._objective = AvaObjective(**{f.name: getattr(config, f.name) for f in fields(AvaObjective)})
        settings = TokenRewardSettings(**{f.name: getattr(config, f.name) for f in fields(TokenRewardSettings)})
        self._model = TokenRewardModel.from_backbone(
            setup.path, setup.model, setup.learner, settings, seed=setup.seed
        ).to(device)
        self._learner = Learner(
            self._model, config.optimizer, setup.learner, total_steps=setup.total_steps, device=device
        )

    def fit(self, sequences: Sequences) -> Metrics:
        """One optimiser step on the mean of the loss over the demonstrations or pairs of all ranks.

        Raises Diverged, with the term, where the learner does.
        """

        def loss(model: Any, batch: TokenBatch) -> LossOutput:
            tokens = model(batch)
            terms = self._terms(tokens, batch, sequences)
            self._note_bad(terms)
            # All heads have a gradient, whatever terms count: ZeRO waits for them.
            touched = tokens.q.sum() + tokens.means.sum() + tokens.deviations.sum()
            return LossOutput(terms.loss + 0 * touched, self._metrics(tokens, terms, batch))

        group_sizes = np.full(len(sequences) // self._group_size, self._group_size)
        try:
            return self._learner.step(sequences, loss, denominator=len(group_sizes), group_sizes=group_sizes)
        except Diverged as error:
            which = f" (AVA's {self._bad_term}; a larger sigma_floor may help)" if self._bad_term else ""
            raise Diverged(f"{error}{which}") from None

    def measure(self, sequences: Sequences) -> dict[str, np.ndarray]:
        """{"sum", "last", "logprob"}: [B] each response's reward, that of its last token, and its log-prob under the policy.

        On every rank; a collective.
        """
        own = concatenated_rows(self._learner.map(sequences, _measured))
        columns = np.empty((len(sequences), 3), dtype=np.float32)
        for rows, values in self._learner.all_gather(own):
            columns[rows] = values.reshape(-1, 3)
        if not np.isfinite(columns).all():
            raise Diverged("AVA's rewards are not finite; lower optimizer.learning_rate")
        return dict(zip(("sum", "last", "logprob"), columns.T, strict=True))

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint; every rank calls it."""
        self._learner.restore(Path(folder), "ava")
        restore_random_state(Path(folder), "ava", self._learner.rank.rank)

    def _snapshot(self) -> Snapshot:
        rank, model = self._learner.rank.rank, self._model
        weights = self._learner.host_weights()
        own = Snapshot()
        if rank == 0:
            own.models["reward"] = lambda folder: model.save(folder, weights)
            own.models["policy"] = lambda folder: model.save_policy(folder, weights)
        return joined(self._learner.snapshot("ava"), random_state("ava", rank), own)

    def all_gather(self, value: Any) -> list[Any]:
        """One small value from each rank, in rank order."""
        return self._learner.all_gather(value)

    def save(self, *, reward: str, policy: str) -> None:
        """Writes both as Hugging Face folders (rank 0); every rank calls it."""
        weights = self._learner.host_weights()
        if self._learner.rank.rank == 0:
            self._model.save(Path(reward), weights)
            self._model.save_policy(Path(policy), weights)

    def _terms(self, tokens: AvaTokens, batch: TokenBatch, sequences: Sequences) -> AvaTerms:
        rejected = batch.rows % 2 == 1 if self._paired else np.zeros(len(batch.rows), dtype=bool)
        device = tokens.means.device
        return ava_terms(
            tokens,
            batch.response_lengths,
            ended=torch.from_numpy(sequences.ended[batch.rows]).to(device),
            rejected=torch.from_numpy(rejected).to(device),
            objective=self._objective,
        )

    def _note_bad(self, terms: AvaTerms) -> None:
        """Keeps which term was not finite, for the message if the learner gives up."""
        for name, term in terms.by_name().items():
            if not torch.isfinite(term):
                self._bad_term = f"{name} term is {float(term.detach())}"

    @torch.no_grad()
    def _metrics(self, tokens: AvaTokens, terms: AvaTerms, batch: TokenBatch) -> Metrics:
        deviations, floor = tokens.deviations, self._config.sigma_floor
        num = len(batch.rows) / self._group_size
        on_floor = (deviations < NEAR_FLOOR * floor).sum()
        metrics: Metrics = {f"{name}_term": Mean(float(term), num) for name, term in terms.by_name().items()}
        metrics |= {
            "loss": Mean(float(terms.loss), num),
            "sigma_mean": Mean(float(deviations.sum()), len(deviations)),
            "sigma_min": Min(float(deviations.min())),
            "sigma_on_floor_frac": Mean(float(on_floor), len(deviations)),
        }
        chosen = tokens.policy_logprobs
        if self._paired:
            values = response_rewards(tokens.means, batch.response_lengths, over=self._objective.contrast)
            better, worse = values[0::2], values[1::2]
            metrics["pair_accuracy"] = Mean(float(pair_accuracy_half_ties(better, worse)), num)
            metrics["margin_chosen_minus_rejected"] = Mean(float(margin_demo_minus_agent(better, worse)), num)
            chosen = torch.cat(chosen.split(batch.response_lengths.tolist())[0::2])
        return metrics | {"nll_token": Mean(-float(chosen.sum()), len(chosen))}


def _measured(engine: Any, batch: TokenBatch) -> torch.Tensor:
    tokens, lengths = engine(batch), batch.response_lengths
    columns = [response_rewards(tokens.means, lengths, over=over) for over in ("sum", "last")]
    return torch.stack([*columns, segment_sum(tokens.policy_logprobs, lengths)], dim=-1)
