"""T7, T13 and T16 of docs/algorithms.md: what repeated rounds do when every inner problem is solved exactly.

e_t is the centred log(pi_t / pi^E). Rewards are fitted by the package's losses (L-BFGS on the population
loss), then the KL-regularised policy step is exact (Gibbs).
"""

import itertools

import pytest
import torch
from torch import Tensor

from rayalign.objectives.implicit import implicit_pair_loss, implicit_rewards
from rayalign.objectives.reward import bradley_terry_loss, pair_accuracy

from .worlds import Bandit, centred, gibbs_logprobs, minimise, random_table, total_variation


def errors(world: Bandit, policy_logprobs: Tensor) -> Tensor:
    return centred(policy_logprobs - world.expert_logprobs)


def refit_reward(world: Bandit, policy_logprobs: Tensor) -> Tensor:
    """The reward that one exact round of Bradley-Terry learns from (demonstration > policy sample) pairs: [X,
    Y].
    """
    weights = world.pair_probs(policy_logprobs)
    start = torch.zeros_like(policy_logprobs)
    return minimise(lambda r: bradley_terry_loss(*world.pairs(r), weights=weights), start)


def spin_round(world: Bandit, policy_logprobs: Tensor, *, beta: float) -> Tensor:
    """Exact minimiser of the implicit loss; samples from, and reference at, the round's first policy."""
    weights = world.pair_probs(policy_logprobs)
    demo_ref, agent_ref = world.pairs(policy_logprobs)

    def loss(logits: Tensor) -> Tensor:
        sides = world.pairs(logits.log_softmax(-1))
        refs = {"demo_ref_logprob_sums": demo_ref, "agent_ref_logprob_sums": agent_ref}
        return implicit_pair_loss(*sides, **refs, beta=beta, weights=weights)

    return minimise(loss, policy_logprobs).log_softmax(-1)


@pytest.mark.parametrize("beta", [0.7, 1.0, 2.0])
def test_t07_a_moving_reference_contracts_by_one_minus_one_over_beta(beta):
    """Refit reward, policy step from the policy itself: e_{t+1} = (1 - 1/beta) e_t, for three rounds."""
    world = Bandit.random(seed=70, scale=0.5)
    policy_logprobs = world.ref_logprobs
    for _ in range(3):
        error = errors(world, policy_logprobs)
        policy_logprobs = gibbs_logprobs(refit_reward(world, policy_logprobs), policy_logprobs, beta=beta)
        torch.testing.assert_close(errors(world, policy_logprobs), (1 - 1 / beta) * error, atol=1e-6, rtol=0)


def test_t07_a_moving_reference_at_beta_one_lands_on_the_expert():
    """One round is enough."""
    world = Bandit.random(seed=70, scale=0.5)
    policy_logprobs = gibbs_logprobs(refit_reward(world, world.ref_logprobs), world.ref_logprobs, beta=1.0)
    assert total_variation(policy_logprobs, world.expert_logprobs) < 1e-6


def test_t07_a_moving_reference_diverges_below_beta_one_half():
    """beta = 0.4: the error grows by 1.5 a round. Papers use 0.1 and 0.05 and live on unsolved inner
    problems.
    """
    world = Bandit.random(seed=70, scale=0.2)
    policy_logprobs, sizes = world.ref_logprobs, []
    for _ in range(4):
        sizes.append(errors(world, policy_logprobs).norm().item())
        policy_logprobs = gibbs_logprobs(refit_reward(world, policy_logprobs), policy_logprobs, beta=0.4)
    growth = [after / before for before, after in itertools.pairwise(sizes)]
    assert growth == pytest.approx([1.5] * 3, abs=1e-4)


@pytest.mark.parametrize("beta", [0.7, 1.0, 2.0])
def test_t07_a_exact_spin_makes_the_same_step(beta):
    """SPIN solved exactly is the same map as refit reward + KL step with a moving reference."""
    world = Bandit.random(seed=71, scale=0.5)
    policy_logprobs = spin_round(world, world.ref_logprobs, beta=beta)
    expected = (1 - 1 / beta) * errors(world, world.ref_logprobs)
    torch.testing.assert_close(errors(world, policy_logprobs), expected, atol=1e-6, rtol=0)


def test_t07_b_fixed_reference_with_refitted_reward_misses_the_expert():
    """e_{t+1} = e_0 - e_t / beta; beta = 2 settles at e_0 beta / (1 + beta), one third of the way."""
    world, beta = Bandit.random(seed=72, scale=0.5), 2.0
    first_error = errors(world, world.ref_logprobs)
    policy_logprobs = world.ref_logprobs
    for _ in range(25):
        error = errors(world, policy_logprobs)
        policy_logprobs = gibbs_logprobs(refit_reward(world, policy_logprobs), world.ref_logprobs, beta=beta)
        expected = first_error - error / beta
        torch.testing.assert_close(errors(world, policy_logprobs), expected, atol=1e-6, rtol=0)
    settled = first_error * beta / (1 + beta)
    torch.testing.assert_close(errors(world, policy_logprobs), settled, atol=1e-6, rtol=0)
    assert total_variation(policy_logprobs, world.expert_logprobs) > 0.05


