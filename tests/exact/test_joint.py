"""T18 and T35, T36, T38, T39 of docs/algorithms.md: demonstrations and preferences in one reward loss (AIHF)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayalign.objectives.reward import PAIR_LOSSES, joint_coefficients, linear_irl_loss, preference_loss

from .worlds import Bandit, centred, descend, deterministic, gibbs_logprobs, minimise, random_table


def scores_of_a_batch() -> dict[str, Tensor]:
    names = ["demo", "agent", "chosen", "rejected"]
    sizes = [5, 5, 3, 3]
    return {
        name: random_table(size, seed=180 + i).requires_grad_()
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    }


def joint(scores: dict[str, Tensor], *, loss: str, weights: tuple[float, float], weighting: str) -> Tensor:
    """The reward's loss as a caller composes it: a factor times the mean of each source; no mean of nothing."""
    num_demos, num_preferences = len(scores["demo"]), len(scores["chosen"])
    factors = joint_coefficients(
        demo_weight=weights[0],
        preference_weight=weights[1],
        num_demonstrations=num_demos,
        num_preferences=num_preferences,
        weighting=weighting,
    )
    demo_mean = PAIR_LOSSES[loss](scores["demo"], scores["agent"]) / max(num_demos, 1)
    preference_mean = preference_loss(scores["chosen"], scores["rejected"]) / max(num_preferences, 1)
    return factors[0] * demo_mean + factors[1] * preference_mean


def no_rows() -> Tensor:
    return torch.zeros(0, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_t18_aihf_without_preferences_is_rft(loss):
    """w2 = 0 on the same batch: equal to the last bit, gradients too, and none on the preference scores.

    FOUND: with the weighting "counts" that needs |P| = 0. Preferences of weight 0 still count as rows and shorten
    the step by |D| / (|D| + |P|), here 5/8; its direction is RFT's.
    """
    scores = scores_of_a_batch()
    rft = PAIR_LOSSES[loss](scores["demo"], scores["agent"]) / 5
    counted = joint(scores, loss=loss, weights=(1.0, 0.0), weighting="counts")
    torch.testing.assert_close(counted, rft * 5 / 8)
    without = scores | {"chosen": no_rows(), "rejected": no_rows()}
    assert torch.equal(joint(without, loss=loss, weights=(1.0, 0.0), weighting="counts"), rft)
    aihf = joint(scores, loss=loss, weights=(1.0, 0.0), weighting="means")
    assert torch.equal(aihf, rft)
    parameters = list(scores.values())
    aihf_grads = torch.autograd.grad(aihf, parameters)
    for ours, expected in zip(aihf_grads, torch.autograd.grad(rft, parameters[:2]), strict=False):
        assert torch.equal(ours, expected)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in aihf_grads[2:])


@pytest.mark.parametrize("weighting", ["counts", "means"])
def test_t35_without_demonstrations_it_is_the_preference_reward_and_needs_no_samples(weighting):
    """w1 = 0 and no demonstrations: the Bradley-Terry mean; empty sample vectors are fine."""
    scores = scores_of_a_batch()
    expected = preference_loss(scores["chosen"], scores["rejected"]) / 3
    scores["demo"] = scores["agent"] = no_rows()
    assert torch.equal(joint(scores, loss="linear", weights=(0.0, 1.0), weighting=weighting), expected)


@pytest.mark.parametrize("weighting", ["counts", "means"])
def test_t35_gradient_is_linear_in_the_weights(weighting):
    """grad(w1, w2) = w1 grad(1, 0) + w2 grad(0, 1)."""

    def grads(w1: float, w2: float) -> Tensor:
        scores = scores_of_a_batch()
        loss = joint(scores, loss="bradley_terry", weights=(w1, w2), weighting=weighting)
        return torch.cat(torch.autograd.grad(loss, list(scores.values())))

    torch.testing.assert_close(grads(0.3, 1.7), 0.3 * grads(1, 0) + 1.7 * grads(0, 1))


def balance_of_gradients(copies: int, *, weighting: str) -> float:
    """How much longer the preferences' gradient is than the demonstrations', with each preference repeated."""
    scores = scores_of_a_batch()
    repeated = scores | {name: scores[name].repeat(copies) for name in ("chosen", "rejected")}
    loss = joint(repeated, loss="bradley_terry", weights=(1.0, 0.5), weighting=weighting)
    demo, _, chosen, _ = torch.autograd.grad(loss, list(scores.values()))
    return (chosen.norm() / demo.norm()).item()


def test_t38_means_keep_the_balance_whatever_the_counts():
    """Three copies of every preference change nothing: the balance is w1 : w2."""
    once, thrice = (balance_of_gradients(copies, weighting="means") for copies in (1, 3))
    assert thrice == pytest.approx(once)


def test_t38_counts_weigh_every_row_the_same():
    """Three copies of every preference count three times as much: the balance is w1 |D| : w2 |P|."""
    once, thrice = (balance_of_gradients(copies, weighting="counts") for copies in (1, 3))
    assert thrice == pytest.approx(3 * once)


