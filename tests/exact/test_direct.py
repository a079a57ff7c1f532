"""T41 of docs/algorithms.md, and the other losses on implicit rewards: IPO and GSIL."""

import math

import pytest
import torch
from torch import Tensor

from rayalign.objectives.implicit import GSIL_LINKS, dpo_loss, gsil_loss, implicit_pair_loss, ipo_loss
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.reward import joint_coefficients

from .worlds import Bandit, TokenWorld, gradient, minimise, total_variation

WORLD = TokenWorld(num_tokens=3, max_length=2)
REF_TABLE, ROUND_TABLE = WORLD.random_table(seed=410), WORLD.random_table(seed=411)
DEMOS, AGENTS = [0, 3, 6, 2], [1, 1, 4, 5]
CHOSEN, REJECTED = [2, 0, 5], [4, 6, 3]


def demonstration_likelihood(table: Tensor) -> Tensor:
    return negative_log_likelihood(WORLD.token_logprobs(table, DEMOS))


def preference_dpo(table: Tensor) -> Tensor:
    """DPO against the FIRST reference, as in every round of AIHF's direct forms."""
    refs = WORLD.logprob_sums(REF_TABLE, CHOSEN), WORLD.logprob_sums(REF_TABLE, REJECTED)
    return dpo_loss(
        WORLD.logprob_sums(table, CHOSEN),
        WORLD.logprob_sums(table, REJECTED),
        chosen_ref_logprob_sums=refs[0],
        rejected_ref_logprob_sums=refs[1],
        beta=0.3,
    )


def spin(table: Tensor) -> Tensor:
    """SPIN against the policy that the round started from, whose samples the agents are."""
    refs = WORLD.logprob_sums(ROUND_TABLE, DEMOS), WORLD.logprob_sums(ROUND_TABLE, AGENTS)
    return implicit_pair_loss(
        WORLD.logprob_sums(table, DEMOS),
        WORLD.logprob_sums(table, AGENTS),
        demo_ref_logprob_sums=refs[0],
        agent_ref_logprob_sums=refs[1],
        beta=0.3,
    )


def aihf(table: Tensor, demo_loss, *, weights: tuple[float, float], num_preferences: int = 3) -> Tensor:
    """Direct AIHF with the likelihood for demonstrations, self-play AIHF with SPIN: as a caller composes them."""
    factors = joint_coefficients(
        demo_weight=weights[0],
        preference_weight=weights[1],
        num_demonstrations=4 if weights[0] else 0,
        num_preferences=num_preferences,
        weighting="counts",
    )
    return factors[0] * demo_loss(table) / 4 + factors[1] * preference_dpo(table) / 3


def assert_same(table: Tensor, found: Tensor, expected: Tensor) -> None:
    """Value and gradient equal to the last bit, and a gradient that is not 0."""
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad(loss, table, retain_graph=True)[0] for loss in (found, expected)]
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 1e-3


@pytest.mark.parametrize("demo_loss", [demonstration_likelihood, spin])
def test_t41_without_demonstrations_direct_and_self_play_aihf_are_dpo(demo_loss):
    table = WORLD.random_table(seed=412).requires_grad_()
    assert_same(table, aihf(table, demo_loss, weights=(0.0, 1.0)), preference_dpo(table) / 3)


@pytest.mark.parametrize("demo_loss", [demonstration_likelihood, spin])
def test_t41_without_preferences_direct_aihf_is_sft_and_self_play_aihf_is_spin(demo_loss):
    table = WORLD.random_table(seed=412).requires_grad_()
    found = aihf(table, demo_loss, weights=(1.0, 0.0), num_preferences=0)
    assert_same(table, found, demo_loss(table) / 4)


def test_t41_with_both_it_is_neither():
    """Each term pulls: the gradient is between those of its parts and parallel to neither."""
    table = WORLD.random_table(seed=412).requires_grad_()
    both = gradient(aihf(table, demonstration_likelihood, weights=(1.0, 1.0)), table).flatten()
    parts = [gradient(loss(table), table).flatten() for loss in (demonstration_likelihood, preference_dpo)]
    assert all(torch.cosine_similarity(both, part, 0) < 0.999 for part in parts)
    torch.testing.assert_close(both, (parts[0] + parts[1]) / 7)


def test_ipo_by_hand():
    """Log-ratio margins 2 and -1 at beta 0.25, target 2: 0 and 9."""
    policy = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -2.0])
    refs = torch.tensor([-2.0, -2.0]), torch.tensor([-1.0, -2.0])
    setting = {"chosen_ref_logprob_sums": refs[0], "rejected_ref_logprob_sums": refs[1], "beta": 0.25}
    assert ipo_loss(*policy, **setting).item() == 9.0
    assert ipo_loss(*policy, **setting, weights=torch.tensor([1.0, 0.5])).item() == 4.5


