"""One batch of scored samples, whole, on every rank: rewards of tokens, advantages, and what the samples look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rayalign.config.improve import PolicyStepConfig
from rayalign.data.repetition import identical_responses, repeated_ngrams, responses_of
from rayalign.errors import RayalignError
from rayalign.objectives.advantages import (
    batch_whiten,
    generalised_advantages,
    group_relative_advantages,
    rewards_to_go,
    rloo_advantages,
)
from rayalign.objectives.policy import kl_penalised_token_rewards, missing_end_scores
from rayalign.objectives.segments import repeat_per_token, segment_sum
from rayalign.telemetry.metrics import Mean, Metrics, Sum
from rayalign.types import Rollout, Scores, Sequences


@dataclass
class ScoredBatch:
    """Samples with their scores. [B] sequences, [T] response tokens."""

    sequences: Sequences
    sampler_logprobs: torch.Tensor  # [T]
    scores: torch.Tensor  # [B], with the score of a missing end in place
    dense: torch.Tensor | None = None  # [T] rewards of single tokens, that sum to the scores
    old_logprobs: torch.Tensor | None = None  # [T]
    ref_logprobs: torch.Tensor | None = None  # [T]
    values: torch.Tensor | None = None  # [T] of the critic

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], scores: Sequence[Scores], missing_end_score: float | None) -> ScoredBatch:
        """Puts shards together. Raises RayalignError unless every sequence has exactly one score."""
        sequences = Sequences.concatenate([r.sequences for r in rollouts])
        values = np.zeros(len(sequences), dtype=np.float32)
        times = np.zeros(len(sequences), dtype=np.int64)
        for shard in scores:
            values[shard.rows] = shard.values
            np.add.at(times, shard.rows, 1)
        if (times != 1).any():
            bad = int((times != 1).sum())
            raise RayalignError(f"{bad} of {len(values)} samples have no score, or two; the policy was not updated")
        ended = torch.from_numpy(sequences.ended)
        kept = missing_end_scores(torch.from_numpy(values), ended, penalty=missing_end_score)
        batch = cls(
            sequences, torch.from_numpy(np.concatenate([r.sampler_logprobs.values for r in rollouts])), kept
        )
        if all(shard.token_values is not None for shard in scores):
            batch.dense = _dense(sequences, scores, penalty=missing_end_score)
        return batch

    @property
    def lengths(self) -> torch.Tensor:
        """[B] response tokens."""
        return torch.from_numpy(self.sequences.response_lengths)

    @property
    def num_unscored(self) -> int:
        """Samples whose score, or a token's, is no finite number."""
        bad = ~torch.isfinite(self.scores)
        if self.dense is not None:
            bad |= ~torch.isfinite(segment_sum(self.dense, self.lengths))
        return int(bad.sum())

    def not_finite(self) -> dict[str, int]:
        """How many samples have a number of a token that is not finite, by what it is; empty if all are.

        An infinite log-prob must not pass for a large one: an importance weight would be cut to its bound, and stepped on.
        """
        columns = {
            "sampler_logprobs": self.sampler_logprobs,
            "policy_logprobs": self.old_logprobs,
            "ref_logprobs": self.ref_logprobs,
            "values": self.values,
        }
        rows = np.repeat(np.arange(len(self.sequences)), self.sequences.response_lengths)
        found = {n: len(np.unique(rows[~torch.isfinite(c).numpy()])) for n, c in columns.items() if c is not None}
        return {name: num for name, num in found.items() if num}

    def token_rewards(self, kl_coef: float) -> torch.Tensor:
        """[T] rewards of tokens: minus kl_coef times the log-ratio, the score on the last one or where it is dense (T9)."""
        zeros = torch.zeros_like(self.sampler_logprobs)
        old, ref = (self.old_logprobs, self.ref_logprobs) if kl_coef else (zeros, zeros)
        assert old is not None and ref is not None
        scores = self.scores if self.dense is None else torch.zeros_like(self.scores)
        rewards = kl_penalised_token_rewards(scores, old, ref, self.lengths, kl_coef=kl_coef)
        return rewards if self.dense is None else rewards + self.dense

    def advantages(self, config: PolicyStepConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T] advantages of the rewards, with the KL in them if it belongs there; and the critic's [T] returns, if any.

        Baselines and whitening see the whole batch, so that neither micro-batches nor ranks change them.
        """
        rewards = self.token_rewards(config.kl_coef if config.kl_in == "reward" else 0.0)
        if config.advantage == "gae":
            assert self.values is not None and config.critic is not None
            # In float64: where the critic is right, whitening would blow up nothing but rounding errors.
            advantages, returns = generalised_advantages(
                rewards.double(),
                self.values.double(),
                self.lengths,
                gamma=config.gamma,
                gae_lambda=config.critic.gae_lambda,
            )
            return batch_whiten(advantages).float(), returns.float()
        if config.advantage == "reinforce_pp":
            return batch_whiten(rewards_to_go(rewards, self.lengths, gamma=config.gamma)), None
        of_sequences, groups = segment_sum(rewards, self.lengths), torch.from_numpy(self.sequences.prompt_ids)
        if config.advantage == "rloo":
            found = rloo_advantages(of_sequences, groups)
        else:
            found = group_relative_advantages(of_sequences, groups, divide_by_std=config.advantage == "grpo")
        return repeat_per_token(found, self.lengths), None

    def metrics(self) -> Metrics:
        """What the samples look like, before the update."""
        num = len(self.sequences)
        return {
            "reward_mean": Mean(float(self.scores.sum()), num),
            **shape_metrics(self.sequences),
            "num_sequences": Sum(num),
            "num_response_tokens": Sum(self.sequences.num_response_tokens),
        }

    def kl_metrics(self) -> Metrics:
        """Nats a response between the policy that sampled and the reference, estimated on the samples."""
        assert self.old_logprobs is not None and self.ref_logprobs is not None
        log_ratios = segment_sum(self.old_logprobs - self.ref_logprobs, self.lengths)
        return {"kl_policy_to_ref": Mean(float(log_ratios.sum()), len(self.sequences))}


def shape_metrics(sequences: Sequences) -> Metrics:
    """Length, share of ended responses and repetition; what cannot repeat (one sample a prompt, say) is left out."""
    num = len(sequences)
    repeats = {
        "repeated_ngram_frac": repeated_ngrams(responses_of(sequences)),
        "identical_frac": identical_responses(sequences),
    }
    return {
        "length_mean": Mean(float(sequences.response_lengths.sum()), num),
        "ended_frac": Mean(float(sequences.ended.sum()), num),
        **{name: Mean(found, of) for name, (found, of) in repeats.items() if of},
    }


def minibatches(prompt_ids: np.ndarray, num: int, random: np.random.Generator) -> list[np.ndarray]:
    """Splits rows into `num` parts that keep a prompt's group together, anew in every pass."""
    if num == 1:
        return [np.arange(len(prompt_ids))]
    parts = np.array_split(random.permutation(np.unique(prompt_ids)), num)
    return [np.flatnonzero(np.isin(prompt_ids, part)) for part in parts if len(part)]


def token_places(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Places, among all response tokens of a batch, of those of the chosen rows, in the order given."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])


def _dense(sequences: Sequences, scores: Sequence[Scores], *, penalty: float | None) -> torch.Tensor:
    """[T] token rewards in the batch's order; those of a missing end give way to its score, on the last token."""
    lengths = sequences.response_lengths
    flat = np.zeros(int(lengths.sum()), dtype=np.float32)
    for shard in scores:
        assert shard.token_values is not None
        if len(shard.rows):
            flat[token_places(lengths, shard.rows)] = shard.token_values.values
    if penalty is not None:
        ends = np.cumsum(lengths)
        for row in np.flatnonzero(~sequences.ended):
            flat[ends[row] - lengths[row] : ends[row]] = 0
            flat[ends[row] - 1] = penalty
    return torch.from_numpy(flat)
