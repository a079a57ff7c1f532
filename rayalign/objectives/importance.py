"""Correction and measure of the mismatch of sampler (vLLM) and trainer on the same weights and tokens.

Shapes: B sequences, T tokens. `sampler_logprobs` come from the engine that generated, `old_logprobs` from the
trainer with the weights it holds before the update. On equal arithmetic every weight is 1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayalign.objectives.segments import repeat_per_token, segment_sum
from rayalign.objectives.sums import paired_difference


@dataclass(frozen=True)
class Mismatch:
    """Sums and a maximum, to be merged over micro-batches and ranks and divided once."""

    sum_abs_diff: Tensor  # scalar, sum over tokens of |old - sampler|
    max_abs_diff: Tensor  # scalar, the largest of them; 0 for no tokens
    sum_kl_sampler_to_old: Tensor  # scalar, sum of k3 estimates of KL(sampler || old), never negative
    count: int  # tokens


def importance_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    lengths: Tensor,
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    cap: float,
) -> Tensor:
    """pi_old / pi_sampler, bounded: old_logprobs[T], sampler_logprobs[T], lengths[B] -> weights[T], detached.

    `level`: one ratio per token, or one per sequence (the product over its tokens) given to each of its
    tokens. The sequence level is unbiased but varies more; the token level is biased even without a cap.
    `mode`: "truncate" takes min(ratio, cap) (truncated importance sampling, TIS, Yao et al. 2025). "mask"
    keeps ratios within [1 / cap, cap] and gives 0 to the rest (IcePop, 2025; departure: one bound serves both
    sides). A mask tighter than the usual spread of ratios biases more than no correction at all
    (test_off_policy.py). Tokens of weight 0 stay in the caller's denominator: they were sampled.

    Example: log-ratios [1., -0.1], one token each, token level, cap 2 -> truncate [2., 0.905], mask [0.,
    0.905].
    """
    _check_choice("level", level, ("token", "sequence"))
    _check_choice("mode", mode, ("truncate", "mask"))
    if not 1 <= cap < math.inf:
        raise ValueError(f"cap must be a finite number of at least 1, got {cap}")
    log_ratios = paired_difference(old_logprobs, sampler_logprobs).detach()
    if level == "sequence":
        log_ratios = repeat_per_token(segment_sum(log_ratios, lengths), lengths)
    ratios = log_ratios.exp()  # a long sequence's may be inf: either mode bounds it
    if mode == "truncate":
        return ratios.clamp(max=cap)
    return torch.where((ratios >= 1 / cap) & (ratios <= cap), ratios, 0.0)


def mismatch(old_logprobs: Tensor, sampler_logprobs: Tensor) -> Mismatch:
    """How far trainer and sampler disagree on the sampled tokens: two [T] -> Mismatch.

    Alarm on max_abs_diff at step 0 (a broken template or weight sync is off by nats, arithmetic by 1e-2 or
    less), watch the KL over time. k3 with tokens drawn from the sampler: ratio - 1 - log ratio, ratio = old /
    sampler.
    """
    diffs = paired_difference(old_logprobs, sampler_logprobs).detach()
    absolute = diffs.abs()
    largest = absolute.max() if absolute.numel() else absolute.sum()
    kl_k3 = torch.expm1(diffs) - diffs
    return Mismatch(absolute.sum(), largest, kl_k3.sum(), absolute.numel())


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {list(choices)}")
