"""APA's squared loss and GRPO's KL in the loss: which step, and which KL, their gradients belong to."""

import math

import pytest
import torch
from torch import Tensor

from rayalign.objectives.policy import (
    kl_penalty_loss,
    kl_policy_to_ref_k3,
    policy_gradient_loss,
    squared_advantage_loss,
)
from rayalign.objectives.segments import repeat_per_token

from .worlds import TokenWorld, gibbs_logprobs, gradient, minimise, random_logprobs, random_table, total_variation

WORLD = TokenWorld(num_tokens=3, max_length=3)
ROWS, _, LENGTHS = WORLD.batch()


def test_squared_loss_by_hand():
    policy, old = torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -1.0])
    loss = squared_advantage_loss(policy, old, torch.tensor([5.0, 10.0]), scale=10.0)
    assert loss.item() == pytest.approx(0.25 + 1.0)
    halved = squared_advantage_loss(
        policy, old, torch.tensor([5.0, 10.0]), scale=10.0, weights=torch.tensor([1.0, 0.5])
    )
    assert halved.item() == pytest.approx(0.75)
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        squared_advantage_loss(policy, old, policy, scale=0)


def test_the_first_step_of_apa_is_a_policy_gradient_step():
    """At pi = pi_old its gradient is 2 / scale times REINFORCE's, token for token."""
    logprobs, advantages = WORLD.token_logprobs(WORLD.random_table(seed=310)), random_table(len(ROWS), seed=311)
    logprobs = logprobs.requires_grad_()
    found = gradient(squared_advantage_loss(logprobs, logprobs.detach(), advantages, scale=4.0), logprobs)
    expected = gradient(policy_gradient_loss(logprobs, advantages), logprobs) / 2
    torch.testing.assert_close(found, expected)


def apa_step(old_logprobs: Tensor, advantages: Tensor, *, scale: float) -> Tensor:
    """Where the expected loss on samples of the old policy is smallest: log-probs [Y]."""

    def loss(logits: Tensor) -> Tensor:
        weights = old_logprobs.exp()
        return squared_advantage_loss(logits.log_softmax(-1), old_logprobs, advantages, scale=scale, weights=weights)

    return minimise(loss, old_logprobs).log_softmax(-1)


def test_apa_solved_exactly_is_a_gibbs_step_around_the_old_policy():
    """With A = r - scale log Z the minimum is 0, at pi_old exp(r / scale) / Z: what paper 3's theory asks for."""
    old_logprobs, rewards, scale = random_logprobs(5, seed=312), random_table(5, seed=313), 0.7
    log_z = (old_logprobs + rewards / scale).logsumexp(-1)
    found = apa_step(old_logprobs, rewards - scale * log_z, scale=scale)
    expected = gibbs_logprobs(rewards, old_logprobs, beta=scale)
    assert total_variation(found[None], expected[None]) < 1e-6


def test_apa_with_centred_advantages_is_that_step_but_for_the_third_order():
    """FOUND: A = r - E[r], as a critic or RLOO gives it, misses log Z, and the minimum is not the Gibbs policy.

    That the policy sums to one makes good for most of it: the error is of third order in 1 / scale, so ten times
    the scale leaves less than a three-hundredth of it. With adv_coeff 10 (paper 3's code) it does not matter; at
    a scale of half the spread of the reward it is a tenth of the step.
    """
    old_logprobs, rewards = random_logprobs(5, seed=312), random_table(5, seed=313)
    centred_rewards = rewards - (old_logprobs.exp() * rewards).sum()
    gaps, steps = {}, {}
    for scale in (0.5, 1.0, 10.0):
        found = apa_step(old_logprobs, centred_rewards, scale=scale)
        gibbs = gibbs_logprobs(rewards, old_logprobs, beta=scale)
        gaps[scale] = total_variation(found[None], gibbs[None]).item()
        steps[scale] = total_variation(gibbs[None], old_logprobs[None]).item()
    assert gaps[0.5] > 0.1 * steps[0.5]
    assert gaps[10.0] < gaps[1.0] / 300
    assert gaps[10.0] < 0.001 * steps[10.0]


