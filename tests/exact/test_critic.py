"""A critic's part of PPO: returns, generalised advantages and the clipped value loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayalign.objectives.advantages import generalised_advantages, rewards_to_go
from rayalign.objectives.critic import clipped_value_loss
from rayalign.objectives.policy import kl_penalised_token_rewards, policy_gradient_loss
from rayalign.objectives.segments import repeat_per_token

from .worlds import TokenWorld, deterministic, gradient, minimise, random_table

WORLD = TokenWorld(num_tokens=3, max_length=3)
ROWS, _, LENGTHS = WORLD.batch()
SCORES = random_table(15, seed=300)
ragged = st.lists(st.integers(0, 6), min_size=0, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.int64))
shares = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def advantages_one_by_one(rewards: list, values: list, *, gamma: float, gae_lambda: float) -> list[float]:
    """The recursion of one sequence, backwards: A_t = delta_t + gamma lambda A_{t+1}."""
    found, later, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        later = reward + gamma * next_value - value + gamma * gae_lambda * later
        next_value = value
        found.insert(0, later)
    return found


@deterministic
@given(ragged, shares, shares)
def test_generalised_advantages_equal_the_recursion(lengths, gamma, gae_lambda):
    """Any ragged batch, empty sequences and no sequence at all included; returns are advantages plus values."""
    rewards, values = (random_table(int(lengths.sum()), seed=301 + i) for i in range(2))
    advantages, returns = generalised_advantages(rewards, values, lengths, gamma=gamma, gae_lambda=gae_lambda)
    parts = zip(rewards.split(lengths.tolist()), values.split(lengths.tolist()), strict=True)
    expected = [
        a
        for reward, value in parts
        for a in advantages_one_by_one(reward.tolist(), value.tolist(), gamma=gamma, gae_lambda=gae_lambda)
    ]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(returns, advantages + values)


@deterministic
@given(ragged, shares)
def test_rewards_to_go_are_the_advantages_of_a_critic_that_says_zero(lengths, gamma):
    rewards = random_table(int(lengths.sum()), seed=303)
    without, _ = generalised_advantages(rewards, rewards * 0, lengths, gamma=gamma, gae_lambda=1.0)
    torch.testing.assert_close(rewards_to_go(rewards, lengths, gamma=gamma), without)


def test_golden_returns_and_advantages():
    """Float32 in, float32 out; three sequences, the middle one empty; nothing carries a gradient."""
    lengths, rewards = torch.tensor([3, 0, 1]), torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    to_go = rewards_to_go(rewards, lengths, gamma=0.5)
    assert to_go.dtype == torch.float32
    assert to_go.tolist() == [3.0, 4.0, 4.0, 8.0]
    values = torch.tensor([0.5, 0.25, 0.0, 1.0], requires_grad=True)
    advantages, returns = generalised_advantages(rewards, values, lengths, gamma=1.0, gae_lambda=0.0)
    assert advantages.tolist() == [0.75, 1.75, 4.0, 7.0]
    assert returns.tolist() == [1.25, 2.0, 4.0, 8.0]
    assert not any(x.requires_grad for x in (to_go, advantages, returns))


@pytest.mark.parametrize("change", [{"gamma": 1.1}, {"gae_lambda": -0.1}])
def test_discounts_outside_zero_and_one_are_refused(change):
    setting = {"gamma": 1.0, "gae_lambda": 1.0} | change
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be between 0 and 1"):
        generalised_advantages(vector(0), vector(0), torch.tensor([1]), **setting)


def exact_values(table: Tensor) -> Tensor:
    """Expected score of a response that goes on from each prefix, by the policy of the table: [P]."""
    values = dict(zip(WORLD.responses, SCORES, strict=True))
    probs = table.softmax(-1)
    for row, prefix in reversed(list(enumerate(WORLD.prefixes))):
        values[prefix] = sum(probs[row, token] * values[(*prefix, token)] for token in range(3))
    return torch.stack([values[prefix] for prefix in WORLD.prefixes])


def expected_gradient(table: Tensor, values: Tensor, *, gae_lambda: float) -> Tensor:
    """The policy gradient that a critic gives, in expectation over the policy's own responses."""
    table = table.clone().requires_grad_()
    logprobs = WORLD.token_logprobs(table)
    rewards = kl_penalised_token_rewards(SCORES, logprobs, logprobs, LENGTHS, kl_coef=0.0)
    advantages, _ = generalised_advantages(rewards, values[ROWS], LENGTHS, gamma=1.0, gae_lambda=gae_lambda)
    weights = repeat_per_token(WORLD.logprob_sums(table).detach().exp(), LENGTHS)
    return -gradient(policy_gradient_loss(logprobs, advantages, weights=weights), table)


