"""Advantages from rewards of several responses to one prompt, without a critic.

Shapes: B sequences; group_ids[B] says which prompt a response answers, G is the size of a group (sizes may
differ, order is free). Groups must be whole: compute advantages before a batch is split into micro-batches or
over ranks.
"""

import torch
from torch import Tensor

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