def test_ipo_stops_where_dpo_goes_on():
    """One pair that is always preferred: IPO's log-ratio stops at 1 / (2 beta), DPO's slope never ends."""
    margins = torch.linspace(0, 40, 401, dtype=torch.float64).requires_grad_()
    refs = torch.zeros_like(margins)
    ipo = ipo_loss(
        margins, refs, chosen_ref_logprob_sums=refs, rejected_ref_logprob_sums=refs, beta=0.1
    )
    slopes = gradient(ipo, margins)
    assert margins[slopes.abs().argmin()].item() == pytest.approx(5.0)
    assert (slopes[margins > 5.05] > 0).all()
    dpo = dpo_loss(margins, refs, chosen_ref_logprob_sums=refs, rejected_ref_logprob_sums=refs, beta=0.1)
    assert (gradient(dpo, margins) < 0).all()


def gsil_minimiser(world: Bandit, *, beta: float, link: str) -> Tensor:
    """The policy at the minimum of the population loss against its frozen first self: log-probs [X, Y]."""
    weights = world.pair_probs(world.ref_logprobs)

    def loss(logits: Tensor) -> Tensor:
        log_ratios = world.pairs(logits.log_softmax(-1) - world.ref_logprobs)
        return gsil_loss(*log_ratios, beta=beta, link=link, weights=weights)

    return minimise(loss, world.ref_logprobs).log_softmax(-1)


@pytest.mark.parametrize(("link", "beta"), [("logistic", 1.0), ("exp", 0.5), ("brier", 1.0)])
def test_gsil_finds_the_expert_where_its_link_is_proper_for_beta(link, beta):
    """Logistic at beta 1, as algorithms.md says.

    FOUND: so do brier (the same link function, sigma) at 1, and exp at 1/2, because the minimiser of
    E_D exp(-z) + E_t exp(z) is half the log-ratio.
    """
    world = Bandit.random(seed=413, scale=0.5)
    assert total_variation(gsil_minimiser(world, beta=beta, link=link), world.expert_logprobs) < 1e-5


@pytest.mark.parametrize(("link", "beta"), [("logistic", 0.5), ("logistic", 2.0), ("exp", 2.0), ("brier", 2.0)])
def test_gsil_misses_the_expert_at_other_betas(link, beta):
    """And misses the tilt pi_t (pi_E / pi_t)^(1 / beta) of SPIN (T13) too: unpaired losses feel the constant."""
    world = Bandit.random(seed=413, scale=0.5)
    found = gsil_minimiser(world, beta=beta, link=link)
    assert total_variation(found, world.expert_logprobs) > 0.01
    factor = 2 * beta if link == "exp" else beta
    tilt = (world.ref_logprobs + (world.expert_logprobs - world.ref_logprobs) / factor).log_softmax(-1)
    assert total_variation(found, tilt) > 1e-4


def test_gsil_with_the_exp_link_at_beta_one_goes_half_way():
    """FOUND: its minimum is sqrt(pi_t pi_E), normalised: SPIN's step at beta = 2, in closed form."""
    world = Bandit.random(seed=413, scale=0.5)
    half_way = ((world.ref_logprobs + world.expert_logprobs) / 2).log_softmax(-1)
    assert total_variation(gsil_minimiser(world, beta=1.0, link="exp"), half_way) < 1e-6


def test_gsil_links_by_hand():
    """Demo log-ratio 1, agent log-ratio -0.5, beta 2: margins 2 and 1; at 0 all but the hinge know no side."""
    demo, agent = torch.tensor([1.0], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    values = {link: gsil_loss(demo, agent, beta=2.0, link=link).item() for link in GSIL_LINKS}
    assert values == pytest.approx(
        {
            "logistic": math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)),
            "hinge": 0.0,
            "brier": (1 / (1 + math.exp(2))) ** 2 + (1 / (1 + math.e)) ** 2,
            "exp": math.exp(-2) + math.exp(-1),
        }
    )
    assert gsil_loss(demo - 3, agent, beta=2.0, link="hinge").item() == 5.0
    with pytest.raises(ValueError, match=r"unknown link 'linear': choose one of \['brier'"):
        gsil_loss(demo, agent, beta=2.0, link="linear")


@pytest.mark.parametrize("link", GSIL_LINKS)
def test_gsil_stays_finite_on_long_responses(link):
    """Log-ratios of hundreds, the wrong way round."""
    far = torch.tensor([500.0])
    assert gsil_loss(-far, far, beta=1.0, link=link).isfinite()
