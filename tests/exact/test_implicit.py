"""T11, T12 and T14 of docs/algorithms.md: the implicit losses of IRFT, SPIN and DPO are one loss."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rayalign.objectives.implicit import IMPLICIT_LINKS, dpo_loss, implicit_pair_loss, implicit_rewards
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.reward import margin_demo_minus_agent, pair_accuracy, pair_accuracy_half_ties
from rayalign.objectives.segments import segment_sum

from .worlds import TokenWorld, gradient, random_table


def shared_logprob_sums(num_pairs: int, *, dtype: torch.dtype) -> list[Tensor]:
    """Policy demo, policy agent, reference demo, reference agent: sums as large as of long responses."""
    return [(-200 + 50 * random_table(num_pairs, seed=110 + i)).to(dtype) for i in range(4)]


def spin_reference(policy_real, policy_generated, opponent_real, opponent_generated, beta):
    """The loss of uclaml/SPIN, spin/alignment/trainer.py `spin_loss`, loss_type sigmoid, before its mean."""
    pi_logratios = policy_real - policy_generated
    ref_logratios = opponent_real - opponent_generated
    return -logsigmoid(beta * (pi_logratios - ref_logratios))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_t11_irft_is_spin_is_dpo_to_the_last_bit(beta, dtype):
    """One generation pass, chosen = demo, rejected = sample, reference = start model; value and gradients.

    FOUND: 'to the last bit' depends on the order of subtraction. The released codes take policy minus policy
    first; in terms of implicit rewards (log-ratios first) the same loss differs in the last digits, as the
    final lines show.
    """
    policy_demo, policy_agent, ref_demo, ref_agent = shared_logprob_sums(64, dtype=dtype)
    policy_demo, policy_agent = policy_demo.requires_grad_(), policy_agent.requires_grad_()
    refs = {"demo_ref_logprob_sums": ref_demo, "agent_ref_logprob_sums": ref_agent}
    irft = implicit_pair_loss(policy_demo, policy_agent, **refs, beta=beta)
    refs = {"chosen_ref_logprob_sums": ref_demo, "rejected_ref_logprob_sums": ref_agent}
    dpo = dpo_loss(policy_demo, policy_agent, **refs, beta=beta)
    per_pair = spin_reference(policy_demo, policy_agent, ref_demo, ref_agent, beta)
    assert torch.equal(irft, per_pair.sum())
    assert torch.equal(irft, dpo)
    policy_sides = [policy_demo, policy_agent]
    expected = torch.autograd.grad(per_pair.sum(), policy_sides, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(irft, policy_sides), expected))
    rewards = [implicit_rewards(*s, beta=beta) for s in [(policy_demo, ref_demo), (policy_agent, ref_agent)]]
    other_order = -logsigmoid(rewards[0] - rewards[1])
    assert not torch.equal(other_order, per_pair)
    torch.testing.assert_close(other_order, per_pair, rtol=1e-3, atol=1e-4)


WORLD = TokenWorld(num_tokens=3, max_length=2)


def sides(table: Tensor, demos: list[int], agents: list[int]) -> tuple[Tensor, Tensor]:
    return WORLD.logprob_sums(table, demos), WORLD.logprob_sums(table, agents)


def refs(table: Tensor, demos: list[int], agents: list[int]) -> dict[str, Tensor]:
    demo, agent = sides(table.detach(), demos, agents)
    return {"demo_ref_logprob_sums": demo, "agent_ref_logprob_sums": agent}


def test_t12_at_the_reference_everything_is_neutral():
    """Loss log 2 a pair, rewards, margin and strict accuracy 0 (ties are half only in the other accuracy)."""
    table = WORLD.random_table(seed=120)
    demos, agents = [0, 3, 6, 2], [1, 1, 4, 5]
    loss = implicit_pair_loss(*sides(table, demos, agents), **refs(table, demos, agents), beta=0.1)
    assert loss.item() == pytest.approx(4 * math.log(2), abs=1e-14)
    demo_rewards, agent_rewards = (
        implicit_rewards(side, side.clone(), beta=0.1) for side in sides(table, demos, agents)
    )
    assert torch.equal(demo_rewards, torch.zeros(4, dtype=torch.float64))
    assert margin_demo_minus_agent(demo_rewards, agent_rewards) == 0
    assert pair_accuracy(demo_rewards, agent_rewards) == 0
    assert pair_accuracy_half_ties(demo_rewards, agent_rewards) == 2


def test_t12_gradient_at_the_reference_is_half_beta_times_the_difference():
    """-(beta / 2) (grad log pi(y) - grad log pi(y~)), per pair."""
    table, beta = WORLD.random_table(seed=121).requires_grad_(), 0.3
    demos, agents = [3], [5]
    loss = implicit_pair_loss(*sides(table, demos, agents), **refs(table, demos, agents), beta=beta)
    demo_sums, agent_sums = sides(table, demos, agents)
    expected = -(beta / 2) * gradient((demo_sums - agent_sums).sum(), table)
    torch.testing.assert_close(gradient(loss, table), expected, atol=1e-14, rtol=0)


def population(table: Tensor, ref_table: Tensor, agent_table: Tensor, *, beta: float, link: str) -> Tensor:
    """Expected loss over demonstrations of a fixed expert and samples of the agent, all 49 pairs."""
    demos, agents = zip(*[(y, z) for y in range(7) for z in range(7)], strict=True)
    expert_sums = WORLD.logprob_sums(WORLD.random_table(seed=122))
    agent_sums = WORLD.logprob_sums(agent_table.detach())
    weights = (expert_sums[list(demos)] + agent_sums[list(agents)]).exp()
    pair_sides = sides(table, demos, agents)
    return implicit_pair_loss(
        *pair_sides, **refs(ref_table, demos, agents), beta=beta, link=link, weights=weights
    )


def fine_tuning_gradient(table: Tensor) -> Tensor:
    _, _, lengths = WORLD.batch()
    weights = WORLD.logprob_sums(WORLD.random_table(seed=122)).exp().repeat_interleave(lengths)
    return gradient(negative_log_likelihood(WORLD.token_logprobs(table), weights=weights), table)


def test_t12_on_policy_expectation_at_the_reference_is_half_beta_fine_tuning():
    """With samples of the same policy, the first SPIN step is (beta / 2) times the SFT step."""
    table = WORLD.random_table(seed=123).requires_grad_()
    loss = population(table, table, table, beta=0.3, link="log_sigmoid")
    expected = 0.3 / 2 * fine_tuning_gradient(table)
    torch.testing.assert_close(gradient(loss, table), expected, atol=1e-12, rtol=0)


def test_t14_linear_link_on_policy_is_fine_tuning():
    """K = 1, h linear, ANY reference: the expected gradient is beta times SFT's: E_pi[grad log pi] = 0."""
    table = WORLD.random_table(seed=124).requires_grad_()
    loss = population(table, WORLD.random_table(seed=125), table, beta=0.3, link="linear")
    torch.testing.assert_close(gradient(loss, table), 0.3 * fine_tuning_gradient(table), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("stale", "link"), [(True, "linear"), (False, "log_sigmoid"), (False, "hinge")])