POLICY_TABLE, REF_TABLE = WORLD.random_table(seed=314), WORLD.random_table(seed=315)


def expected_penalty_gradient(table: Tensor, ref_table: Tensor) -> Tensor:
    """Gradient of the KL loss in expectation over the policy's responses."""
    table = table.clone().requires_grad_()
    weights = repeat_per_token(WORLD.logprob_sums(table).detach().exp(), LENGTHS)
    loss = kl_penalty_loss(WORLD.token_logprobs(table), WORLD.token_logprobs(ref_table), weights=weights)
    return gradient(loss, table)


def kl_gradient(table: Tensor, ref_table: Tensor, *, policy_first: bool, visits_move: bool) -> Tensor:
    """Gradient of the KL at each prefix, weighed by how often the policy is there; `visits_move`: with its own."""
    table = table.clone().requires_grad_()
    policy, ref = table.log_softmax(-1), ref_table.log_softmax(-1)
    per_prefix = (policy.exp() * (policy - ref)).sum(-1) if policy_first else (ref.exp() * (ref - policy)).sum(-1)
    sums = WORLD.logprob_sums(table)
    visits = torch.zeros(len(WORLD.prefixes), dtype=torch.float64)
    visits = visits.index_add(0, ROWS, repeat_per_token(sums.exp(), LENGTHS))
    return gradient(((visits if visits_move else visits.detach()) * per_prefix).sum(), table)


def test_the_value_of_grpos_kl_is_of_policy_to_reference():
    """In expectation over the policy's responses, and the same number as the metric."""
    sums, ref_sums = WORLD.logprob_sums(POLICY_TABLE), WORLD.logprob_sums(REF_TABLE)
    sides = WORLD.token_logprobs(POLICY_TABLE), WORLD.token_logprobs(REF_TABLE)
    value = kl_penalty_loss(*sides, weights=repeat_per_token(sums.exp(), LENGTHS))
    torch.testing.assert_close(value, (sums.exp() * (sums - ref_sums)).sum(), atol=1e-12, rtol=0)
    torch.testing.assert_close(kl_penalty_loss(*sides), kl_policy_to_ref_k3(*sides).sum())


def test_the_gradient_of_grpos_kl_is_of_reference_to_policy():
    """FOUND: of KL(pi_ref || pi) at the visited prefixes, exactly; away from the reference no multiple of the other."""
    found = expected_penalty_gradient(POLICY_TABLE, REF_TABLE)
    expected = kl_gradient(POLICY_TABLE, REF_TABLE, policy_first=False, visits_move=False)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    true = kl_gradient(POLICY_TABLE, REF_TABLE, policy_first=True, visits_move=True)
    assert torch.cosine_similarity(found.flatten(), true.flatten(), 0) < 0.95


def test_near_the_reference_both_directions_agree():
    """A hundredth away, their gradients differ by a percent: why nobody notices while the KL is small."""
    near = REF_TABLE + 0.01 * WORLD.random_table(seed=316)
    found = expected_penalty_gradient(near, REF_TABLE)
    true = kl_gradient(near, REF_TABLE, policy_first=True, visits_move=True)
    assert (found - true).norm() < 0.02 * true.norm()


def test_the_kl_loss_survives_a_token_that_the_policy_ruled_out():
    """log-ratio 1000: exp would be inf; the loss stays finite and the other token learns."""
    policy = torch.tensor([-1000.0, -1.0], requires_grad=True)
    loss = kl_penalty_loss(policy, torch.tensor([0.0, -0.5]))
    assert torch.isfinite(loss)
    assert gradient(loss, policy)[1].item() == pytest.approx(1 - math.exp(0.5))
