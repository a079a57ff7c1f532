"""Sums, not means: any split of a batch into micro-batches gives the gradient of the whole.

Each loss is run on a small model whose parameters are shared by all elements; parts are any partition of the
sequences (or pairs), also empty ones. The caller divides once by the count of the whole batch.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayalign.objectives.advantages import generalised_advantages
from rayalign.objectives.critic import clipped_value_loss
from rayalign.objectives.dft import dft_loss
from rayalign.objectives.implicit import gsil_loss, implicit_pair_loss, ipo_loss
from rayalign.objectives.importance import importance_weights, mismatch
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.policy import (
    clipped_policy_loss,
    kl_penalty_loss,
    policy_gradient_loss,
    squared_advantage_loss,
)
from rayalign.objectives.reward import PAIR_LOSSES, logistic_loss, preference_loss
from rayalign.objectives.segments import repeat_per_token, segment_sum

from .worlds import deterministic, random_table

LENGTHS = torch.tensor([3, 1, 0, 4, 2, 1])
NUM_SEQUENCES, NUM_TOKENS = len(LENGTHS), int(LENGTHS.sum())
TOKEN_FEATURES = random_table(NUM_TOKENS, 3, seed=1)
OTHER_TOKEN_FEATURES = random_table(NUM_TOKENS, 3, seed=2)
OLD_LOGPROBS = random_table(NUM_TOKENS, seed=3)
SAMPLER_LOGPROBS = OLD_LOGPROBS + 0.3 * random_table(NUM_TOKENS, seed=4)
SEQUENCE_VALUES = random_table(NUM_SEQUENCES, seed=5)
partitions = st.lists(st.integers(0, 3), min_size=NUM_SEQUENCES, max_size=NUM_SEQUENCES)


class Part:
    """The sequences of one micro-batch with all that belongs to them, and a model's outputs on them."""

    def __init__(self, sequences: list[int], parameter: Tensor) -> None:
        self.index = torch.tensor(sequences, dtype=torch.int64)
        tokens = torch.arange(NUM_TOKENS).split(LENGTHS.tolist())
        self.tokens = torch.cat([tokens[i] for i in sequences] or [torch.zeros(0, dtype=torch.int64)])
        self.lengths = LENGTHS[self.index]
        self.values = SEQUENCE_VALUES[self.index]
        self.old, self.sampler = OLD_LOGPROBS[self.tokens], SAMPLER_LOGPROBS[self.tokens]
        self.policy = self.old + 0.2 * TOKEN_FEATURES[self.tokens] @ parameter
        self.demo = segment_sum(TOKEN_FEATURES[self.tokens] @ parameter, self.lengths)
        self.agent = segment_sum(OTHER_TOKEN_FEATURES[self.tokens] @ parameter, self.lengths)

    @property
    def advantages(self) -> Tensor:
        return repeat_per_token(self.values, self.lengths)

    @property
    def weights(self) -> Tensor:
        bounds = {"level": "sequence", "mode": "truncate", "cap": 1.2}
        return importance_weights(self.old, self.sampler, self.lengths, **bounds)


def clipped(part: Part) -> Tensor:
    clips = {"clip_low": 0.1, "clip_high": 0.2}
    return clipped_policy_loss(part.policy, part.old, part.advantages, weights=part.weights, **clips)[0]


def implicit(part: Part) -> Tensor:
    refs = {"demo_ref_logprob_sums": part.values, "agent_ref_logprob_sums": part.values.flip(0) * 0}
    return implicit_pair_loss(part.demo, part.agent, **refs, beta=0.5)


def ipo(part: Part) -> Tensor:
    refs = {"chosen_ref_logprob_sums": part.values, "rejected_ref_logprob_sums": part.values * 2}
    return ipo_loss(part.demo, part.agent, **refs, beta=0.5)


def critic_and_policy(part: Part) -> Tensor:
    """A sequence's advantages and returns come from its own tokens only, so they may be made in any part."""
    critic = {"gamma": 0.9, "gae_lambda": 0.8}
    advantages, returns = generalised_advantages(part.sampler, part.old, part.lengths, **critic)
    value_loss, _ = clipped_value_loss(part.policy, part.old, returns, clip=10.0)
    return policy_gradient_loss(part.policy, advantages) + value_loss


def dft(part: Part) -> Tensor:
    negatives = torch.stack([part.agent, part.demo * part.values], -1)
    averages = part.values.abs().log()
    return dft_loss(part.demo, negatives, negatives.detach() * 0.5, tau=0.7, log_averages=averages, decay=0.3)[0]


LOSSES = {
    "bradley_terry": lambda p: PAIR_LOSSES["bradley_terry"](p.demo, p.agent, weights=p.values.abs()),
    "linear": lambda p: PAIR_LOSSES["linear"](p.demo, p.agent),
    "logistic_pairs": lambda p: PAIR_LOSSES["logistic"](p.demo, p.agent, weights=p.values.abs()),
    "logistic": lambda p: logistic_loss(p.demo, p.values > 0),
    "preference": lambda p: preference_loss(p.demo, p.agent, kappa=2.0),
    "implicit": implicit,
    "likelihood": lambda p: negative_log_likelihood(p.policy, weights=p.advantages.abs()),
    "policy_gradient": lambda p: policy_gradient_loss(p.policy, p.advantages, weights=p.weights),
    "clipped": clipped,
    "squared_advantage": lambda p: squared_advantage_loss(p.policy, p.old, p.advantages, scale=2, weights=p.weights),
    "kl_penalty": lambda p: kl_penalty_loss(p.policy, p.sampler, weights=p.weights),
    "value": lambda p: clipped_value_loss(p.policy, p.old, p.advantages, clip=0.2, weights=p.weights)[0],
    "generalised_advantages": critic_and_policy,
    "ipo": ipo,
    "gsil": lambda p: gsil_loss(p.demo, p.agent, beta=0.5, link="brier", weights=p.values.abs()),
    "dft": dft,
}


def summed_gradient(loss_of, parts: list[list[int]]) -> Tensor:
    parameter = random_table(3, seed=6).requires_grad_()
    for sequences in parts:
        (loss_of(Part(sequences, parameter)) / NUM_SEQUENCES).backward()
    return parameter.grad


@pytest.mark.parametrize("name", LOSSES)
@deterministic
@given(assignment=partitions)
def test_any_split_gives_the_gradient_of_the_whole(name, assignment):
    parts = [[i for i, part in enumerate(assignment) if part == wanted] for wanted in range(4)]
    whole = summed_gradient(LOSSES[name], [list(range(NUM_SEQUENCES))])
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(summed_gradient(LOSSES[name], parts), whole, atol=1e-13, rtol=0)


@deterministic
@given(assignment=partitions)
def test_mismatch_merges_over_any_split(assignment):
    """Sums add, the maximum is the maximum of the parts, no tokens at all are fine."""
    parameter = torch.zeros(3, dtype=torch.float64)
    parts = [Part([i for i, p in enumerate(assignment) if p == wanted], parameter) for wanted in range(4)]
    pieces = [mismatch(part.old, part.sampler) for part in parts]
    whole = mismatch(OLD_LOGPROBS, SAMPLER_LOGPROBS)
    torch.testing.assert_close(sum(p.sum_abs_diff for p in pieces), whole.sum_abs_diff)
    torch.testing.assert_close(sum(p.sum_kl_sampler_to_old for p in pieces), whole.sum_kl_sampler_to_old)
    assert max(p.max_abs_diff for p in pieces) == whole.max_abs_diff
    assert sum(p.count for p in pieces) == whole.count == NUM_TOKENS
