"""Discriminative fine-tuning: likelihood IRL with a sampled partition function, and what its averages are for."""

import math

import pytest
import torch
from torch import Tensor

from rayalign.objectives.dft import dft_loss
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.reward import linear_irl_loss

from .worlds import TokenWorld, all_groups, gibbs_logprobs, gradient, random_table

WORLD = TokenWorld(num_tokens=3, max_length=3)
EXPERT = WORLD.logprob_sums(WORLD.random_table(seed=420)).exp()
GENERATOR_SUMS = WORLD.logprob_sums(WORLD.random_table(seed=421, scale=0.5))


def population_loss(table: Tensor, *, tau: float) -> Tensor:
    """Expected loss with the exact partition function: every response once, P- uniform over all 15."""
    sums = WORLD.logprob_sums(table)
    everything = sums.expand(15, 15)
    uniform = torch.full((15, 15), -math.log(15), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for y in range(15):
        loss, _ = dft_loss(sums[y : y + 1], everything[:1], uniform[:1], tau=tau, log_averages=None, decay=1.0)
        total = total + EXPERT[y] * loss
    return total


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_it_is_maximum_likelihood_irl_of_the_reward_log_pi(tau):
    """Reward s = log pi, beta = tau, uniform reference: the linear IRL loss with samples of the Gibbs policy has
    the same gradient. Other than in IRFT the policy is not its own Gibbs policy.
    """
    table = WORLD.random_table(seed=422).requires_grad_()
    rewards = WORLD.logprob_sums(table)
    gibbs = gibbs_logprobs(rewards, torch.zeros(15, dtype=torch.float64), beta=tau).detach().exp()
    demo, agent = rewards[:, None].expand(15, 15), rewards.expand(15, 15)
    irl = linear_irl_loss(demo.flatten(), agent.flatten(), weights=(EXPERT[:, None] * gibbs).flatten())
    found = gradient(population_loss(table, tau=tau), table)
    torch.testing.assert_close(found, gradient(irl, table), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("tau", "same"), [(1.0, True), (0.3, False)])
def test_at_tau_one_the_exact_loss_is_fine_tuning(tau, same):
    """FOUND: sum_y exp(log pi(y)) = 1, so at tau = 1, DFT's published setting, the exact partition function has no
    gradient, and DFT is SFT. What it does beside comes from an estimate with few samples of another model. At
    other tau it differs in population.
    """
    table = WORLD.random_table(seed=422).requires_grad_()
    weights = EXPERT.repeat_interleave(WORLD.batch()[2])
    sft = gradient(negative_log_likelihood(WORLD.token_logprobs(table), weights=weights), table)
    found = gradient(population_loss(table, tau=tau), table)
    assert torch.allclose(found, sft, atol=1e-12) == same


def negatives_of(groups: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return WORLD.logprob_sums(table)[groups], GENERATOR_SUMS[groups]


def test_the_estimate_is_unbiased_and_its_logarithm_is_not():
    """Over all draws of two negatives from P-: E[u] is the partition function, E[log u] lies below its logarithm."""
    table, groups = WORLD.random_table(seed=423), all_groups(15, group_size=2)
    probs = GENERATOR_SUMS[groups].sum(-1).exp()
    _, logs = dft_loss(
        torch.zeros(len(groups)), *negatives_of(groups, table), tau=0.5, log_averages=None, decay=1.0
    )
    exact = (WORLD.logprob_sums(table) / 0.5).logsumexp(-1)
    torch.testing.assert_close((probs * logs.exp()).sum().log(), exact)
    assert (probs * logs).sum() < exact - 0.05


def test_averages_take_away_the_bias_of_few_negatives():
    """The expected gradient with two negatives: at a right average it is exact, without averages it is not."""
    groups = all_groups(15, group_size=2)
    probs = GENERATOR_SUMS[groups].sum(-1).exp()

    def gradient_with(log_averages: Tensor | None, decay: float) -> Tensor:
        table = WORLD.random_table(seed=423).requires_grad_()
        sums, refs = negatives_of(groups, table)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(groups)):
            averages = None if log_averages is None else log_averages[:1]
            loss, _ = dft_loss(
                torch.zeros(1, dtype=torch.float64),
                sums[i : i + 1],
                refs[i : i + 1],
                tau=0.5,
                log_averages=averages,
                decay=decay,
            )
            total = total + probs[i] * loss
        return gradient(total, table)

    table = WORLD.random_table(seed=423).requires_grad_()
    log_partition = (WORLD.logprob_sums(table) / 0.5).logsumexp(-1)
    exact = gradient(0.5 * log_partition, table)
    averaged = gradient_with(log_partition.detach().expand(1), 1e-9)
    torch.testing.assert_close(averaged, exact, atol=1e-6, rtol=0)
    assert (gradient_with(None, 1.0) - exact).norm() > 0.05 * exact.norm()


def test_moving_averages_by_hand():
    """u <- (1 - g) u + g estimate in log space; the gradient is tau grad(estimate) / u; nan takes the estimate."""
    demos = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64).requires_grad_()
    negatives = torch.log(torch.tensor([[1.0, 3.0], [2.0, 2.0], [4.0, 4.0]], dtype=torch.float64)).requires_grad_()
    averages = torch.tensor([4.0, 1.0, math.nan], dtype=torch.float64).log()
    setting = {"tau": 1.0, "log_averages": averages, "decay": 0.25}
    loss, new = dft_loss(demos, negatives, torch.zeros_like(negatives), **setting)
    assert new.exp().tolist() == pytest.approx([3.5, 1.25, 4.0])
    assert not new.requires_grad
    assert loss.item() == pytest.approx(6 + math.log(3.5 * 1.25 * 4))
    demo_grads, grads = torch.autograd.grad(loss, [demos, negatives])
    assert demo_grads.tolist() == [-1, -1, -1]
    shares = torch.tensor([[0.5 / 3.5, 1.5 / 3.5], [1 / 1.25, 1 / 1.25], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(grads, shares)


def test_averages_converge_to_the_mean_estimate():
    """Two alternating estimates, e^400 apart from what float32 holds: their mean, within the swing of one step."""
    demos = torch.zeros(1)
    averages = None
    for step in range(200):
        negatives = torch.tensor([[400.0 + math.log(1.0 + 2 * (step % 2))]])
        _, averages = dft_loss(
            demos, negatives, torch.zeros(1, 1), tau=1.0, log_averages=averages, decay=0.02
        )
    assert averages.item() - 400 == pytest.approx(math.log(2), abs=0.02)


def test_without_averages_it_is_log_mean_exp():
    """Value and gradient of the plain formula, generator log-probs as constants."""
    demos, negatives = random_table(3, seed=424), random_table(3, 4, seed=425).requires_grad_()
    generator = random_table(3, 4, seed=426).requires_grad_()
    loss, new = dft_loss(demos, negatives, generator, tau=0.7, log_averages=None, decay=0.85)
    plain = -demos + 0.7 * (negatives / 0.7 - generator).exp().mean(-1).log()
    torch.testing.assert_close(loss, plain.sum())
    torch.testing.assert_close(new, (plain.detach() + demos) / 0.7)
    torch.testing.assert_close(*(gradient(x, negatives) for x in (loss, plain.sum())))
    assert torch.autograd.grad(loss, generator, allow_unused=True)[0] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 0.0}, "tau must be above 0, got 0.0"),
        ({"decay": 0.0}, "decay is the weight of the new estimate, above 0 and at most 1, got 0.0"),
        ({"log_averages": torch.zeros(3)}, "vectors of one length"),
    ],
)
def test_bad_settings_are_refused(change, message):
    setting = {"tau": 1.0, "log_averages": None, "decay": 0.5} | change
    with pytest.raises(ValueError, match=message):
        dft_loss(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3), **setting)


@pytest.mark.parametrize(
    "shapes",
    [((2,), (2,), (2,)), ((2,), (2, 3), (2, 2)), ((2,), (3, 2), (3, 2)), ((2,), (2, 0), (2, 0)), ((2, 1), (2, 1), (2, 1))],
)
def test_tables_of_another_shape_are_refused(shapes):
    with pytest.raises(ValueError, match=r"want demos \[B\] and two tables \[B, M\]"):
        dft_loss(*(torch.zeros(shape) for shape in shapes), tau=1.0, log_averages=None, decay=0.5)
