"""Best of N: what selecting by a reward does to a distribution, exactly, and how to estimate it from samples.

Shapes: Y responses of one prompt, M samples of one prompt. Everything here is a number to report, not a loss.
"""

import math

import torch
from torch import Tensor

from rayalign.objectives.sums import check_vectors


def best_of_n_distribution(probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Distribution of the best of n independent samples: probs[Y], rewards[Y], n a scalar -> [Y].

    Source: paper 2 (AfD), the policy step of section 2.3. P(reward of the best <= r) = F(r)^n. Ties are broken
    uniformly among the samples, which shares the mass of one reward in proportion to probs.

    Example: probs [0.5, 0.5], rewards [0., 1.], n 2 -> [0.25, 0.75].
    """
    check_vectors(probs, rewards)
    _check_count("n", n)
    levels, index = torch.unique(rewards, sorted=True, return_inverse=True)
    at_level = probs.new_zeros(len(levels)).index_add(0, index, probs)
    up_to = at_level.cumsum(0)
    below = torch.cat([up_to.new_zeros(1), up_to[:-1]])
    of_level = up_to.pow(n) - below.pow(n)
    shares = torch.where(at_level > 0, of_level / at_level, 0.0)
    return probs * shares[index]


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1) / n, a scalar: KL(best of n || base) is at most this, whatever reward and base.

    Source: Beirami et al. 2024; equal to it for a reward without ties on a continuum (T23). So N takes the place of
    1 / beta, and grows its KL by its logarithm only.

    Example: n 4 -> 0.636.
    """
    _check_count("n", n)
    return math.log(n) - (n - 1) / n


def expected_best_of(scores: Tensor, n: int) -> Tensor:
    """E[largest of n] from M >= n samples, without bias: scores[..., M], n a scalar -> [...].

    The mean over all subsets of size n of their largest, by order statistics: the i-th smallest is the largest of
    C(i - 1, n - 1) of C(M, n) subsets. Of far lower variance than one subset, and a whole curve over N costs one set
    of samples. n = 1 is the mean, n = M the maximum.

    Example: scores [1., 2., 4.], n 2 -> (2 + 4 + 4) / 3 = 3.333.
    """
    num_samples = scores.shape[-1]
    _check_count("n", n)
    if n > num_samples:
        raise ValueError(f"the best of {n} needs at least as many samples, got {num_samples}")
    subsets = math.comb(num_samples, n)
    weights = [math.comb(rank, n - 1) / subsets for rank in range(num_samples)]
    ordered = scores.double().sort(-1).values
    return (ordered * torch.tensor(weights, dtype=torch.float64, device=scores.device)).sum(-1).to(scores.dtype)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
