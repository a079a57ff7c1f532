"""The policy engine: a causal LM improved by policy optimisation on the scores of its own samples.

Every rank is given the whole batch (tokens are small, and shared through the object store) and takes its share of the
forward passes; scores, baselines and denominators are computed from the whole batch on every rank alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayalign.config.stages import PolicyStepConfig
from rayalign.engines.learner import (
    Learner,
    LossOutput,
    frozen_reference,
    init_distributed,
    local_device,
    seed_everything,
)
from rayalign.errors import RayalignError, StaleSamples
from rayalign.models.batch import TokenBatch
from rayalign.models.policy import PolicyModel
from rayalign.objectives.advantages import rloo_advantages
from rayalign.objectives.importance import importance_weights, mismatch
from rayalign.objectives.policy import (
    clipped_policy_loss,
    kl_penalised_rewards,
    missing_end_scores,
    policy_gradient_loss,
)
from rayalign.objectives.segments import repeat_per_token, segment_sum
from rayalign.ports import PolicySetup, TransferSetup, WeightClient
from rayalign.telemetry.metrics import Max, Mean, Metrics, Sum, merge
from rayalign.types import Ragged, Rollout, Scores, Sequences, WeightReport

if TYPE_CHECKING:
    from rayalign.engines.vllm_backend.sender import WeightSender


class PolicyEngine:
    """One rank of the policy group: DeepSpeed learner, frozen reference, and the weights for the samplers."""

    def __init__(self, setup: PolicySetup) -> None:
        init_distributed()
        seed_everything(setup.seed)
        self._config, self._learner_config = setup.config, setup.learner
        self._temperature, self._max_staleness = setup.temperature, setup.max_staleness
        self._sender: WeightSender | None = None
        self.version = 0
        device = local_device()
        self._policy = PolicyModel.load(setup.path, setup.model, setup.learner).to(device)
        self._learner = Learner(
            self._policy, setup.config.optimizer, setup.learner, total_steps=setup.total_steps, device=device
        )
        self._reference: Any = None
        if setup.config.kl_coef > 0 and not self._policy.has_adapter:
            frozen = PolicyModel.load(setup.path, setup.model, setup.learner, trainable=False).to(device)
            self._reference = frozen_reference(frozen, setup.learner)

    def improve(self, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Metrics:
        """Updates the policy on scored samples; `version` advances by one.

        Rewards are scores minus kl_coef times the log-ratio to the reference, advantages are leave-one-out within a
        prompt's group (RLOO), the loss is the mean over sequences of the sum over their tokens. Raises StaleSamples.
        """
        started = time.perf_counter()
        oldest = min(r.policy_version for r in rollouts)
        if self.version - oldest > self._max_staleness:
            raise StaleSamples(
                f"samples of policy version {oldest} reached the update of version {self.version}; "
                f"max_staleness is {self._max_staleness}"
            )
        batch = _Batch.of(rollouts, scores, self._config.missing_end_score)
        metrics = batch.metrics()
        if self._needs_logprobs_first():
            batch.old_logprobs = self._logprobs(batch.sequences)
        if self._config.kl_coef > 0:
            batch.ref_logprobs = self._reference_logprobs(batch.sequences)
            metrics |= batch.kl_metrics()
        advantages = batch.advantages(self._config.kl_coef)
        steps = [
            self._learner.step(batch.sequences.take(rows), batch.loss(self, rows, advantages), denominator=len(rows))
            for _ in range(self._config.epochs)
            for rows in _minibatches(batch.sequences.prompt_ids, self._config.minibatches)
        ]
        self.version += 1
        return metrics | merge(steps) | {"update_s": Sum(time.perf_counter() - started)}

    def mismatch(self, rollouts: Sequence[Rollout]) -> Metrics:
        """How far this policy's log-probs are from the sampler's on its samples, in nats a token."""
        sequences = Sequences.concatenate([r.sequences for r in rollouts])
        sampler = Ragged.concatenate([r.sampler_logprobs for r in rollouts])
        return _mismatch_metrics(self._logprobs(sequences), torch.from_numpy(sampler.values))

    def negative_log_likelihood(self, sequences: Sequences) -> Metrics:
        """Nats a response of demonstrations under the policy, and nats a token."""
        logprobs = self._gathered_logprobs(sequences, lambda engine, batch: engine(batch)[0])
        total = -float(logprobs.sum())
        return {"nll_sequence": Mean(total, len(sequences)), "nll_token": Mean(total, logprobs.numel())}

    def move_reference(self) -> None:
        """Makes the present policy the reference (a moving reference). Not for LoRA, whose base is the reference."""
        if self._policy.has_adapter:
            raise RayalignError("a LoRA run's reference is its base model; use reference: start")
        if self._reference is None:
            return
        plain = self._reference.module if self._learner_config.zero_stage == 3 else self._reference
        with torch.no_grad():
            for frozen, current in zip(plain.parameters(), self._policy.parameters(), strict=True):
                # Under ZeRO-3 both are sharded alike, and each rank copies its shard.
                source, target = getattr(current, "ds_tensor", current), getattr(frozen, "ds_tensor", frozen)
                target.copy_(source)

    def connect(self, client: WeightClient, transfer: TransferSetup) -> None:
        """Joins the samplers' transfer group; every rank calls it, rank 0 sends."""
        from rayalign.engines.vllm_backend.sender import WeightSender

        self._sender = WeightSender(self, client, transfer, rank=self._learner.rank.rank)

    def sync(self) -> WeightReport:
        """Sends the present weights to the samplers and says what was sent; every rank calls it."""
        if self._sender is None:
            raise RayalignError("sync before connect: the policy group has no samplers to send to")
        return self._sender.send()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of the whole policy with adapters merged, as a checkpoint names them. A collective."""
        return self._learner.weights()

    def weight_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes of what `weights` yields."""
        return self._learner.weight_shapes()

    def check_finite(self) -> None:
        """Raises RayalignError, on every rank, if a weight is not a finite number."""
        self._learner.check_finite()

    def save(self, folder: str) -> None:
        """Writes the policy as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))

    def _needs_logprobs_first(self) -> bool:
        """A first and only step finds the policy as it was: its own forward pass gives the old log-probs."""
        return self._config.kl_coef > 0 or self._config.epochs * self._config.minibatches > 1

    def _logprobs(self, sequences: Sequences) -> torch.Tensor:
        return self._gathered_logprobs(sequences, lambda engine, batch: engine(batch, temperature=self._temperature)[0])

    def _reference_logprobs(self, sequences: Sequences) -> torch.Tensor:
        if self._policy.has_adapter:
            with self._policy.without_adapter():
                return self._logprobs(sequences)
        return self._gathered_logprobs(
            sequences, lambda _, batch: self._reference(batch, temperature=self._temperature)[0]
        )

    def _gathered_logprobs(self, sequences: Sequences, function: Any) -> torch.Tensor:
        """[T] log-probs of all response tokens in the batch's order, each computed by the rank whose share it is."""
        shares = self._learner.map(sequences, function)
        own = [(rows, values.float().cpu().numpy()) for rows, values in shares]
        starts = np.concatenate([[0], np.cumsum(sequences.response_lengths)])
        flat = np.empty(starts[-1], dtype=np.float32)
        for part in self._learner.all_gather(own):
            for rows, values in part:
                places = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])
                flat[places] = values
        return torch.from_numpy(flat)


