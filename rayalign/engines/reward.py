"""The reward engine: trains the reward to tell demonstrations from samples, and scores samples with the newest one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.engines.batching import concatenated_rows
from rayalign.engines.learner import (
    Learner,
    LossOutput,
    init_distributed,
    local_device,
    seed_everything,
)
from rayalign.errors import RayalignError
from rayalign.models.batch import TokenBatch
from rayalign.models.reward import RewardModel
from rayalign.objectives.reward import (
    REWARD_LINKS,
    margin_demo_minus_agent,
    pair_accuracy_half_ties,
    standardise,
)
from rayalign.ports import RewardSetup
from rayalign.telemetry.metrics import Last, Mean, Metrics, Sum, merge
from rayalign.types import Rollout, Scores, Sequences


class RewardEngine:
    """One rank of the reward group: a learner for the reward, and a scorer with its newest weights."""

    def __init__(self, setup: RewardSetup) -> None:
        init_distributed()
        self._setup, self._config = setup, setup.config
        self._device = local_device()
        self._random = np.random.default_rng([setup.seed, 1])
        self._replay: list[Sequences] = []
        self.version = 0
        self._start()

    def update(self, rollouts: Sequence[Rollout]) -> Metrics:
        """One round of reward learning on (demonstration, sample) pairs; `version` advances by one.

        Negatives are these rollouts, replayed rounds as configured, and the stored ones; each pair shares its prompt.
        """
        started = time.perf_counter()
        if self._config.start == "fresh" and self.version > 0:
            self._learner.close()
            self._start()
        fresh = Sequences.concatenate([r.sequences for r in rollouts])
        self._remember(fresh)
        pairs = _Pairs(self._setup.demonstrations, [*self._replay, *self._setup.negatives])
        steps = [
            self._pair_step(pairs.draw(self._random, self._config.batch_size)) for _ in range(self._config.steps)
        ]
        self.version += 1
        metrics = merge(steps[-max(1, len(steps) // 4) :])  # the end of the round, not its way there
        return metrics | self._fit_normaliser(fresh) | {"update_s": Sum(time.perf_counter() - started)}

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Normalised rewards of this rank's share of the samples, without gradients, in evaluation mode."""
        return self.score_sequences(Sequences.concatenate([r.sequences for r in rollouts]))

    def score_sequences(self, sequences: Sequences) -> Scores:
        """As `score`, for stored sequences."""
        rows, raw = self._raw(sequences)
        values = standardise(torch.from_numpy(raw), mean=self._reward.mean, std=self._reward.std)
        return Scores(rows, values.numpy(), self.version)

    def save(self, folder: str) -> None:
        """Writes the reward model as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))

    def _start(self) -> None:
        """The reward as it begins: the backbone with a fresh head."""
        setup = self._setup
        seed_everything(setup.seed)
        self._reward = RewardModel.from_backbone(
            setup.path, setup.model, setup.learner, pooling=setup.config.pooling, seed=setup.seed
        ).to(self._device)
        rounds = 1 if setup.config.start == "fresh" else setup.rounds
        self._learner = Learner(
            self._reward,
            setup.config.optimizer,
            setup.learner,
            total_steps=rounds * setup.config.steps,
            device=self._device,
        )

    def _remember(self, fresh: Sequences) -> None:
        kept = {"none": 0, "two_sets": 1, "cumulative": len(self._replay)}[self._config.replay]
        self._replay = [*self._replay[:kept], fresh]

    def _pair_step(self, sequences: Sequences) -> Metrics:
        """A step on [demo, agent, demo, agent, ...]: pairs stay together in a micro-batch."""
        num_pairs = len(sequences) // 2
        link = REWARD_LINKS[self._config.link]

        def loss(model: Any, batch: TokenBatch) -> LossOutput:
            scores = model(batch)
            demo, agent = scores[0::2], scores[1::2]
            loss_sum = link(demo, agent)
            return LossOutput(loss_sum, _pair_metrics(float(loss_sum.detach()), demo.detach(), agent.detach()))

        return self._learner.step(sequences, loss, denominator=num_pairs, group_size=2)

    def _fit_normaliser(self, fresh: Sequences) -> Metrics:
        """Sets the mean and deviation that scores are standardised by, from all ranks' raw scores."""
        if self._config.normalise == "none":
            return {}
        reference = fresh if self._config.normalise == "samples" else self._setup.demonstrations
        raw = np.concatenate([part for _, part in self._learner.all_gather(self._raw(reference))])
        if not np.isfinite(raw).all():
            raise RayalignError("the reward model gives scores that are not finite; lower reward.optimizer.learning_rate")
        self._reward.mean, self._reward.std = float(raw.mean()), max(float(raw.std()), 1e-6)
        return {"score_mean": Last(self._reward.mean), "score_std": Last(self._reward.std)}

    def _raw(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return concatenated_rows(self._learner.map(sequences, lambda engine, batch: engine(batch)))


class _Pairs:
    """All (demonstration, sample) pairs that share a prompt, drawn evenly over demonstrations."""

    def __init__(self, demonstrations: Sequences, sources: Sequence[Sequences]) -> None:
        self._demonstrations = demonstrations
        self._samples = Sequences.concatenate(sources)
        self._of_prompt = _rows_by_prompt(self._samples.prompt_ids)
        self._usable = np.flatnonzero(np.isin(demonstrations.prompt_ids, list(self._of_prompt)))
        if not len(self._usable):
            raise RayalignError("no sample answers the prompt of any demonstration; nothing to learn the reward from")

    def draw(self, random: np.random.Generator, num_pairs: int) -> Sequences:
        """[demo, agent, demo, agent, ...]: 2 * num_pairs sequences."""
        demos = random.choice(self._usable, size=num_pairs, replace=num_pairs > len(self._usable))
        ids = self._demonstrations.prompt_ids[demos]
        agents = np.array([random.choice(self._of_prompt[int(i)]) for i in ids])
        both = Sequences.concatenate([self._demonstrations.take(demos), self._samples.take(agents)])
        return both.take(np.arange(2 * num_pairs).reshape(2, num_pairs).T.reshape(-1))


def _rows_by_prompt(prompt_ids: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(prompt_ids, kind="stable")
    ids, starts = np.unique(prompt_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))


def _pair_metrics(loss_sum: float, demo: torch.Tensor, agent: torch.Tensor) -> Metrics:
    num = len(demo)
    return {
        "loss": Mean(loss_sum, num),
        "pair_accuracy": Mean(float(pair_accuracy_half_ties(demo, agent)), num),
        "margin_demo_minus_agent": Mean(float(margin_demo_minus_agent(demo, agent)), num),
    }
