"""The mathematics on the exact world: T1, T2, consistency, and AIHF against either source alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rayalign.control.tabular import (
    TabularMDP,
    gridworld,
    kl_expert_to_policy,
    occupancy,
    sample_trajectories,
    soft_log_policy,
    soft_values,
)
from rayalign.control.tabular_irl import (
    JointObjective,
    demonstration_likelihood,
    label_segments,
    occupancy_gap_gradient,
    preference_likelihood,
)

SEEDS = range(6)
AMOUNTS = [(10, 100), (10, 300), (40, 300), (40, 40)]  # of demonstrations and pairs


@pytest.fixture
def world() -> TabularMDP:
    return gridworld(5)


def policy_of(mdp: TabularMDP, rewards: np.ndarray) -> np.ndarray:
    return np.exp(soft_log_policy(mdp, rewards))


def unrolled_log_policy(mdp: TabularMDP, rewards: torch.Tensor, temperature: float) -> torch.Tensor:
    """log pi by 400 backups that autograd goes through."""
    moves, values = torch.from_numpy(mdp.transitions), torch.zeros(mdp.num_states, dtype=torch.float64)
    for _ in range(400):
        action_values = rewards + mdp.discount * moves @ values
        values = temperature * torch.logsumexp(action_values / temperature, dim=1)
    return torch.log_softmax(action_values / temperature, dim=1)


def test_soft_values_solve_their_equation(world: TabularMDP) -> None:
    rewards = np.random.default_rng(0).normal(size=(25, 4))
    action_values, values = soft_values(world, rewards, temperature=0.5)
    assert np.abs(0.5 * np.log(np.exp(action_values / 0.5).sum(axis=1)) - values).max() < 1e-10
    assert np.abs(rewards + 0.9 * world.transitions @ values - action_values).max() < 1e-10


def test_occupancy_is_what_is_visited(world: TabularMDP) -> None:
    """Against discounted counts of samples."""
    policy = policy_of(world, np.random.default_rng(0).normal(size=(25, 4)))
    drawn = sample_trajectories(world, policy, 4000, 80, np.random.default_rng(1))
    visits = np.zeros((25, 4))
    np.add.at(visits, (drawn.states, drawn.actions), np.broadcast_to(0.1 * 0.9 ** np.arange(80), drawn.states.shape))
    exact = occupancy(world, policy)
    assert abs(exact.sum() - 1) < 1e-12
    assert np.abs(visits / 4000 - exact).max() < 2e-3


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_t1_gradient_is_the_gap_of_occupancies(world: TabularMDP, temperature: float) -> None:
    """Autograd of the expert's log-likelihood through the soft-optimal policy, against ML-IRL's gradient."""
    rng = np.random.default_rng(0)
    expert = occupancy(world, policy_of(world, rng.normal(size=(25, 4))))
    rewards = torch.from_numpy(rng.normal(size=(25, 4))).requires_grad_()
    log_policy = unrolled_log_policy(world, rewards, temperature)
    (torch.from_numpy(expert) * log_policy).sum().div(1 - world.discount).backward()
    assert rewards.grad is not None
    table = rewards.detach().numpy()
    gap = occupancy_gap_gradient(world, table, expert, temperature)
    _, solved = demonstration_likelihood(world, table, expert / (1 - world.discount), temperature)
    assert rewards.grad.norm() > 1
    assert np.abs(rewards.grad.numpy() - gap).max() < 1e-9
    assert np.abs(rewards.grad.numpy() - solved).max() < 1e-9


def test_gradient_holds_for_any_counts(world: TabularMDP) -> None:
    """A few demonstrations are no occupancy: the gap would be wrong there, the solved gradient is not."""
    rng = np.random.default_rng(0)
    counts = sample_trajectories(world, policy_of(world, rng.normal(size=(25, 4))), 3, 20, rng).counts(world)
    rewards = torch.from_numpy(rng.normal(size=(25, 4))).requires_grad_()
    (torch.from_numpy(counts) * unrolled_log_policy(world, rewards, 1.0)).sum().backward()
    assert rewards.grad is not None
    _, solved = demonstration_likelihood(world, rewards.detach().numpy(), counts)
    assert np.abs(rewards.grad.numpy() - solved).max() < 1e-9


def test_preference_gradient(world: TabularMDP) -> None:
    """Against autograd of the Bradley-Terry likelihood."""
    rng = np.random.default_rng(0)
    uniform = np.full((25, 4), 0.25)
    halves = [sample_trajectories(world, uniform, 30, 8, rng) for _ in range(2)]
    pairs = label_segments(*halves, world, rng.normal(size=(25, 4)), rng)
    rewards = torch.from_numpy(rng.normal(size=(25, 4))).requires_grad_()
    margins = 0.7 * torch.einsum("msa,sa->m", torch.from_numpy(pairs.chosen - pairs.rejected), rewards)
    torch.nn.functional.logsigmoid(margins).sum().backward()
    value, gradient = preference_likelihood(rewards.detach().numpy(), pairs, 0.7)
    assert rewards.grad is not None
    assert np.abs(rewards.grad.numpy() - gradient).max() < 1e-10
    assert value == pytest.approx(torch.nn.functional.logsigmoid(margins).sum().item())


def test_t2_exact_demonstrations_give_the_expert_back(world: TabularMDP) -> None:
    expert = policy_of(world, np.random.default_rng(0).normal(size=(25, 4)))
    fitted = JointObjective(world, occupancy(world, expert) / (1 - world.discount), num_demonstrations=1).fit()
    log_policy = soft_log_policy(world, fitted)
    assert kl_expert_to_policy(world, expert, log_policy) < 1e-5
    assert np.abs(np.exp(log_policy) - expert).max() < 1e-3


def test_more_demonstrations_come_closer(world: TabularMDP) -> None:
    expert = policy_of(world, np.random.default_rng(0).normal(size=(25, 4)))
    found = []
    for num in (10, 100, 1000):
        counts = sample_trajectories(world, expert, num, 40, np.random.default_rng(1)).counts(world)
        fitted = JointObjective(world, counts, num, weight_decay=1e-3).fit()
        found.append(kl_expert_to_policy(world, expert, soft_log_policy(world, fitted)))
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.01


def scores(num_demos: int, num_pairs: int, seed: int, temperature: float = 1.0) -> dict[str, float]:
    """KL(pi_E || pi) of a fit to demonstrations, to preferences, and to both.

    Above temperature 1 the demonstrators are worse than the expert pi_E, and the fit does not know it.
    """
    rng = np.random.default_rng(seed)
    mdp = gridworld(6)
    truth = np.repeat(rng.normal(size=(36, 1)), 4, axis=1)
    expert = policy_of(mdp, truth)
    demonstrator = np.exp(soft_log_policy(mdp, truth, temperature))
    counts = sample_trajectories(mdp, demonstrator, num_demos, 20, rng).counts(mdp)
    halves = [sample_trajectories(mdp, np.full((36, 4), 0.25), num_pairs, 8, rng) for _ in range(2)]
    pairs = label_segments(*halves, mdp, truth, rng)
    joint = JointObjective(mdp, counts, num_demos, pairs, weight_decay=0.5, inputs="state")
    fits = {
        "demonstrations": replace(joint, preferences=None),
        "preferences": replace(joint, demonstration_counts=None, num_demonstrations=0),
        "joint": joint,
    }
    return {name: kl_expert_to_policy(mdp, expert, soft_log_policy(mdp, fit.fit())) for name, fit in fits.items()}


@pytest.mark.parametrize(("num_demos", "num_pairs"), AMOUNTS)
def test_t40_both_sources_beat_either(num_demos: int, num_pairs: int) -> None:
    """AIHF's claim, with few demonstrations, few pairs, and neither: better on average, and for most seeds."""
    found = [scores(num_demos, num_pairs, seed) for seed in SEEDS]
    means = {name: np.mean([score[name] for score in found]) for name in found[0]}
    assert means["joint"] < 0.85 * min(means["demonstrations"], means["preferences"]), means
    wins = sum(score["joint"] < min(score["demonstrations"], score["preferences"]) for score in found)
    assert wins >= len(SEEDS) - 1, found