class _Batch:
    """One batch of scored samples, whole, on every rank."""

    def __init__(self, sequences: Sequences, sampler_logprobs: torch.Tensor, scores: torch.Tensor) -> None:
        self.sequences = sequences
        self.sampler_logprobs = sampler_logprobs  # [T]
        self.scores = scores  # [B], with the score of a missing end in place
        self.lengths = torch.from_numpy(sequences.response_lengths)  # [B]
        self.old_logprobs: torch.Tensor | None = None  # [T]
        self.ref_logprobs: torch.Tensor | None = None  # [T]

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], scores: Sequence[Scores], missing_end_score: float | None) -> _Batch:
        """Puts shards together; every sequence must have exactly one score."""
        sequences = Sequences.concatenate([r.sequences for r in rollouts])
        values = np.full(len(sequences), np.nan, dtype=np.float32)
        for shard in scores:
            values[shard.rows] = shard.values
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise RayalignError(f"{bad} of {len(values)} samples have no finite score; the policy was not updated")
        ended = torch.from_numpy(sequences.ended)
        sampler = np.concatenate([r.sampler_logprobs.values for r in rollouts])
        return cls(
            sequences,
            torch.from_numpy(sampler),
            missing_end_scores(torch.from_numpy(values), ended, penalty=missing_end_score),
        )

    def advantages(self, kl_coef: float) -> torch.Tensor:
        """[B] leave-one-out advantages of the KL-penalised rewards."""
        rewards = self.scores
        if kl_coef > 0:
            assert self.old_logprobs is not None and self.ref_logprobs is not None
            rewards = kl_penalised_rewards(
                rewards, self.old_logprobs, self.ref_logprobs, self.lengths, kl_coef=kl_coef
            )
        return rloo_advantages(rewards, torch.from_numpy(self.sequences.prompt_ids))

    def loss(self, engine: PolicyEngine, rows: np.ndarray, advantages: torch.Tensor) -> Any:
        """The loss function of one optimiser step on the sequences at `rows`."""
        starts = np.concatenate([[0], np.cumsum(self.sequences.response_lengths)])
        config = engine._config

        def loss(model: Any, batch: TokenBatch) -> LossOutput:
            chosen = rows[batch.rows]
            tokens = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in chosen])
            policy_logprobs, entropy = model(batch, temperature=engine._temperature, with_entropy=True)
            device, lengths = policy_logprobs.device, batch.response_lengths
            sampler = self.sampler_logprobs[tokens].to(device)
            old = policy_logprobs.detach() if self.old_logprobs is None else self.old_logprobs[tokens].to(device)
            token_advantages = repeat_per_token(advantages[chosen].to(device), lengths)
            weights = _importance(config, old, sampler, lengths)
            clipped = torch.zeros((), device=device)
            if config.loss == "clipped":
                loss_sum, clipped = clipped_policy_loss(
                    policy_logprobs,
                    old,
                    token_advantages,
                    weights=weights,
                    clip_low=config.clip_low,
                    clip_high=config.clip_high,
                )
            else:
                loss_sum = policy_gradient_loss(policy_logprobs, token_advantages, weights=weights)
            count = policy_logprobs.numel()
            return LossOutput(
                loss_sum,
                {
                    "loss": Mean(float(loss_sum.detach()), len(chosen)),
                    "entropy": Mean(float(entropy.sum()), count),
                    "clipped_frac": Mean(float(clipped), count),
                    "importance_mean": Mean(float(weights.sum()) if weights is not None else count, count),
                    **_mismatch_metrics(old, sampler),
                },
            )

        return loss

    def metrics(self) -> Metrics:
        """What the samples look like, before the update."""
        num = len(self.sequences)
        return {
            "reward_mean": Mean(float(self.scores.sum()), num),
            "length_mean": Mean(float(self.lengths.sum()), num),
            "ended_frac": Mean(float(self.sequences.ended.sum()), num),
            "num_sequences": Sum(num),
            "num_response_tokens": Sum(self.sequences.num_response_tokens),
        }

    def kl_metrics(self) -> Metrics:
        """Nats a response between the policy that sampled and the reference, estimated on the samples."""
        assert self.old_logprobs is not None and self.ref_logprobs is not None
        log_ratios = segment_sum(self.old_logprobs - self.ref_logprobs, self.lengths)
        return {"kl_policy_to_ref": Mean(float(log_ratios.sum()), len(self.sequences))}


def _importance(
    config: PolicyStepConfig, old: torch.Tensor, sampler: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor | None:
    if config.importance.mode == "off":
        return None
    return importance_weights(
        old, sampler, lengths, level=config.importance.level, mode=config.importance.mode, cap=config.importance.cap
    )


def _mismatch_metrics(old: torch.Tensor, sampler: torch.Tensor) -> Metrics:
    found = mismatch(old, sampler)
    return {
        "mismatch_mean": Mean(float(found.sum_abs_diff), found.count),
        "mismatch_max": Max(float(found.max_abs_diff)),
        "mismatch_kl": Mean(float(found.sum_kl_sampler_to_old), found.count),
    }


def _minibatches(prompt_ids: np.ndarray, num: int) -> list[np.ndarray]:
    """Splits rows into `num` parts that keep a prompt's group together."""
    if num == 1:
        return [np.arange(len(prompt_ids))]
    parts = np.array_split(np.unique(prompt_ids), num)
    return [np.flatnonzero(np.isin(prompt_ids, part)) for part in parts if len(part)]
