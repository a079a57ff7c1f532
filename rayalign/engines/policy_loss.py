"""The loss of one optimiser step of the policy: what the objectives give on one micro-batch, put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayalign.config.improve import PolicyStepConfig
from rayalign.engines.learner import LossFn, LossOutput
from rayalign.engines.scored_batch import ScoredBatch, token_places
from rayalign.models.batch import TokenBatch
from rayalign.objectives.importance import importance_weights, mismatch
from rayalign.objectives.policy import (
    clipped_policy_loss,
    kl_penalty_loss,
    policy_gradient_loss,
    squared_advantage_loss,
)
from rayalign.telemetry.metrics import Max, Mean, Metrics


def policy_loss(
    scored: ScoredBatch,
    rows: np.ndarray,
    advantages: torch.Tensor,
    config: PolicyStepConfig,
    *,
    temperature: float,
) -> LossFn:
    """The loss function for the sequences at `rows`; `advantages` [T] are of the whole batch. A sum over tokens."""

    def loss(model: Any, batch: TokenBatch) -> LossOutput:
        chosen = rows[batch.rows]
        tokens = token_places(scored.sequences.response_lengths, chosen)
        policy_logprobs, entropy = model(batch, temperature=temperature, with_entropy=True)
        device, count = policy_logprobs.device, policy_logprobs.numel()
        sampler = scored.sampler_logprobs[tokens].to(device)
        old = policy_logprobs.detach() if scored.old_logprobs is None else scored.old_logprobs[tokens].to(device)
        weights = _importance(config, old, sampler, batch.response_lengths)
        loss_sum, clipped = _main_term(config, policy_logprobs, old, advantages[tokens].to(device), weights)
        if config.kl_in == "loss" and scored.ref_logprobs is not None:
            ref = scored.ref_logprobs[tokens].to(device)
            loss_sum = loss_sum + config.kl_coef * kl_penalty_loss(policy_logprobs, ref, weights=weights)
        metrics: Metrics = {
            "loss": Mean(float(loss_sum.detach()), len(chosen)),
            "entropy": Mean(float(entropy.sum()), count),
            "clipped_frac": Mean(float(clipped), count),
            "importance_mean": Mean(float(weights.sum()) if weights is not None else count, count),
            **mismatch_metrics(old, sampler),
        }
        return LossOutput(loss_sum, metrics)

    return loss


def mismatch_metrics(old: torch.Tensor, sampler: torch.Tensor) -> Metrics:
    """How far the trainer's log-probs are from the sampler's, in nats a token."""
    found = mismatch(old, sampler)
    return {
        "mismatch_mean": Mean(float(found.sum_abs_diff), found.count),
        "mismatch_max": Max(float(found.max_abs_diff)),
        "mismatch_kl": Mean(float(found.sum_kl_sampler_to_old), found.count),
    }


def _main_term(
    config: PolicyStepConfig,
    policy_logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, number of clipped tokens)."""
    if config.loss == "clipped":
        return clipped_policy_loss(
            policy_logprobs,
            old,
            advantages,
            weights=weights,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
    if config.loss == "squared":
        scale = config.squared_scale
        found = squared_advantage_loss(policy_logprobs, old, advantages, scale=scale, weights=weights)
    else:
        found = policy_gradient_loss(policy_logprobs, advantages, weights=weights)
    return found, torch.zeros((), device=policy_logprobs.device)


def _importance(
    config: PolicyStepConfig, old: torch.Tensor, sampler: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor | None:
    if config.importance.mode == "off":
        return None
    return importance_weights(
        old, sampler, lengths, level=config.importance.level, mode=config.importance.mode, cap=config.importance.cap
    )
