"""T23 of docs/algorithms.md: what best of N does, exactly."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayalign.objectives.best_of import best_of_n_distribution, best_of_n_kl_bound, expected_best_of

from .worlds import all_groups, deterministic, random_logprobs, random_table

rewards_with_ties = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=6).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)


def base(num_responses: int, *, seed: int = 230) -> Tensor:
    return random_logprobs(num_responses, seed=seed).exp()


def by_enumeration(probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Every ordered draw of n responses with its probability; among the best of a draw each is as likely."""
    found = torch.zeros_like(probs)
    for draw in all_groups(len(probs), group_size=n):
        best = draw[rewards[draw] == rewards[draw].max()]
        found = found.index_add(0, best, probs[draw].prod().expand(len(best)) / len(best))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("rewards", [[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
def test_t23_distribution_is_exact_and_ties_are_broken_uniformly(rewards, n):
    """Against all 4^n draws: without ties, two pairs of ties, everything tied."""
    probs, rewards = base(4), torch.tensor(rewards, dtype=torch.float64)
    found = best_of_n_distribution(probs, rewards, n)
    torch.testing.assert_close(found, by_enumeration(probs, rewards, n), atol=1e-12, rtol=0)


@deterministic
@given(rewards_with_ties)
def test_t23_best_of_one_is_the_base(rewards):
    probs = base(len(rewards))
    torch.testing.assert_close(best_of_n_distribution(probs, rewards, 1), probs)


@deterministic
@given(rewards_with_ties, st.integers(1, 60))
def test_t23_expected_reward_never_falls_and_the_kl_is_bounded(rewards, n):
    """From n to n + 1 the reward does not fall; KL(best of n || base) is between 0 and log n - (n - 1) / n."""
    probs = base(len(rewards))
    found, more = (best_of_n_distribution(probs, rewards, count) for count in (n, n + 1))
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (more * rewards).sum() >= (found * rewards).sum() - 1e-12
    kl = torch.xlogy(found, found / probs).sum()
    assert -1e-12 <= kl <= best_of_n_kl_bound(n) + 1e-12


def test_t23_the_bound_is_tight_without_ties_and_far_with_them():
    """FOUND: the bound is the KL of a continuum: 10,000 distinct rewards come within 0.1 percent of it, while with
    two rewards the KL stops at -log of the share of the better one, however large N.
    """
    many = torch.full((10_000,), 1e-4, dtype=torch.float64)
    found = best_of_n_distribution(many, torch.arange(10_000, dtype=torch.float64), 16)
    kl = torch.xlogy(found, found / many).sum().item()
    assert kl == pytest.approx(best_of_n_kl_bound(16), rel=1e-3)
    probs, rewards = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = best_of_n_distribution(probs, rewards, 1000)
    assert torch.xlogy(found, found / probs).sum().item() == pytest.approx(-math.log(0.3))
    assert best_of_n_kl_bound(1000) > 4 * -math.log(0.3)


def test_t23_a_wrong_reward_is_followed_too():
    """Selection raises what it selects by: with the true reward turned round, more samples are worse."""
    probs, rewards = base(6), random_table(6, seed=231)
    true = [(best_of_n_distribution(probs, -rewards, n) * rewards).sum().item() for n in (1, 2, 8, 64)]
    assert all(later < earlier for earlier, later in itertools.pairwise(true))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_all_subsets(n):
    """And over leading axes at once; n = 1 is the mean, n = M the maximum."""
    scores = random_table(2, 3, 5, seed=232)
    subsets = list(itertools.combinations(range(5), n))
    expected = scores[..., torch.tensor(subsets)].amax(-1).mean(-1)
    torch.testing.assert_close(expected_best_of(scores, n), expected)


def test_expected_best_is_unbiased():
    """Over all draws of four samples from three responses, its mean is E[reward] of the exact distribution."""
    probs, rewards = base(3), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    draws = all_groups(3, group_size=4)
    for n in (1, 2, 3, 4):
        mean = (probs[draws].prod(-1) * expected_best_of(rewards[draws], n)).sum()
        torch.testing.assert_close(mean, (best_of_n_distribution(probs, rewards, n) * rewards).sum())


def test_expected_best_of_many_samples_stays_finite_in_float32():
    """Numbers of subsets overflow every float; their ratios do not."""
    scores = torch.arange(5000.0)
    assert expected_best_of(scores, 2500).item() == pytest.approx(4998.0, abs=1.1)
    assert expected_best_of(scores, 5000).item() == 4999.0


def test_counts_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_distribution(base(2), base(2), 0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_kl_bound(0)
    with pytest.raises(ValueError, match="the best of 4 needs at least as many samples, got 3"):
        expected_best_of(base(3), 4)