def exact_gradient(table: Tensor) -> Tensor:
    table = table.clone().requires_grad_()
    return gradient((WORLD.logprob_sums(table).exp() * SCORES).sum(), table)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_a_right_critic_gives_the_policy_gradient_at_any_lambda(gae_lambda):
    table = WORLD.random_table(seed=304)
    found = expected_gradient(table, exact_values(table), gae_lambda=gae_lambda)
    torch.testing.assert_close(found, exact_gradient(table), atol=1e-12, rtol=0)


def test_a_wrong_critic_biases_every_lambda_but_one():
    """lambda = 1: any values are a baseline. Below, the error grows as lambda falls."""
    table, wrong = WORLD.random_table(seed=304), random_table(len(WORLD.prefixes), seed=305)
    exact = exact_gradient(table)
    biases = [(expected_gradient(table, wrong, gae_lambda=x) - exact).norm().item() for x in (1.0, 0.95, 0.5, 0.0)]
    assert biases[0] < 1e-12
    assert 0.01 < biases[1] < biases[2] < biases[3]


VALUE_TABLE = [  # value, return, loss, d loss / d value, clipped: old value 0, clip 0.2
    (0.1, 1.0, 0.405, -0.9, 0),  # inside: the squared error
    (0.5, 1.0, 0.32, 0.0, 1),  # has moved far enough towards its return: cut at 0.2
    (-0.5, 1.0, 1.125, -1.5, 0),  # went the wrong way: no cut
    (0.5, 0.1, 0.08, 0.4, 0),  # moved past its return: no cut
]


@pytest.mark.parametrize(("value", "target", "loss", "slope", "num_clipped"), VALUE_TABLE)
def test_value_clip_table_by_hand(value, target, loss, slope, num_clipped):
    values = vector(value).requires_grad_()
    found, count = clipped_value_loss(values, vector(0.0), vector(target), clip=0.2)
    assert found.item() == pytest.approx(loss)
    assert gradient(found, values).item() == pytest.approx(slope)
    assert count.item() == num_clipped


def test_value_loss_sums_weights_and_counts():
    """Two rows of the table at once; a token of weight 0 neither adds nor counts."""
    values, old, returns = vector(0.1, 0.5, 0.5), vector(0, 0, 0), vector(1, 1, 1)
    loss, count = clipped_value_loss(values, old, returns, clip=0.2, weights=vector(1, 0.5, 0))
    assert loss.item() == pytest.approx(0.405 + 0.16)
    assert count.item() == 1
    with pytest.raises(ValueError, match="clip must be above 0, got 0"):
        clipped_value_loss(values, old, returns, clip=0)


def test_a_critic_fitted_to_its_returns_is_exact():
    """Returns at lambda = 1 over all responses, weighed by the policy: the minimum is the value of each prefix."""
    table = WORLD.random_table(seed=306)
    weights = repeat_per_token(WORLD.logprob_sums(table).exp(), LENGTHS)
    rewards = kl_penalised_token_rewards(SCORES, weights, weights, LENGTHS, kl_coef=0.0)
    start = torch.zeros(len(WORLD.prefixes), dtype=torch.float64)
    _, returns = generalised_advantages(rewards, start[ROWS], LENGTHS, gamma=1.0, gae_lambda=1.0)

    def loss(values: Tensor) -> Tensor:
        return clipped_value_loss(values[ROWS], start[ROWS], returns, clip=math.inf, weights=weights)[0]

    torch.testing.assert_close(minimise(loss, start), exact_values(table), atol=1e-6, rtol=0)
