"""The policy engine: a causal LM improved by policy optimisation on the scores of its own samples.

Scores, baselines and denominators are computed from the whole batch on every rank alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rayalign.engines.checkpointed import generator_state, joined
from rayalign.engines.critic import Critic
from rayalign.engines.learner import MAX_SKIPPED, local_device
from rayalign.engines.policy_loss import policy_loss
from rayalign.engines.scored_batch import ScoredBatch, minibatches
from rayalign.engines.trainable import TrainablePolicy
from rayalign.errors import Diverged, RayalignError, StaleSamples
from rayalign.ports import PolicySetup
from rayalign.storage.checkpoints import STATE
from rayalign.storage.snapshot import Snapshot, read_values
from rayalign.telemetry.metrics import Metrics, Sum, merge
from rayalign.types import Rollout, Scores, Sequences

NOT_FINITE = {  # what an update is skipped for: in words, and what to do
    "num_unscored": ("no finite score", "Look at the reward"),
    "num_not_finite_sampler_logprobs": (
        "log-probs of the sampler that are not finite",
        "Look at the rollout actor, or set model.dtype to float32",
    ),
    "num_not_finite_policy_logprobs": (
        "log-probs of the policy that are not finite",
        "Lower improve.optimizer.learning_rate, or set model.dtype to float32",
    ),
    "num_not_finite_ref_logprobs": (
        "log-probs of the reference that are not finite",
        "Look at the model that the stage starts from, or set model.dtype to float32",
    ),
    "num_not_finite_values": ("values of the critic that are not finite", "Lower improve.critic.optimizer.learning_rate"),
}


class PolicyEngine(TrainablePolicy):
    """One rank of the policy group of `irl` and `rl`."""

    def __init__(self, setup: PolicySetup) -> None:
        super().__init__(
            setup.path,
            setup.model,
            setup.learner,
            setup.config.optimizer,
            temperature=setup.temperature,
            total_steps=setup.total_steps,
            seed=setup.seed,
            keeps_reference=setup.config.kl_coef > 0,
        )
        self._setup, self._config = setup, setup.config
        self._critic: Critic | None = None
        self._skipped_in_a_row = 0
        self._random = np.random.default_rng([setup.seed, 2])  # the same on every rank

    def start_critic(self, path: str) -> None:
        """Starts the critic anew from a reward's folder, or another model's; every rank calls it."""
        config = self._config
        if config.critic is None:
            raise RayalignError("this policy has no critic: set improve.critic and advantage gae")
        if self._critic is not None:
            self._critic.close()
        self._critic = Critic(
            path,
            config.critic,
            self._setup.model,
            self._setup.learner,
            total_steps=self._setup.critic_steps,
            device=local_device(),
        )

    def improve(self, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Metrics:
        """Updates the policy on scored samples; `version` advances by one.

        Rewards are scores minus kl_coef times the log-ratio to the reference (or that is a term of the loss), advantages
        are the configured ones, the loss is the mean over sequences of the sum over their tokens. Scores that are not
        finite are not trained on: the update is skipped and counted. Raises StaleSamples, and Diverged where MAX_SKIPPED
        updates in a row were skipped.
        """
        started = time.perf_counter()
        oldest = min(r.policy_version for r in rollouts)
        if self.version - oldest > self._setup.max_staleness:
            raise StaleSamples(
                f"samples of policy version {oldest} reached the update of version {self.version}; "
                f"max_staleness is {self._setup.max_staleness}"
            )
        batch = ScoredBatch.of(rollouts, scores, self._config.missing_end_score)
        if batch.num_unscored:
            return self._skip(batch, {"num_unscored": batch.num_unscored})
        metrics = batch.metrics()
        if self._needs_logprobs_first():
            batch.old_logprobs = self._logprobs(batch.sequences)
        if self._config.kl_coef > 0:
            batch.ref_logprobs = self._reference_logprobs(batch.sequences)
            metrics |= batch.kl_metrics()
        if self._config.critic:
            batch.values = self._values(batch.sequences)
        if bad := batch.not_finite():
            return self._skip(batch, {f"num_not_finite_{name}": num for name, num in bad.items()})
        self._skipped_in_a_row = 0
        advantages, returns = batch.advantages(self._config)
        steps = [
            self._optimise(batch, rows, advantages, returns)
            for _ in range(self._config.epochs)
            for rows in minibatches(batch.sequences.prompt_ids, self._config.minibatches, self._random)
        ]
        self.version += 1
        return metrics | merge(steps) | {"update_s": Sum(time.perf_counter() - started)}

    def load_state(self, folder: str) -> None:
        """As TrainablePolicy, with the critic; every rank calls it."""
        super().load_state(folder)
        values = read_values(Path(folder) / STATE / "policy_steps.json")
        self._random.bit_generator.state = values["random"]
        self._skipped_in_a_row = values["skipped_in_a_row"]
        if values["has_critic"]:
            self.start_critic(str(Path(folder) / STATE / "critic"))
            assert self._critic is not None
            self._critic.restore(Path(folder))

    def _snapshot(self) -> Snapshot:
        parts = [super()._snapshot()]
        if self._critic is not None:
            parts.append(self._critic.snapshot())
        if self._learner.rank.rank == 0:
            steps = {
                "random": generator_state(self._random),
                "skipped_in_a_row": self._skipped_in_a_row,
                "has_critic": self._critic is not None,
            }
            parts.append(Snapshot(values={f"{STATE}/policy_steps": steps}))
        return joined(*parts)

    def _optimise(
        self, batch: ScoredBatch, rows: np.ndarray, advantages: torch.Tensor, returns: torch.Tensor | None
    ) -> Metrics:
        """One optimiser step of the policy, and of the critic if there is one, on the sequences at `rows`."""
        loss = policy_loss(batch, rows, advantages, self._config, temperature=self._setup.temperature)
        found = self._learner.step(batch.sequences.take(rows), loss, denominator=len(rows))
        if self._critic is None or returns is None:
            return found
        assert batch.values is not None
        return found | self._critic.step(batch.sequences, rows, batch.values, returns)

    def _skip(self, batch: ScoredBatch, counts: dict[str, int]) -> Metrics:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            name, num = next(iter(counts.items()))
            what, remedy = NOT_FINITE[name]
            raise Diverged(
                f"{num} of {len(batch.sequences)} samples have {what}, for the {MAX_SKIPPED}. update in a row; the policy "
                f"was not updated on them. {remedy}"
            )
        self.version += 1
        return {"num_skipped": Sum(1), **{name: Sum(num) for name, num in counts.items()}}

    def _needs_logprobs_first(self) -> bool:
        """A first and only step finds the policy as it was: its own forward pass gives the old log-probs."""
        return self._config.kl_coef > 0 or self._config.epochs * self._config.minibatches > 1

    def _values(self, sequences: Sequences) -> torch.Tensor:
        if self._critic is None:
            raise RayalignError("improve before start_critic: advantage gae has no critic yet")
        return self._gathered(sequences, self._critic.values(sequences))