def test_t07_b_fixed_reference_with_refitted_reward_oscillates_at_beta_one():
    """beta = 1: expert, reference, expert, reference ... A run must not be judged by its last round here."""
    world = Bandit.random(seed=72, scale=0.5)
    policy_logprobs, distances = world.ref_logprobs, []
    for _ in range(4):
        policy_logprobs = gibbs_logprobs(refit_reward(world, policy_logprobs), world.ref_logprobs, beta=1.0)
        distances.append(total_variation(policy_logprobs, world.expert_logprobs).item())
    start = total_variation(world.ref_logprobs, world.expert_logprobs).item()
    assert distances == pytest.approx([0, start, 0, start], abs=1e-6)


def test_t07_c_fixed_reference_with_accumulated_reward_finds_the_expert():
    """Adding each round's log-ratio to the reward: contraction 1 - 1/beta again, fixed point = expert."""
    world, beta = Bandit.random(seed=73, scale=0.5), 2.0
    policy_logprobs, rewards = world.ref_logprobs, torch.zeros_like(world.ref_logprobs)
    for _ in range(25):
        error = errors(world, policy_logprobs)
        rewards = rewards + refit_reward(world, policy_logprobs)
        policy_logprobs = gibbs_logprobs(rewards, world.ref_logprobs, beta=beta)
        torch.testing.assert_close(errors(world, policy_logprobs), (1 - 1 / beta) * error, atol=1e-6, rtol=0)
    assert total_variation(policy_logprobs, world.expert_logprobs) < 1e-6


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_t13_spin_minimiser_is_a_tilt_of_the_policy_towards_the_expert(beta):
    """pi proportional to pi_t (pi^E / pi_t)^(1 / beta)."""
    world = Bandit.random(seed=130, scale=0.5)
    tilted = (world.ref_logprobs + (world.expert_logprobs - world.ref_logprobs) / beta).log_softmax(-1)
    assert total_variation(spin_round(world, world.ref_logprobs, beta=beta), tilted) < 1e-6


def test_t16_implicit_rewards_of_rounds_telescope():
    """sum_t beta log(pi_{t+1} / pi_t) == beta log(pi_T / pi_0)."""
    world, beta = Bandit.random(seed=160, scale=0.5), 2.0
    first = policy_logprobs = world.ref_logprobs
    total = torch.zeros_like(first)
    for _ in range(4):
        previous, policy_logprobs = policy_logprobs, spin_round(world, policy_logprobs, beta=beta)
        total += implicit_rewards(policy_logprobs, previous, beta=beta)
    torch.testing.assert_close(total, implicit_rewards(policy_logprobs, first, beta=beta), atol=1e-12, rtol=0)


def test_t16_an_exported_reward_needs_the_first_reference():
    """After convergence the last round's reference explains nothing: the reward it gives is 0 for every
    response.

    Against pi_0 the same policy ranks by log pi^E / pi_0. Pairs: every two responses to one prompt, the one
    that the expert raised more taken as the better.
    """
    world = Bandit.random(seed=161, scale=0.5)
    before_last = spin_round(world, world.ref_logprobs, beta=1.0)
    last = spin_round(world, before_last, beta=1.0)
    truth = world.expert_logprobs - world.ref_logprobs
    with_last_ref = implicit_rewards(last, before_last, beta=1.0)
    with_first_ref = implicit_rewards(last, world.ref_logprobs, beta=1.0)
    assert with_last_ref.abs().max() < 1e-6
    better, worse = world.pairs(truth)
    ordered = better > worse + 1e-3
    first_sides = [side[ordered] for side in world.pairs(with_first_ref)]
    assert pair_accuracy(*first_sides) == ordered.sum() == 12
    torch.testing.assert_close(centred(with_first_ref), centred(truth), atol=1e-6, rtol=0)


def test_t07_the_round_map_does_not_depend_on_the_prompt_distribution():
    """Each prompt is its own problem: other prompt weights, same fitted reward (up to a shift per prompt)."""
    world = Bandit.random(seed=74, scale=0.5)
    other = Bandit(world.prompt_probs.flip(0), world.expert_logprobs, world.ref_logprobs)
    assert not torch.allclose(world.prompt_probs, other.prompt_probs, atol=0.05)
    sampler_logprobs = random_table(2, 4, seed=75).log_softmax(-1)
    fits = [centred(refit_reward(w, sampler_logprobs)) for w in (world, other)]
    torch.testing.assert_close(fits[0], fits[1], atol=1e-6, rtol=0)
