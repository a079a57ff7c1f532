"""T1 to T6, T8 and T20 of docs/algorithms.md: what maximum-likelihood IRL is, by enumeration."""

import math

import pytest
import torch

from rayalign.objectives.implicit import implicit_rewards
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.reward import bradley_terry_loss, linear_irl_loss, logistic_loss

from .worlds import (
    Bandit,
    TokenWorld,
    centred,
    descend,
    gibbs_logprobs,
    gradient,
    minimise,
    random_logprobs,
    random_table,
    total_variation,
)


def irl_loss(world: Bandit, rewards: torch.Tensor, *, beta: float) -> torch.Tensor:
    """The linear loss with the agent's samples drawn, in expectation, from the Gibbs policy of the same
    rewards.
    """
    policy_logprobs = gibbs_logprobs(rewards, world.ref_logprobs, beta=beta)
    return linear_irl_loss(*world.pairs(rewards), weights=world.pair_probs(policy_logprobs))


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_t01_linear_loss_has_the_gradient_of_the_likelihood(beta):
    """Autograd through the exact Gibbs policy == -1/beta times the gradient of the linear loss (eq. 1.1)."""
    world = Bandit.random(seed=1, num_prompts=3)
    rewards = random_table(3, 4, seed=10).requires_grad_()
    policy_logprobs = gibbs_logprobs(rewards, world.ref_logprobs, beta=beta)
    joint = world.prompt_probs[:, None] * world.expert_logprobs.exp()
    likelihood = (joint * policy_logprobs).sum()
    expected = gradient(likelihood, rewards)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(-gradient(irl_loss(world, rewards, beta=beta), rewards) / beta, expected)


