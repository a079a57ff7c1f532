"""T18 and T35, T36, T38, T39 of docs/algorithms.md: demonstrations and preferences in one reward loss (AIHF)."""

import pytest
import torch
from torch import Tensor

from rayalign.objectives.reward import REWARD_LINKS, joint_reward_loss, linear_irl_loss, preference_loss

from .worlds import Bandit, centred, descend, gibbs_logprobs, minimise, random_table


def scores_of_a_batch() -> dict[str, Tensor]:
    names = ["demo", "agent", "chosen", "rejected"]
    sizes = [5, 5, 3, 3]
    return {
        name: random_table(size, seed=180 + i).requires_grad_()
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    }


def joint(scores: dict[str, Tensor], *, link: str, demo_weight: float, preference_weight: float) -> Tensor:
    return joint_reward_loss(
        REWARD_LINKS[link](scores["demo"], scores["agent"]),
        preference_loss(scores["chosen"], scores["rejected"]),
        demo_weight=demo_weight,
        preference_weight=preference_weight,
        num_demo_pairs=len(scores["demo"]),
        num_preference_pairs=len(scores["chosen"]),
    )


@pytest.mark.parametrize("link", ["bradley_terry", "linear"])
def test_t18_aihf_without_preferences_is_rft(link):
    """w2 = 0 on the same batch: equal to the last bit, gradients too, and none on the preference scores."""
    scores = scores_of_a_batch()
    rft = REWARD_LINKS[link](scores["demo"], scores["agent"]) / 5
    aihf = joint(scores, link=link, demo_weight=1.0, preference_weight=0.0)
    assert torch.equal(aihf, rft)
    parameters = list(scores.values())
    aihf_grads = torch.autograd.grad(aihf, parameters)
    for ours, expected in zip(aihf_grads, torch.autograd.grad(rft, parameters[:2]), strict=False):
        assert torch.equal(ours, expected)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in aihf_grads[2:])


def test_t35_without_demonstrations_it_is_the_preference_reward_and_needs_no_samples():
    """w1 = 0: the Bradley-Terry mean; empty sample vectors, zero demo pairs, are fine."""
    scores = scores_of_a_batch()
    expected = preference_loss(scores["chosen"], scores["rejected"]) / 3
    scores["demo"] = scores["agent"] = torch.zeros(0, dtype=torch.float64)
    assert torch.equal(joint(scores, link="linear", demo_weight=0.0, preference_weight=1.0), expected)


def test_t35_gradient_is_linear_in_the_weights():
    """grad(w1, w2) = w1 grad(1, 0) + w2 grad(0, 1)."""

    def grads(w1: float, w2: float) -> Tensor:
        scores = scores_of_a_batch()
        loss = joint(scores, link="bradley_terry", demo_weight=w1, preference_weight=w2)
        return torch.cat(torch.autograd.grad(loss, list(scores.values())))

    torch.testing.assert_close(grads(0.3, 1.7), 0.3 * grads(1, 0) + 1.7 * grads(0, 1))


def test_t38_sources_are_weighed_by_mean_not_by_count():
    """Three copies of every preference change nothing: the balance is w1 : w2, whatever the counts."""
    scores = scores_of_a_batch()
    once = joint(scores, link="bradley_terry", demo_weight=1.0, preference_weight=0.5)
    tripled = scores | {name: scores[name].repeat(3) for name in ("chosen", "rejected")}
    thrice = joint(tripled, link="bradley_terry", demo_weight=1.0, preference_weight=0.5)
    parameters = list(scores.values())
    for ours, expected in zip(*(torch.autograd.grad(x, parameters) for x in (thrice, once)), strict=True):
        torch.testing.assert_close(ours, expected)


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
        weights = {"demo_weight": 1.0, "preference_weight": 2.0}
        return joint_reward_loss(
            demo_term, preference_term, **weights, num_demo_pairs=1, num_preference_pairs=1
        )

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
