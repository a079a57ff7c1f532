"""Worlds small enough to enumerate, in float64: expectations in these tests are sums, not samples.

Shapes: X prompts, Y responses, P prefixes, V vocabulary, B sequences, T tokens, K samples per group.
Nothing here is a loss, an advantage or a reward of the package: those are what the tests run.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import settings
from torch import Tensor

from rayalign.objectives.logprobs import selected_logprobs
from rayalign.objectives.segments import segment_sum

# For property tests: the same examples on every run, no clock, nothing written beside the repository's files.
deterministic = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def random_table(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_logprobs(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return random_table(*shape, seed=seed, scale=scale).log_softmax(-1)


def gibbs_logprobs(rewards: Tensor, ref_logprobs: Tensor, *, beta: float) -> Tensor:
    """log of pi_ref exp(r / beta) / Z, normalised over the last axis: the maximiser of E[r] - beta KL."""
    return (ref_logprobs + rewards / beta).log_softmax(-1)


def centred(table: Tensor) -> Tensor:
    """Minus the mean over responses of each prompt: rewards are compared only after this."""
    return table - table.mean(-1, keepdim=True)


def total_variation(first_logprobs: Tensor, second_logprobs: Tensor) -> Tensor:
    return (first_logprobs.exp() - second_logprobs.exp()).abs().sum(-1).max() / 2


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(loss, parameter)[0]


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimiser of a smooth convex loss by L-BFGS; fails if the gradient there is not 0 to 1e-8."""
    point = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [point], max_iter=1000, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(point)
        value.backward()
        return value

    solver.step(closure)
    closure()
    assert point.grad.abs().max() < 1e-8, f"not at the minimum: gradient {point.grad.abs().max():.1e}"
    return point.detach()


def descend(loss: Callable[[Tensor], Tensor], start: Tensor, *, lr: float, num_steps: int) -> Tensor:
    """Plain gradient descent, for losses whose value is no potential of their gradient: samples move."""
    point = start.clone()
    for _ in range(num_steps):
        point = point.detach().requires_grad_()
        point = point - lr * gradient(loss(point), point)
    return point.detach()


def normalised_probs(logprobs: Tensor) -> Tensor:
    """Probabilities whose gradient is cut: samples are data."""
    return logprobs.detach().exp()


@dataclass(frozen=True)
class Bandit:
    """X prompts with Y responses each: prompt probabilities, an expert, a reference."""

    prompt_probs: Tensor  # [X]
    expert_logprobs: Tensor  # [X, Y]
    ref_logprobs: Tensor  # [X, Y]

    @classmethod
    def random(
        cls, *, seed: int, num_prompts: int = 2, num_responses: int = 4, scale: float = 1.0
    ) -> "Bandit":
        shape = (num_prompts, num_responses)
        return cls(
            random_logprobs(num_prompts, seed=seed, scale=scale).exp(),
            random_logprobs(*shape, seed=seed + 1, scale=scale),
            random_logprobs(*shape, seed=seed + 2, scale=scale),
        )

    def pairs(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """table[X, Y] at every (prompt, demo, agent): two vectors [X * Y * Y] for the two sides of a pair."""
        shape = (*table.shape, table.shape[-1])
        return table[:, :, None].expand(shape).flatten(), table[:, None, :].expand(shape).flatten()

    def pair_probs(self, agent_logprobs: Tensor) -> Tensor:
        """mu(x) pi^E(y|x) q(y'|x) of the same pairs: [X * Y * Y], no gradient."""
        demo, agent = normalised_probs(self.expert_logprobs), normalised_probs(agent_logprobs)
        return (self.prompt_probs[:, None, None] * demo[:, :, None] * agent[:, None, :]).flatten()


@dataclass(frozen=True)
class TokenWorld:
    """All responses of at most max_length tokens over V tokens, token 0 being EOS; one prompt.

    A policy is a table of logits [P, V], one row per prefix. A response of max_length tokens may lack its
    EOS.
    """

    num_tokens: int
    max_length: int

    @property
    def responses(self) -> list[tuple[int, ...]]:
        everything = (
            tokens
            for length in range(1, self.max_length + 1)
            for tokens in itertools.product(range(self.num_tokens), repeat=length)
        )
        return [y for y in everything if 0 not in y[:-1] and (y[-1] == 0 or len(y) == self.max_length)]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        return sorted({y[:t] for y in self.responses for t in range(len(y))}, key=lambda p: (len(p), p))

    @property
    def ended(self) -> Tensor:
        return torch.tensor([y[-1] == 0 for y in self.responses])

    def batch(self, indices: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix rows [T], labels [T], lengths [B] of the named responses (default: all), ragged and flat."""
        row_of = {prefix: row for row, prefix in enumerate(self.prefixes)}
        responses = self.responses if indices is None else [self.responses[i] for i in indices]
        rows = [row_of[y[:t]] for y in responses for t in range(len(y))]
        labels = [token for y in responses for token in y]
        return torch.tensor(rows), torch.tensor(labels), torch.tensor([len(y) for y in responses])

    def token_logprobs(self, table: Tensor, indices: list[int] | None = None) -> Tensor:
        rows, labels, _ = self.batch(indices)
        return selected_logprobs(table[rows], labels)

    def logprob_sums(self, table: Tensor, indices: list[int] | None = None) -> Tensor:
        return segment_sum(self.token_logprobs(table, indices), self.batch(indices)[2])

    def random_table(self, *, seed: int, scale: float = 1.0) -> Tensor:
        return random_table(len(self.prefixes), self.num_tokens, seed=seed, scale=scale)

    def soft_bellman(self, rewards: Tensor, ref_table: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
        """V(s) = beta log sum_a pi_ref(a|s) exp(V(s, a) / beta) backwards from V(response) = R.

        rewards[B], ref_table[P, V] -> logits of the soft-optimal policy [P, V] and the value of the prompt.
        """
        values = dict(zip(self.responses, rewards, strict=True))
        logits = torch.empty_like(ref_table)
        for row, prefix in reversed(list(enumerate(self.prefixes))):
            next_values = torch.stack([values[(*prefix, token)] for token in range(self.num_tokens)])
            logits[row] = ref_table[row].log_softmax(-1) + next_values / beta
            values[prefix] = beta * logits[row].logsumexp(-1)
        return logits, values[()]


def all_groups(num_responses: int, *, group_size: int) -> Tensor:
    """Every ordered group of K responses: [num_responses ** K, K]."""
    return torch.tensor(list(itertools.product(range(num_responses), repeat=group_size)))
