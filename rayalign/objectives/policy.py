"""Rewards with a KL penalty, and the losses of a policy step; advantages come from advantages.py.

Shapes: B sequences, T = sum(lengths) response tokens, flat and ragged (no padding, prompts excluded). Losses
are SUMS over tokens. Log-probs are named by owner: policy_ (trained now), old_ (the policy that the samples
are credited to, recomputed by the trainer), ref_ (the reference). `weights[T]` are constants: importance
weights, or 1 / length.
"""

import torch
from torch import Tensor

from rayalign.objectives.segments import check_cover, segment_sum
from rayalign.objectives.sums import check_vectors, paired_difference, weighted_sum

_MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: far outside any clip range, and still finite in float32


def kl_penalised_rewards(
    scores: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, lengths: Tensor, *, kl_coef: float
) -> Tensor:
    """r(x, y) - beta log(pi_old(y|x) / pi_ref(y|x)): scores[B], two [T], lengths[B] -> rewards[B].

    Source: paper 1 eq. 1.1 (lower level) and step (d); kl_coef is beta. A constant: no gradient is kept.
    Maximised by the Gibbs policy pi_ref exp(r / beta) / Z, where it is the same for every response (T9, T10).
    """
    log_ratios = paired_difference(old_logprobs, ref_logprobs)
    return paired_difference(scores, kl_coef * segment_sum(log_ratios, lengths)).detach()


def kl_penalised_token_rewards(
    scores: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, lengths: Tensor, *, kl_coef: float
) -> Tensor:
    """The same reward spread over tokens: -beta log-ratio each, the score on the last -> [T], no gradient.

    Source: paper 1 step (d), the PPO rewards of its code. Sums per sequence to kl_penalised_rewards (T9). An
    empty response has no last token and is refused.
    """
    if (lengths < 1).any():
        raise ValueError("a response of length 0 has no token to carry its score: drop it, or keep its EOS")
    check_cover(lengths, num_tokens=old_logprobs.numel())
    token_rewards = -kl_coef * paired_difference(old_logprobs, ref_logprobs)
    last_tokens = lengths.to(scores.device).cumsum(0) - 1
    return token_rewards.index_add(0, last_tokens, scores).detach()


def missing_end_scores(scores: Tensor, ended: Tensor, *, penalty: float | None) -> Tensor:
    """Scores with `penalty` in place of those of responses without EOS: scores[B], ended[B] bool -> [B].

    Source: paper 1 step (d), where it is -1 on standardised scores. REPLACES the score (T9), so a fluent
    endless answer gains nothing; the KL penalty is applied afterwards and stays. None = off.
    """
    return scores if penalty is None else torch.where(ended, scores, penalty)


def policy_gradient_loss(
    policy_logprobs: Tensor, advantages: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """-sum_t w_t A_t log pi(y_t): policy_logprobs[T], advantages[T], weights[T] -> scalar sum (REINFORCE).

    Advantages are constants. Right for one optimiser step per batch of samples; for more, see
    clipped_policy_loss.
    """
    check_vectors(policy_logprobs, advantages)
    return -weighted_sum(policy_logprobs * advantages.detach(), weights)


def clipped_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    weights: Tensor | None = None,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """-sum_t w_t min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A): three [T] -> (sum, clipped count).

    rho = pi / pi_old. Source: PPO (Schulman et al. 2017) eq. 7, without critic and entropy bonus; two bounds
    as in DAPO (Yu et al. 2025). Departure: log rho is held within +-20, so that no token can make the loss
    infinite. The count is of tokens of non-zero weight where the clip was strictly lower, that is, whose
    gradient is 0. At pi = pi_old the gradient is that of policy_gradient_loss.

    Example: rho 1.5, A 1, clips 0.2 -> (-1.2, 1); rho 1.5, A -1 -> (1.5, 0).
    """
    check_vectors(policy_logprobs, old_logprobs, advantages)
    log_ratios = policy_logprobs - old_logprobs.detach()
    ratios = log_ratios.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    advantages = advantages.detach()
    free = ratios * advantages
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    is_clipped = clipped < free
    if weights is not None:
        is_clipped = is_clipped & (weights != 0)
    return -weighted_sum(torch.minimum(free, clipped), weights), is_clipped.sum()


def squared_advantage_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    scale: float,
    weights: Tensor | None = None,
) -> Tensor:
    """sum_t w_t (log(pi / pi_old) - A / scale)^2: three [T], weights[T] -> scalar sum.

    Source: APA (Zhu et al. 2023), the policy step of the released code of paper 3 (loss "square", adv_coeff 10):
    regression of the log-ratio onto the advantage instead of a clip. At pi = pi_old its gradient is 2 / scale times
    that of policy_gradient_loss; its minimum is pi_old exp(A / scale), a Gibbs step of temperature `scale` around
    the OLD policy, so `scale` is a trust region and not the beta of the KL to the reference. As in the paper, log Z is
    left out: advantages that are not centred push all log-probs the same way.

    Example: policy [-1.], old [-2.], advantages [5.], scale 10 -> 0.25.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    check_vectors(policy_logprobs, old_logprobs, advantages)
    log_ratios = policy_logprobs - old_logprobs.detach()
    return weighted_sum((log_ratios - advantages.detach() / scale).square(), weights)


def kl_penalty_loss(policy_logprobs: Tensor, ref_logprobs: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """sum_t w_t (pi_ref / pi - 1 - log(pi_ref / pi)), WITH gradient: two [T], weights[T] -> scalar sum.

    Source: GRPO (Shao et al. 2024) eq. 4, the KL inside its loss; the caller multiplies by beta. Its VALUE is an
    unbiased estimate of KL(pi || pi_ref) for tokens sampled from pi, but its GRADIENT is, in expectation, that of
    KL(pi_ref || pi) at the prefixes that were visited: the other direction, and blind to which prefixes pi visits.
    Near pi = pi_ref the two agree to first order. The penalty whose gradient is that of KL(pi || pi_ref) is the one
    in the reward, kl_penalised_rewards. Departure: log-ratios are held within +-20, so that no token can make the
    loss infinite; beyond that its gradient is 0.

    Example: policy [-1.], ref [-0.5] -> exp(0.5) - 1.5 = 0.1487.
    """
    return weighted_sum(_k3(policy_logprobs, ref_logprobs.detach()), weights)


def kl_policy_to_ref_k1(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per-token log(pi / pi_ref), for tokens sampled from the policy: two [T] -> [T], no gradient.

    Unbiased for KL(pi || pi_ref) per token; summed over a response it is the sequence's log-ratio. Can be
    negative. Source: Schulman, "Approximating KL divergence" (2020), k1.
    """
    return paired_difference(policy_logprobs, ref_logprobs).detach()


def kl_policy_to_ref_k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per-token pi_ref / pi - 1 - log(pi_ref / pi): two [T] -> [T], no gradient.

    For tokens sampled from the policy: unbiased for the same KL wherever the policy covers the reference;
    never negative, of lower variance near pi = pi_ref. Source: as above, k3. A metric only: differentiated as
    a loss (kl_penalty_loss) it gives the gradient of KL(pi_ref || pi), the other way.
    """
    return _k3(policy_logprobs, ref_logprobs).detach()


def _k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    log_ratios = paired_difference(ref_logprobs, policy_logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(log_ratios) - log_ratios
