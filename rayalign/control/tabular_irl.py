"""ML-IRL, preferences and AIHF on the exact world: the same objective as the learner's, with nothing sampled inside.

    L(theta) = c1 (1/N) sum_n sum_t log pi_theta(a_t|s_t) + c2 (1/M) sum_m log sigma(kappa (R(tau_w) - R(tau_l)))

with the coefficients of `joint_coefficients`. Source: AIHF (arXiv 2406.06874) eq. 5.1; its first term alone is ML-IRL,
its second the usual preference reward. Departure: the sums over a trajectory are not discounted, as in the papers' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from rayalign.control.tabular import TabularMDP, TabularTrajectories, occupancy, soft_log_policy
from rayalign.objectives.reward import joint_coefficients

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]

# As far as float64 goes: the search ends where the objective no longer rises.
SEARCH = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}


@dataclass(frozen=True)
class TabularPreferences:
    """M pairs of segments: which was preferred. Visits of each pair (s, a): chosen[M, S, A], rejected[M, S, A]."""

    chosen: np.ndarray
    rejected: np.ndarray


@dataclass(frozen=True)
class JointObjective:
    """What is maximised over a reward table. Settings as in the `reward` section of a config."""

    mdp: TabularMDP
    demonstration_counts: np.ndarray | None = None  # [S, A], of all demonstrations together
    num_demonstrations: int = 0
    preferences: TabularPreferences | None = None
    demonstration_weight: float = 1.0
    preference_weight: float = 1.0
    preference_temperature: float = 1.0
    weighting: Literal["counts", "means"] = "counts"
    temperature: float = 1.0
    weight_decay: float = 0.0  # of 1/2 |theta|^2, beside the SUM of the log-likelihoods
    inputs: Literal["state", "state_action"] = "state_action"

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """L(theta) and its gradient, for theta[S] or theta[S * A]."""
        rewards = self.rewards(theta)
        num = self.num_demonstrations, 0 if self.preferences is None else len(self.preferences.chosen)
        of_demos, of_preferences = joint_coefficients(
            demo_weight=self.demonstration_weight,
            preference_weight=self.preference_weight,
            num_demonstrations=num[0],
            num_preferences=num[1],
            weighting=self.weighting,
        )
        value, gradient = 0.0, np.zeros_like(rewards)
        if self.demonstration_counts is not None and of_demos:
            found, slope = demonstration_likelihood(self.mdp, rewards, self.demonstration_counts, self.temperature)
            value, gradient = value + of_demos / num[0] * found, gradient + of_demos / num[0] * slope
        if self.preferences is not None and of_preferences:
            found, slope = preference_likelihood(rewards, self.preferences, self.preference_temperature)
            value, gradient = value + of_preferences / num[1] * found, gradient + of_preferences / num[1] * slope
        decay = self.weight_decay / max(sum(num), 1)
        flat = gradient.sum(axis=1) if self.inputs == "state" else gradient.ravel()
        return value - decay / 2 * float(theta @ theta), flat - decay * theta

    def rewards(self, theta: np.ndarray) -> np.ndarray:
        """The reward table of parameters theta: [S, A]."""
        shape = (self.mdp.num_states, self.mdp.num_actions)
        if self.inputs == "state":
            return np.broadcast_to(theta[:, None], shape).copy()
        return theta.reshape(shape)

    def fit(self) -> np.ndarray:
        """Maximises from a reward of zero; the reward table [S, A]."""
        size = self.mdp.num_states * (1 if self.inputs == "state" else self.mdp.num_actions)
        result = minimize(_negated(self.value_and_gradient), np.zeros(size), jac=True, method="L-BFGS-B", options=SEARCH)
        return self.rewards(result.x)


def demonstration_likelihood(
    mdp: TabularMDP, rewards: np.ndarray, counts: np.ndarray, temperature: float = 1.0
) -> tuple[float, np.ndarray]:
    """sum counts(s, a) log pi_r(a|s) and its gradient by rewards[S, A], for counts[S, A] of any visits.

    The gradient is that through value iteration, solved: x = (counts - counts(s) pi) / temperature is what the
    likelihood asks of Q, and each Q(s, a) passes it on to the pairs that lead to s. Where the counts are an expert's
    occupancy it is the gap of `occupancy_gap_gradient`.
    """
    log_policy = soft_log_policy(mdp, rewards, temperature)
    policy = np.exp(log_policy)
    asked = (counts - counts.sum(axis=1, keepdims=True) * policy) / temperature
    moves = np.einsum("sa,sat->st", policy, mdp.transitions)
    into = mdp.discount * np.einsum("sat,sa->t", mdp.transitions, asked)
    passed = np.linalg.solve(np.eye(mdp.num_states) - mdp.discount * moves.T, into)
    return float(np.sum(counts * log_policy)), asked + policy * passed[:, None]


def occupancy_gap_gradient(
    mdp: TabularMDP, rewards: np.ndarray, expert_occupancy: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """(d_E - d_pi) / ((1 - discount) temperature): [S, A], ML-IRL's gradient (T1) for an exact expert_occupancy[S, A].

    This, with occupancies from samples, is what the learner on RLlib follows.
    """
    policy = np.exp(soft_log_policy(mdp, rewards, temperature))
    return (expert_occupancy - occupancy(mdp, policy)) / ((1.0 - mdp.discount) * temperature)


def preference_likelihood(
    rewards: np.ndarray, preferences: TabularPreferences, kappa: float = 1.0
) -> tuple[float, np.ndarray]:
    """sum log sigma(kappa (R(chosen) - R(rejected))) and its gradient by rewards[S, A]."""
    difference = preferences.chosen - preferences.rejected
    margins = kappa * np.einsum("msa,sa->m", difference, rewards)
    slopes = kappa * expit(-margins)
    return float(log_expit(margins).sum()), np.einsum("m,msa->sa", slopes, difference)


def label_segments(
    first: TabularTrajectories,
    second: TabularTrajectories,
    mdp: TabularMDP,
    rewards: np.ndarray,
    rng: np.random.Generator,
    kappa: float = 1.0,
) -> TabularPreferences:
    """Bradley-Terry answers of an annotator who knows the true rewards[S, A], on two segments each."""
    left, right = first.visits(mdp), second.visits(mdp)
    margins = kappa * np.einsum("msa,sa->m", left - right, rewards)
    chosen = (rng.random(len(margins)) < expit(margins))[:, None, None]
    return TabularPreferences(np.where(chosen, left, right), np.where(chosen, right, left))


def _negated(objective: Objective) -> Objective:
    def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta)
        return -value, -gradient

    return negative
