"""The reward engine: trains the reward to tell demonstrations from samples, and scores samples with the newest one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rayalign.data.pairs import FixedDraw, PairDraw
from rayalign.engines.batching import concatenated_rows
from rayalign.engines.checkpointed import (
    Checkpointed,
    generator_state,
    joined,
    random_state,
    restore_random_state,
)
from rayalign.engines.learner import (
    Learner,
    init_distributed,
    local_device,
    seed_everything,
)
from rayalign.engines.pair_step import PairTerm, pair_step
from rayalign.errors import Diverged, RayalignError
from rayalign.models.reward import RewardModel
from rayalign.objectives.reward import DIVERGENCES, PAIR_LOSSES, joint_coefficients, preference_loss, standardise
from rayalign.ports import RewardSetup
from rayalign.storage.checkpoints import STATE
from rayalign.storage.snapshot import Snapshot, pack_sequences, read_tensors, read_values, unpack_sequences
from rayalign.telemetry.metrics import Last, Metrics, Sum, merge
from rayalign.types import Rollout, Scores, Sequences


class RewardEngine(Checkpointed):
    """One rank of the reward group: a learner for the reward, and a scorer with its newest weights."""

    def __init__(self, setup: RewardSetup) -> None:
        init_distributed()
        if setup.demonstrations is None:
            raise RayalignError("the reward of the alternation needs demonstrations; none were given")
        self._setup, self._config, self._demonstrations = setup, setup.config, setup.demonstrations
        self._device = local_device()
        self._random = np.random.default_rng([setup.seed, 1])
        self._replay: list[Sequences] = []
        self._preferences = FixedDraw(*setup.preferences) if setup.preferences else None
        self._loss = setup.loss or PAIR_LOSSES[setup.config.loss]
        self.version = 0
        self._start()

    def update(self, rollouts: Sequence[Rollout]) -> Metrics:
        """One round of reward learning on (demonstration, sample) pairs; `version` advances by one.

        Negatives are these rollouts, replayed rounds as configured, and the stored ones; each pair shares its prompt.
        Preferences come beside them. Without weight on demonstrations there need be no rollouts.
        """
        started = time.perf_counter()
        if self._writing is not None:
            self._writing.files(wait=True)  # the model that is being written is about to change
        if self._config.start == "fresh" and self.version > 0:
            self._learner.close()
            self._start()
        fresh = Sequences.concatenate([r.sequences for r in rollouts]) if rollouts else None
        demos = None
        if self._config.demonstration_weight:
            self._remember(fresh)
            demos = PairDraw(self._demonstrations, [*self._replay, *self._setup.negatives])
        steps = [self._step(demos) for _ in range(self._config.steps)]
        self.version += 1
        metrics = merge(steps[-max(1, len(steps) // 4) :])  # the end of the round, not its way there
        return metrics | self._fit_normaliser(fresh) | {"update_s": Sum(time.perf_counter() - started)}

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """What the policy is paid for this rank's share of the samples: normalised, as the divergence has it."""
        scores = self.score_sequences(Sequences.concatenate([r.sequences for r in rollouts]))
        paid = DIVERGENCES[self._config.divergence](torch.from_numpy(scores.values))
        return replace(scores, values=paid.numpy())

    def score_sequences(self, sequences: Sequences) -> Scores:
        """Normalised scores of this rank's share, the logit itself, without gradients, in evaluation mode."""
        rows, raw = self._raw(sequences)
        values = standardise(torch.from_numpy(raw), mean=self._reward.mean, std=self._reward.std)
        return Scores(rows, values.numpy(), self.version)

    def save(self, folder: str) -> None:
        """Writes the reward model as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint: weights, moments, normaliser, replayed samples, random numbers; every rank calls it."""
        root = Path(folder)
        values = read_values(root / STATE / "reward_round.json")
        self.version = values["version"]
        self._reward.mean, self._reward.std = values["mean"], values["std"]
        self._random.bit_generator.state = values["random"]
        if values["num_replayed"]:
            tensors = read_tensors(root / STATE / "replay.safetensors")
            self._replay = [unpack_sequences(tensors, str(i)) for i in range(values["num_replayed"])]
        self._learner.restore(root, "reward")
        restore_random_state(root, "reward", self._learner.rank.rank)

    def _snapshot(self) -> Snapshot:
        rank, reward = self._learner.rank.rank, self._reward
        weights = self._learner.host_weights()
        own = Snapshot()
        if rank == 0:
            own.values[f"{STATE}/reward_round"] = {
                "version": self.version,
                "mean": reward.mean,
                "std": reward.std,
                "random": generator_state(self._random),
                "num_replayed": len(self._replay),
            }
            packed = [pack_sequences(sequences, str(i)) for i, sequences in enumerate(self._replay)]
            if packed:
                own.tensors[f"{STATE}/replay"] = {name: t for part in packed for name, t in part.items()}
            own.models["reward"] = lambda folder: reward.save(folder, weights)
        return joined(self._learner.snapshot("reward"), random_state("reward", rank), own)

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

    def _remember(self, fresh: Sequences | None) -> None:
        if fresh is None:
            raise RayalignError("a reward that learns from demonstrations needs the policy's samples; none were given")
        kept = {"none": 0, "two_sets": 1, "cumulative": len(self._replay)}[self._config.replay]
        self._replay = [*self._replay[:kept], fresh]

    def _step(self, demos: PairDraw | None) -> Metrics:
        """One optimiser step on demonstration pairs and preferences together (AIHF eq. 5.1), each where it has weight."""
        config, size = self._config, self._config.batch_size
        parts = [(demos, "demo"), (self._preferences, "preference")]
        drawn = {name: draw.draw(self._random, size) for draw, name in parts if draw is not None}
        demo_factor, preference_factor = joint_coefficients(
            demo_weight=config.demonstration_weight,
            preference_weight=config.preference_weight,
            num_demonstrations=len(self._demonstrations) if demos else 0,
            num_preferences=len(self._preferences) if self._preferences else 0,
            weighting=config.weighting,
        )
        terms = {
            "demo": PairTerm(self._loss, demo_factor / size, ""),
            "preference": PairTerm(self._preference_loss, preference_factor / size, "preference_"),
        }
        return pair_step(self._learner, [(terms[name], pairs) for name, pairs in drawn.items()])

    def _preference_loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return preference_loss(chosen, rejected, kappa=self._config.preference_temperature)

    def _fit_normaliser(self, fresh: Sequences | None) -> Metrics:
        """Sets the mean and deviation that scores are standardised by, from all ranks' raw scores."""
        if self._config.normalise == "none":
            return {}
        reference = fresh if self._config.normalise == "samples" and fresh else self._demonstrations
        raw = np.concatenate([part for _, part in self._learner.all_gather(self._raw(reference))])
        finite = raw[np.isfinite(raw)].astype(np.float64)  # whose squares overflow no more
        if len(finite) <= len(raw) / 2:
            raise Diverged(
                f"the reward model scores {len(raw) - len(finite)} of {len(raw)} responses as no finite number; lower "
                "reward.optimizer.learning_rate"
            )
        self._reward.mean, self._reward.std = float(finite.mean()), max(float(finite.std()), 1e-6)
        metrics: Metrics = {"score_mean": Last(self._reward.mean), "score_std": Last(self._reward.std)}
        return metrics | ({"num_unscored": Sum(len(raw) - len(finite))} if len(finite) < len(raw) else {})

    def _raw(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
        return concatenated_rows(self._learner.map(sequences, lambda engine, batch: engine(batch)))