def test_weights_of_zero_are_the_corners(world: TabularMDP) -> None:
    """T35: w2 = 0 is ML-IRL and w1 = 0 the preference reward, to the last digit the optimiser gives."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(25, 4))
    counts = sample_trajectories(world, policy_of(world, truth), 5, 20, rng).counts(world)
    halves = [sample_trajectories(world, np.full((25, 4), 0.25), 20, 8, rng) for _ in range(2)]
    joint = JointObjective(world, counts, 5, label_segments(*halves, world, truth, rng), weighting="means")
    theta = rng.normal(size=100)
    alone = replace(joint, preferences=None).value_and_gradient(theta)
    corner = replace(joint, preference_weight=0.0).value_and_gradient(theta)
    assert np.array_equal(alone[1], corner[1])
    alone = replace(joint, demonstration_counts=None, num_demonstrations=0).value_and_gradient(theta)
    corner = replace(joint, demonstration_weight=0.0).value_and_gradient(theta)
    assert np.array_equal(alone[1], corner[1])


def test_a_wrong_preference_temperature_biases_the_reward() -> None:
    """T39: annotators three times as sure; setting kappa restores the fit."""
    mdp, rng = gridworld(5), np.random.default_rng(3)
    truth = np.repeat(rng.normal(size=(25, 1)), 4, axis=1)
    expert = policy_of(mdp, truth)
    halves = [sample_trajectories(mdp, np.full((25, 4), 0.25), 4000, 8, rng) for _ in range(2)]
    pairs = label_segments(*halves, mdp, truth, rng, kappa=3.0)
    joint = JointObjective(mdp, preferences=pairs, weight_decay=0.01, inputs="state")
    kl = {
        kappa: kl_expert_to_policy(mdp, expert, soft_log_policy(mdp, replace(joint, preference_temperature=kappa).fit()))
        for kappa in (1.0, 3.0)
    }
    assert kl[3.0] < 0.01 and kl[1.0] > 10 * kl[3.0], kl
