"""Advantages: from rewards of several responses to one prompt, or from rewards of tokens and a critic's values.

Shapes: B sequences, T = sum(lengths) tokens, flat and ragged; group_ids[B] says which prompt a response answers,
G is the size of a group (sizes may differ, order is free). Groups must be whole: compute advantages before a
batch is split into micro-batches or over ranks. Nothing here carries a gradient for tokens.
"""

import torch
from torch import Tensor

from rayalign.objectives.segments import segment_ids
from rayalign.objectives.sums import check_vectors


def rloo_advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus the mean of the OTHER responses of the group: rewards[B], group_ids[B] -> [B].

    Source: RLOO (Ahmadian et al. 2024; Kool et al. 2019). Its expected policy gradient is the exact one for
    every G >= 2 (T10), so the beta of the KL penalty means what paper 1 eq. 1.1 says.

    Example: rewards [1., 2., 6.], group_ids [0, 0, 0] -> [-3., -1.5, 4.5].
    """
    centred, sizes = _centre_within_groups(rewards, group_ids)
    return (centred * sizes / (sizes - 1)).to(rewards.dtype)


def group_relative_advantages(
    rewards: Tensor, group_ids: Tensor, *, divide_by_std: bool, eps: float = 1e-6
) -> Tensor:
    """Reward minus the group's mean, divided by the group's std if asked: rewards[B], group_ids[B] -> [B].

    Source: GRPO (Shao et al. 2024); `divide_by_std=False` is Dr. GRPO (Liu et al. 2025), RLOO times (G - 1) /
    G. The std has divisor G - 1 (as in the GRPO codes; the paper does not say); eps is added to it.

    T10: with the std, beta loses its meaning. With the KL in the loss the fixed point is the Gibbs policy of
    beta * std_pi(r), self-consistent, and it can collapse. With the KL inside the reward
    (kl_penalised_rewards) the Gibbs policy remains a fixed point, but near it only noise is left and noise is
    scaled up to size one. Prefer RLOO.

    Example: rewards [1., 2., 6.], group_ids [0, 0, 0], divide_by_std False -> [-2., -1., 3.].
    """
    centred, sizes = _centre_within_groups(rewards, group_ids)
    if divide_by_std:
        variances = _sum_within_groups(centred.square(), group_ids) / (sizes - 1)
        centred = centred / (variances.sqrt() + eps)
    return centred.to(rewards.dtype)


def batch_whiten(advantages: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Subtracts the batch's mean and divides by its std (divisor B): advantages[B] or [T] -> same shape.

    Source: REINFORCE++ (Hu 2025), PPO. Give it the whole batch of an optimiser step, gathered over ranks:
    whitening each micro-batch by itself would make the split change the gradient. Same warning on beta as
    above.
    """
    if advantages.numel() == 0:
        return advantages
    centred = advantages.double() - advantages.double().mean()
    return (centred / (centred.square().mean().sqrt() + eps)).to(advantages.dtype)


def rewards_to_go(token_rewards: Tensor, lengths: Tensor, *, gamma: float) -> Tensor:
    """sum_k gamma^k r_{t+k} within the sequence: token_rewards[T], lengths[B] -> [T], no gradient.

    The return of REINFORCE with rewards of tokens (AVA's dense rewards, paper 1 step (d) without a critic). With
    gamma = 1 its first token holds the sequence's reward.

    Example: token_rewards [1., 2., 4., 8.], lengths [3, 1], gamma 0.5 -> [3., 4., 4., 8.].
    """
    _check_share("gamma", gamma)
    return _discounted_sums(token_rewards.detach().double(), lengths, decay=gamma).to(token_rewards.dtype)


def generalised_advantages(
    token_rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """GAE: token_rewards[T], values[T], lengths[B] -> (advantages[T], returns[T]), no gradient.

    A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, and returns = A + V, the critic's
    targets. Source: Schulman et al. 2016, eq. 16; paper 1 step (d) with gamma 1, lambda 0.95. The value after the
    last token is 0, also where the response was cut off without an end: what a cut costs is the reward's business
    (missing_end_scores). values[t] belongs to the state BEFORE token t. Not whitened.

    Example: token_rewards [0., 1.], values [0.5, 0.25], lengths [2], gamma 1, gae_lambda 0 -> advantages [-0.25,
    0.75], returns [0.25, 1.].
    """
    _check_share("gamma", gamma)
    _check_share("gae_lambda", gae_lambda)
    check_vectors(token_rewards, values)
    rewards, before = token_rewards.detach().double(), values.detach().double()
    ids = segment_ids(lengths.to(values.device), num_tokens=values.numel())
    goes_on = torch.zeros_like(before)
    goes_on[:-1] = (ids[1:] == ids[:-1]).double()
    deltas = rewards + gamma * before.roll(-1) * goes_on - before
    advantages = _discounted_sums(deltas, lengths, decay=gamma * gae_lambda)
    return advantages.to(values.dtype), (advantages + before).to(values.dtype)


def _discounted_sums(terms: Tensor, lengths: Tensor, *, decay: float) -> Tensor:
    """sum_k decay^k terms[t + k] within each sequence: terms[T], lengths[B] -> [T].

    Sequences are laid side by side with their ends on row 0, so the loop is over the longest length only.
    """
    lengths = lengths.to(terms.device)
    ids = segment_ids(lengths, num_tokens=terms.numel())
    tokens_left = lengths.cumsum(0)[ids] - 1 - torch.arange(terms.numel(), device=terms.device)
    longest = int(lengths.max()) if lengths.numel() else 0
    table = terms.new_zeros(longest, lengths.numel())
    table[tokens_left, ids] = terms
    for row in range(1, longest):
        table[row] += decay * table[row - 1]
    return table[tokens_left, ids]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def _centre_within_groups(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards minus their group's mean, and each one's group size: [B], [B] -> [B], [B], both float64.

    In float64, so that equal float32 rewards give exactly 0 and leave no rounding error for a std of 0 to
    blow up.
    """
    check_vectors(rewards, group_ids)
    rewards = rewards.double()
    sizes = _sum_within_groups(torch.ones_like(rewards), group_ids)
    if (sizes < 2).any():
        alone = group_ids[sizes < 2][0].item()
        raise ValueError(f"group {alone} has one response: a baseline needs at least 2 samples per prompt")
    return rewards - _sum_within_groups(rewards, group_ids) / sizes, sizes


def _sum_within_groups(values: Tensor, group_ids: Tensor) -> Tensor:
    """Every element's group total: values[B], group_ids[B] -> [B]."""
    _, index = torch.unique(group_ids, return_inverse=True)
    return torch.zeros_like(values).index_add(0, index, values)[index]