def test_t38_counts_are_the_mean_over_the_concatenation():
    """As in the released code: one Bradley-Terry loss over all pairs of both kinds, each with its source's weight."""
    scores = scores_of_a_batch()
    better = torch.cat([scores["demo"], scores["chosen"]])
    worse = torch.cat([scores["agent"], scores["rejected"]])
    weights = torch.tensor([1.0] * 5 + [0.5] * 3, dtype=torch.float64)
    concatenated = PAIR_LOSSES["bradley_terry"](better, worse, weights=weights) / 8
    torch.testing.assert_close(
        joint(scores, loss="bradley_terry", weights=(1.0, 0.5), weighting="counts"), concatenated
    )


@deterministic
@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 10), st.floats(0, 10))
def test_t38_the_whole_contract(num_demos, num_preferences, w1, w2):
    """Means are the weights; counts are w1 at |P| = 0, w2 at |D| = 0, in between in proportion to the rows."""
    given_ = {"demo_weight": w1, "preference_weight": w2}
    given_ |= {"num_demonstrations": num_demos, "num_preferences": num_preferences}
    assert joint_coefficients(**given_, weighting="means") == (w1, w2)
    demo, preference = joint_coefficients(**given_, weighting="counts")
    if num_demos and not num_preferences:
        assert (demo, preference) == (w1, 0)
    if num_preferences and not num_demos:
        assert (demo, preference) == (0, w2)
    assert demo * num_preferences * w2 == pytest.approx(preference * num_demos * w1)
    assert demo + preference <= max(w1, w2) * (1 + 1e-12)


def test_weightings_that_do_not_exist_are_refused():
    sizes = {"demo_weight": 1.0, "preference_weight": 1.0, "num_demonstrations": 1, "num_preferences": -1}
    with pytest.raises(ValueError, match=r"weighting is 'rows': choose one of \['counts', 'means'\]"):
        joint_coefficients(**sizes, weighting="rows")
    with pytest.raises(ValueError, match="counts cannot be negative: 1 and -1"):
        joint_coefficients(**sizes, weighting="counts")


def population_optimum(true_rewards: Tensor, *, annotator_kappa: float, assumed_kappa: float) -> Tensor:
    """Reward learnt from Gibbs demonstrations (beta 1, uniform reference) and Bradley-Terry labels of the
    same r.
    """
    uniform = torch.zeros_like(true_rewards).log_softmax(-1)
    world = Bandit(torch.ones(1, dtype=torch.float64), (uniform + true_rewards).log_softmax(-1), uniform)
    first, second = world.pairs(true_rewards)
    labels = torch.sigmoid(annotator_kappa * (first - second)) / len(first)

    def loss(rewards: Tensor) -> Tensor:
        agent_logprobs = gibbs_logprobs(rewards, uniform, beta=1.0)
        demo_term = linear_irl_loss(*world.pairs(rewards), weights=world.pair_probs(agent_logprobs))
        preference_term = preference_loss(*world.pairs(rewards), kappa=assumed_kappa, weights=labels)
        factors = joint_coefficients(
            demo_weight=1.0, preference_weight=2.0, num_demonstrations=3, num_preferences=2, weighting="counts"
        )
        return factors[0] * demo_term + factors[1] * preference_term

    return descend(loss, torch.zeros_like(true_rewards), lr=1.0, num_steps=500)


def test_t36_both_sources_agree_on_a_planted_reward():
    """Joint population optimum == r up to a shift."""
    true_rewards = random_table(1, 4, seed=360, scale=0.7)
    found = population_optimum(true_rewards, annotator_kappa=1.0, assumed_kappa=1.0)
    torch.testing.assert_close(centred(found), centred(true_rewards), atol=1e-6, rtol=0)


def test_t39_kappa_must_match_the_annotators():
    """Sharper annotators (kappa 2) inflate the joint reward unless kappa says so."""
    true_rewards = random_table(1, 4, seed=360, scale=0.7)
    right = population_optimum(true_rewards, annotator_kappa=2.0, assumed_kappa=2.0)
    wrong = population_optimum(true_rewards, annotator_kappa=2.0, assumed_kappa=1.0)
    torch.testing.assert_close(centred(right), centred(true_rewards), atol=1e-6, rtol=0)
    assert centred(wrong).norm() > 1.2 * centred(true_rewards).norm()


def test_preference_loss_alone_recovers_kappa_times_the_reward():
    """Fitted with kappa = 1 to labels of kappa = 2 it finds 2 r: preferences fix kappa r, not r."""
    true_rewards = random_table(1, 4, seed=361)
    world = Bandit.random(seed=362, num_prompts=1)
    first, second = world.pairs(true_rewards)
    labels = torch.sigmoid(2.0 * (first - second))
    start = torch.zeros_like(true_rewards)
    found = minimise(lambda r: preference_loss(*world.pairs(r), weights=labels), start)
    torch.testing.assert_close(centred(found), 2 * centred(true_rewards), atol=1e-6, rtol=0)
