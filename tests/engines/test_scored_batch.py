"""From scores to advantages: each estimator by hand, dense rewards, a missing end, and what a baseline may not mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayalign.config.improve import CriticConfig, PolicyStepConfig
from rayalign.engines.scored_batch import ScoredBatch
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Rollout, Scores, Sequences
from tests.models.tiny import END, sequences_of

BETA = 0.5
SEQUENCES = sequences_of(
    [([5], [50, END]), ([5], [60, 61, 62]), ([6], [50, END]), ([6], [70, 71, END])], prompt_ids=[0, 0, 1, 1]
)
SCORES = np.array([1.0, -2.0, 0.5, 3.0], dtype=np.float32)
LENGTHS = SEQUENCES.response_lengths
TOKENS = int(LENGTHS.sum())
LOG_RATIOS = np.linspace(-1, 1, TOKENS, dtype=np.float32)


def batch(*, dense: Ragged | None = None, penalty: float | None = None, sequences: Sequences = SEQUENCES) -> ScoredBatch:
    """The four samples, scored in two shards that arrive in another order, with log-ratios to a reference."""
    rollout = Rollout(sequences, Ragged(np.zeros(TOKENS, np.float32), sequences.response_lengths), 0)
    shards = []
    for rows in (np.array([3, 1]), np.array([0, 2])):
        shards.append(Scores(rows, SCORES[rows], 0, dense.take(rows) if dense else None))
    found = ScoredBatch.of([rollout], shards, penalty)
    found.old_logprobs, found.ref_logprobs = torch.from_numpy(LOG_RATIOS), torch.zeros(TOKENS)
    return found


def settings(advantage: str, **keys) -> PolicyStepConfig:
    critic = CriticConfig() if advantage == "gae" else None
    return PolicyStepConfig(advantage=advantage, critic=critic, kl_coef=BETA, **keys)


def penalised() -> np.ndarray:
    """[B] scores minus beta times the summed log-ratio."""
    ends = np.cumsum(LENGTHS)
    return SCORES - BETA * np.array([part.sum() for part in np.split(LOG_RATIOS, ends[:-1])])


def whitened(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


@pytest.mark.parametrize(("advantage", "expected"), [("rloo", 1.0), ("grpo_no_std", 0.5), ("grpo", None)])
def test_group_baselines_by_hand(advantage, expected):
    """Two samples a prompt: RLOO is their difference, the mean without std half of it, with std +-1/sqrt(2)."""
    found, returns = batch().advantages(settings(advantage))
    rewards = penalised()
    difference = rewards - rewards[[1, 0, 3, 2]]
    by_hand = np.sign(difference) / np.sqrt(2) if expected is None else expected * difference
    assert returns is None
    np.testing.assert_allclose(found, np.repeat(by_hand, LENGTHS), rtol=1e-4)


def test_reinforce_pp_is_whitened_reward_to_go():
    """Without discount, a token's reward to go is the penalised score less the KL already paid."""
    found, _ = batch().advantages(settings("reinforce_pp"))
    to_go = []
    for score, part in zip(SCORES, np.split(LOG_RATIOS, np.cumsum(LENGTHS)[:-1]), strict=True):
        to_go += [score - BETA * part[t:].sum() for t in range(len(part))]
    np.testing.assert_allclose(found, whitened(np.array(to_go)), rtol=1e-4, atol=1e-6)


def test_gae_with_a_perfect_critic_has_nothing_to_say():
    """Values equal to the rewards to go: every advantage is 0 before whitening, and the returns are the values."""
    scored = batch()
    rewards = scored.token_rewards(BETA).double()
    to_go = torch.cat([part.flip(0).cumsum(0).flip(0) for part in rewards.split(LENGTHS.tolist())])
    scored.values = to_go
    advantages, returns = scored.advantages(settings("gae"))
    assert advantages.abs().max() < 1e-4
    torch.testing.assert_close(returns, to_go.float())


def test_kl_in_the_loss_stays_out_of_the_reward():
    found, _ = batch().advantages(settings("rloo", kl_in="loss"))
    difference = np.array([3.0, -3.0, -2.5, 2.5])
    np.testing.assert_allclose(found, np.repeat(difference, LENGTHS), rtol=1e-5)


def test_dense_rewards_reach_their_tokens_and_sum_to_the_score():
    """Shards in any order; RLOO sees only the sum, reinforce_pp each token's own."""
    rows = [np.full(n, s / n, np.float32) for s, n in zip(SCORES, LENGTHS, strict=True)]
    dense = Ragged.from_list(rows, np.float32)
    scored = batch(dense=dense)
    np.testing.assert_allclose(scored.token_rewards(0.0), np.concatenate(rows), rtol=1e-6)
    for advantage, same in (("rloo", True), ("reinforce_pp", False)):
        ours, _ = scored.advantages(settings(advantage))
        sparse, _ = batch().advantages(settings(advantage))
        assert torch.allclose(ours.double(), sparse.double(), atol=1e-5) == same


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_missing_end_replaces_the_whole_reward(is_dense):
    """T9: only the second sample did not end; its own rewards are gone and the penalty sits on its last token."""
    rows = [np.full(n, s / n, np.float32) for s, n in zip(SCORES, LENGTHS, strict=True)]
    scored = batch(dense=Ragged.from_list(rows, np.float32) if is_dense else None, penalty=-7.0)
    of_second = scored.token_rewards(0.0)[2:5]
    np.testing.assert_allclose(of_second, [0, 0, -7])
    assert scored.scores.tolist() == [1.0, -7.0, 0.5, 3.0]


def test_unscored_samples_are_counted():
    scored = batch()
    scored.scores[2] = torch.nan
    assert scored.num_unscored == 1


def test_metrics_tell_what_samples_look_like():
    """The first prompt's two answers are the same; no answer has a 4-gram, so nothing is told of repeating ones."""
    same = sequences_of([([5], [50, END]), ([5], [50, END]), ([6], [50, END]), ([6], [70, 71, 72])], prompt_ids=[0, 0, 1, 1])
    rollout = Rollout(same, Ragged(np.zeros(9, np.float32), same.response_lengths), 0)
    found = values(ScoredBatch.of([rollout], [Scores(np.arange(4), SCORES, 0)], None).metrics())
    assert found["length_mean"] == 2.25 and found["ended_frac"] == 0.75 and found["reward_mean"] == 0.625
    assert found["identical_frac"] == 0.5
    assert "repeated_ngram_frac" not in found
    loops = sequences_of([([5], [7, 8, 7, 8, 7, 8, 7, END])])
    rollout = Rollout(loops, Ragged(np.zeros(8, np.float32), loops.response_lengths), 0)
    found = values(ScoredBatch.of([rollout], [Scores(np.arange(1), SCORES[:1], 0)], None).metrics())
    assert found["repeated_ngram_frac"] == 0.4  # 7878 and 8787 come twice among five
    assert "identical_frac" not in found