def test_t02_gradient_ascent_recovers_a_planted_reward():
    """The expert is the Gibbs policy of r_true: IRL from r = 0 finds the expert, and r_true per prompt up to
    a shift.
    """
    beta = 0.7
    world = Bandit.random(seed=2, scale=0.5)
    true_rewards = random_table(2, 4, seed=20, scale=0.5)
    expert_logprobs = gibbs_logprobs(true_rewards, world.ref_logprobs, beta=beta)
    world = Bandit(world.prompt_probs, expert_logprobs, world.ref_logprobs)
    start = torch.zeros(2, 4, dtype=torch.float64)
    found = descend(lambda r: irl_loss(world, r, beta=beta), start, lr=2.0, num_steps=1500)
    policy_logprobs = gibbs_logprobs(found, world.ref_logprobs, beta=beta)
    assert total_variation(policy_logprobs, expert_logprobs) < 1e-6
    torch.testing.assert_close(centred(found), centred(true_rewards), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", [linear_irl_loss, bradley_terry_loss])
def test_t03_pair_losses_ignore_a_shift_per_prompt(loss):
    """Value unchanged, and the gradient has no component along r -> r + c(x), so there is no direction to
    drift in.
    """
    world = Bandit.random(seed=3)
    weights = world.pair_probs(random_logprobs(2, 4, seed=30))
    rewards = random_table(2, 4, seed=31).requires_grad_()
    shift = torch.tensor([[3.0], [-5.0]], dtype=torch.float64)
    value = loss(*world.pairs(rewards), weights=weights)
    torch.testing.assert_close(loss(*world.pairs(rewards + shift), weights=weights), value)
    per_prompt = gradient(value, rewards)
    assert per_prompt.abs().max() > 1e-2
    torch.testing.assert_close(per_prompt.sum(-1), torch.zeros(2, dtype=torch.float64), atol=1e-14, rtol=0)


def test_t03_logistic_loss_does_feel_a_shift():
    """The unpaired loss has a free constant no more: its gradient along a shift of all scores is not 0."""
    scores = random_table(8, seed=32).requires_grad_()
    is_demo = torch.tensor([True, False] * 4)
    value = logistic_loss(scores, is_demo)
    assert abs(logistic_loss(scores + 3, is_demo) - value) > 1
    assert abs(gradient(value, scores).sum()) > 0.1


def test_t04_soft_bellman_policy_is_the_sequence_tilt():
    """Token by token soft Bellman == pi_ref exp(R / beta) / Z on whole responses (15 of them, 3 tokens,
    length 3).
    """
    world, beta = TokenWorld(num_tokens=3, max_length=3), 0.6
    assert len(world.responses) == 15
    rewards, ref_table = random_table(15, seed=40), world.random_table(seed=41)
    policy_table, _ = world.soft_bellman(rewards, ref_table, beta=beta)
    ref_sums = world.logprob_sums(ref_table)
    torch.testing.assert_close(ref_sums.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    expected = gibbs_logprobs(rewards, ref_sums, beta=beta)
    torch.testing.assert_close(world.logprob_sums(policy_table), expected, atol=1e-12, rtol=0)


def test_t04_implicit_rewards_telescope_to_reward_minus_value():
    """sum_t beta log(pi / pi_ref) == R - V(prompt), for every response."""
    world, beta = TokenWorld(num_tokens=3, max_length=3), 0.6
    rewards, ref_table = random_table(15, seed=40), world.random_table(seed=41)
    policy_table, prompt_value = world.soft_bellman(rewards, ref_table, beta=beta)
    implicit = implicit_rewards(world.logprob_sums(policy_table), world.logprob_sums(ref_table), beta=beta)
    torch.testing.assert_close(implicit, rewards - prompt_value, atol=1e-12, rtol=0)


def test_t05_samples_identical_to_demonstrations_teach_nothing():
    """Pairs of equal responses: log 2 per pair, gradient exactly 0; the linear loss is exactly 0 too."""
    rewards = random_table(5, seed=50).requires_grad_()
    responses = torch.tensor([0, 3, 3, 1, 4, 2, 0])
    pairwise = bradley_terry_loss(rewards[responses], rewards[responses])
    linear = linear_irl_loss(rewards[responses], rewards[responses])
    torch.testing.assert_close(pairwise.item(), 7 * math.log(2))
    assert linear.item() == 0
    assert torch.equal(gradient(pairwise, rewards), torch.zeros_like(rewards))
    assert torch.equal(gradient(linear, rewards), torch.zeros_like(rewards))


def test_t06_bradley_terry_against_a_frozen_sampler_finds_the_log_ratio():
    """Minimiser of (1.2) == log pi^E / q + c(x), whatever beta: the loss has none."""
    world, sampler_logprobs = Bandit.random(seed=6), random_logprobs(2, 4, seed=60)
    weights = world.pair_probs(sampler_logprobs)
    start = torch.zeros(2, 4, dtype=torch.float64)
    found = minimise(lambda r: bradley_terry_loss(*world.pairs(r), weights=weights), start)
    torch.testing.assert_close(
        centred(found), centred(world.expert_logprobs - sampler_logprobs), atol=1e-6, rtol=0
    )


def test_t06_logistic_against_a_frozen_sampler_finds_it_without_a_constant():
    """Minimiser of the classifier (2.3) == log pi^E / q with c = 0."""
    world, sampler_logprobs = Bandit.random(seed=7), random_logprobs(2, 4, seed=61)
    prompts = world.prompt_probs[:, None]
    weights = torch.stack([prompts * world.expert_logprobs.exp(), prompts * sampler_logprobs.exp()]).flatten()
    is_demo = torch.tensor([True] * 8 + [False] * 8)
    start = torch.zeros(2, 4, dtype=torch.float64)
    found = minimise(lambda r: logistic_loss(r.flatten().repeat(2), is_demo, weights=weights), start)
    torch.testing.assert_close(found, world.expert_logprobs - sampler_logprobs, atol=1e-6, rtol=0)


def three_armed_world() -> Bandit:
    """One demonstrated response of three, uniform reference (paper 3, Table 1)."""
    uniform = torch.full((1, 3), -math.log(3), dtype=torch.float64)
    expert = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    return Bandit(torch.ones(1, dtype=torch.float64), expert, uniform)


def test_t08_a_bounded_reward_keeps_mass_on_what_was_not_demonstrated():
    """r held in [0, 1] by projection: IRL ends at softmax(1, 0, 0), not at the demonstration."""
    world, rewards = three_armed_world(), torch.full((1, 3), 0.5, dtype=torch.float64)
    for _ in range(50):
        loss = lambda r: irl_loss(world, r, beta=1.0)  # noqa: E731
        rewards = descend(loss, rewards, lr=0.5, num_steps=1).clamp(0, 1)
    probs = gibbs_logprobs(rewards, world.ref_logprobs, beta=1.0).exp()[0]
    expected = torch.tensor([0.57612, 0.21194, 0.21194], dtype=torch.float64)
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=0)


def test_t08_an_unbounded_reward_goes_to_the_demonstration():
    """Without the bound, ML-IRL is maximum likelihood: the mass on the single demonstration tends to 1."""
    world, masses = three_armed_world(), []
    for num_steps in (10, 100, 1000):
        start = torch.zeros(1, 3, dtype=torch.float64)
        rewards = descend(lambda r: irl_loss(world, r, beta=1.0), start, lr=1.0, num_steps=num_steps)
        masses.append(gibbs_logprobs(rewards, world.ref_logprobs, beta=1.0).exp()[0, 0].item())
    assert 0.57612 < masses[0] < masses[1] < masses[2]
    assert masses[2] > 0.999


def test_t20_fine_tuning_has_the_gradient_of_the_forward_kl():
    """Gradient of the token NLL on demonstrations == gradient of KL(expert || policy) over all responses."""
    world = TokenWorld(num_tokens=3, max_length=3)
    expert_sums = world.logprob_sums(world.random_table(seed=200))
    table = world.random_table(seed=201).requires_grad_()
    weights = expert_sums.exp().repeat_interleave(world.batch()[2])
    loss = negative_log_likelihood(world.token_logprobs(table), weights=weights)
    forward_kl = (expert_sums.exp() * (expert_sums - world.logprob_sums(table))).sum()
    torch.testing.assert_close(gradient(loss, table), gradient(forward_kl, table), atol=1e-12, rtol=0)
