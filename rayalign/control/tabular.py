"""The exact world: a tabular soft MDP in float64, where values, policies and occupancies are solved and not sampled.

Shapes: S states, A actions, N trajectories, T steps. The policy is the soft-optimal one of a reward r[S, A],
pi(a|s) = exp((Q(s, a) - V(s)) / temperature), the policy step of every method here taken to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-13  # of soft values: in float64 there is little below
MAX_SWEEPS = 500
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


@dataclass(frozen=True)
class TabularMDP:
    """Dynamics without a reward: transitions[S, A, S], initial[S], discount in (0, 1)."""

    transitions: np.ndarray
    initial: np.ndarray
    discount: float

    @property
    def num_states(self) -> int:
        return int(self.transitions.shape[0])

    @property
    def num_actions(self) -> int:
        return int(self.transitions.shape[1])


@dataclass(frozen=True)
class TabularTrajectories:
    """states[N, T] and actions[N, T], whole numbers."""

    states: np.ndarray
    actions: np.ndarray

    def counts(self, mdp: TabularMDP) -> np.ndarray:
        """Visits of each pair (s, a), summed over all trajectories and steps: [S, A]."""
        return np.sum(self.visits(mdp), axis=0)

    def visits(self, mdp: TabularMDP) -> np.ndarray:
        """Visits of each pair (s, a) by each trajectory: [N, S, A]."""
        num, length = self.states.shape
        found = np.zeros((num, mdp.num_states, mdp.num_actions))
        np.add.at(found, (np.repeat(np.arange(num), length), self.states.ravel(), self.actions.ravel()), 1.0)
        return found


def gridworld(size: int, *, slip: float = 0.1, discount: float = 0.9) -> TabularMDP:
    """A square of `size` x `size` states with four moves; with probability `slip` a move goes in a random direction.

    A move against a wall stays. Every state is as likely as another to begin in.
    """
    num = size * size
    transitions = np.zeros((num, len(MOVES), num))
    for state in range(num):
        row, column = divmod(state, size)
        reached = [
            min(max(row + down, 0), size - 1) * size + min(max(column + right, 0), size - 1) for down, right in MOVES
        ]
        for action in range(len(MOVES)):
            transitions[state, action, reached[action]] += 1.0 - slip
            np.add.at(transitions[state, action], reached, slip / len(MOVES))
    return TabularMDP(transitions, np.full(num, 1.0 / num), discount)


def soft_values(mdp: TabularMDP, rewards: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The fixed point of soft value iteration for rewards[S, A]: Q[S, A] and V[S].

    V(s) = temperature logsumexp(Q(s, .) / temperature), Q(s, a) = r(s, a) + discount E[V(s')]. Backups alone take
    hundreds of sweeps; each one here is followed by the evaluation of its policy (soft policy iteration, which is Newton's
    method on this equation), and some ten do. Raises ValueError for rewards that are not finite.
    """
    if not np.isfinite(rewards).all():
        raise ValueError("rewards are not finite")
    values = np.zeros(mdp.num_states)
    bound = TOLERANCE * max(1.0, float(np.abs(rewards).max())) / (1.0 - mdp.discount)
    for _ in range(MAX_SWEEPS):
        action_values = rewards + mdp.discount * mdp.transitions @ values
        backed_up, log_policy = _soft_maximum(action_values / temperature)
        if np.abs(temperature * backed_up - values).max() <= bound:
            break
        values = _evaluated(mdp, rewards, log_policy, temperature)
    return action_values, temperature * backed_up


def _soft_maximum(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logsumexp[S] and log_softmax[S, A] of logits[S, A]."""
    largest = logits.max(axis=1, keepdims=True)
    total = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    return total[:, 0], logits - total


def _evaluated(mdp: TabularMDP, rewards: np.ndarray, log_policy: np.ndarray, temperature: float) -> np.ndarray:
    """The soft value [S] of a policy: rewards and entropies that it collects."""
    policy = np.exp(log_policy)
    earned = (policy * (rewards - temperature * log_policy)).sum(axis=1)
    moves = np.einsum("sa,sat->st", policy, mdp.transitions)
    return np.linalg.solve(np.eye(mdp.num_states) - mdp.discount * moves, earned)


def soft_log_policy(mdp: TabularMDP, rewards: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log pi(a|s) of the soft-optimal policy of rewards[S, A]: [S, A]."""
    action_values, _ = soft_values(mdp, rewards, temperature)
    return _soft_maximum(action_values / temperature)[1]


def occupancy(mdp: TabularMDP, policy: np.ndarray) -> np.ndarray:
    """(1 - discount) sum_t discount^t P(s_t = s, a_t = a) under policy[S, A]: [S, A], summing to 1."""
    moves = np.einsum("sa,sat->st", policy, mdp.transitions)
    flow = np.eye(mdp.num_states) - mdp.discount * moves.T
    states = np.linalg.solve(flow, (1.0 - mdp.discount) * mdp.initial)
    return states[:, None] * policy


def kl_expert_to_policy(mdp: TabularMDP, expert: np.ndarray, log_policy: np.ndarray) -> float:
    """KL(pi_E || pi), averaged over the states that the expert visits: expert[S, A], log_policy[S, A].

    The score of a fit: a reward is known only up to shaping, and the return hides its errors.
    """
    visited = occupancy(mdp, expert).sum(axis=1)
    return float(np.sum(visited[:, None] * expert * (np.log(expert) - log_policy)))


def sample_trajectories(
    mdp: TabularMDP, policy: np.ndarray, num: int, length: int, rng: np.random.Generator
) -> TabularTrajectories:
    """`num` trajectories of `length` steps under policy[S, A], all in step."""
    states, actions = np.empty((2, num, length), dtype=np.int64)
    policy_sums, move_sums = np.cumsum(policy, axis=1), np.cumsum(mdp.transitions, axis=2)
    now = _drawn(np.broadcast_to(np.cumsum(mdp.initial), (num, mdp.num_states)), rng)
    for step in range(length):
        states[:, step] = now
        actions[:, step] = _drawn(policy_sums[now], rng)
        now = _drawn(move_sums[now, actions[:, step]], rng)
    return TabularTrajectories(states, actions)


def _drawn(sums: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One choice of each row's cumulative probabilities [N, K]: [N]."""
    return np.minimum((sums < rng.random((len(sums), 1))).sum(axis=1), sums.shape[1] - 1)