def test_t14_staleness_or_another_link_makes_the_difference(stale, link):
    """Away from the reference, stale samples (K > 1) or a curved link leave fine-tuning; the gradients are
    not parallel.

    At the reference the hinge and log sigmoid would be parallel too (T12), so the reference differs here.
    """
    table, ref_table = WORLD.random_table(seed=124).requires_grad_(), WORLD.random_table(seed=125)
    loss = population(table, ref_table, ref_table if stale else table, beta=0.5, link=link)
    cosine = torch.cosine_similarity(
        gradient(loss, table).flatten(), fine_tuning_gradient(table).flatten(), 0
    )
    assert cosine < 0.99


def test_links_by_hand():
    """Margins 0, 2 and -1 at beta 0.5."""
    policy_demo = torch.tensor([-1.0, -1.0, -3.0], dtype=torch.float64)
    policy_agent = torch.tensor([-1.0, -3.0, -1.0], dtype=torch.float64)
    ref = {
        "demo_ref_logprob_sums": torch.tensor([-2.0, -2.0, -2.0], dtype=torch.float64),
        "agent_ref_logprob_sums": torch.tensor([-2.0, -2.0, -1.0], dtype=torch.float64),
    }
    values = {
        link: implicit_pair_loss(policy_demo, policy_agent, **ref, beta=0.5, link=link).item()
        for link in IMPLICIT_LINKS
    }
    by_hand = {
        "log_sigmoid": math.log(2) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5)),
        "hinge": 1 + 0 + 1.5,
        "linear": 0 - 1 + 0.5,
    }
    assert values == pytest.approx(by_hand)
    with pytest.raises(ValueError, match=r"unknown link 'sigmoid': choose one of \['hinge'"):
        implicit_pair_loss(policy_demo, policy_agent, **ref, beta=0.5, link="sigmoid")


def test_implicit_losses_take_sums_of_token_logprobs():
    """A response twice as long counts twice: no length normalisation hides in the pipeline (T17)."""
    lengths = torch.tensor([2, 4])
    sums = segment_sum(torch.full((6,), -0.5, dtype=torch.float64), lengths)
    rewards = implicit_rewards(sums, torch.zeros_like(sums), beta=2.0)
    assert rewards.tolist() == [-2.0, -4.0]
