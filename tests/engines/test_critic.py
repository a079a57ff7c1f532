"""The critic: where its values come from, what they learn, and that PPO with it moves probability to the good arm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayalign.config.improve import CriticConfig
from rayalign.config.model import OptimizerConfig
from rayalign.engines.batching import concatenated_rows
from rayalign.engines.critic import Critic
from rayalign.errors import RayalignError
from rayalign.models.batch import token_batch
from rayalign.models.value import ValueModel
from rayalign.telemetry.metrics import values
from rayalign.types import Scores
from tests.engines.toy import (
    ARM_SCORES,
    ARMS,
    demonstrations,
    policy_engine,
    reward_engine,
    rollout_of,
    samples,
)
from tests.models.tiny import learner_config, model_config, random_sequences

FAST = CriticConfig(value_clip=10.0, optimizer=OptimizerConfig(learning_rate=3e-3, eps=1e-3))


def test_values_begin_as_the_rewards_of_prefixes(tied, untied, tmp_path):
    """Paper 1: from the reward's folder, head and normaliser included. From a causal LM they begin at zero."""
    engine = reward_engine(untied, demonstrations(), pooling="last")
    engine.update([samples()])
    engine.save(str(tmp_path / "reward"))
    model = ValueModel.load(str(tmp_path / "reward"), model_config(), learner_config())
    whole = random_sequences(3, seed=3)
    found = model(token_batch(whole, np.arange(3), packing=False)).detach().numpy()
    # The value before token t is the reward of the response cut behind token t - 1.
    starts = np.concatenate([[0], np.cumsum(whole.response_lengths)])
    for row in range(3):
        for cut in range(1, int(whole.response_lengths[row])):
            prefix = _cut(whole, row, cut)
            assert found[starts[row] + cut] == pytest.approx(float(engine.score_sequences(prefix).values[0]), abs=1e-4)
    fresh = ValueModel.load(tied, model_config(), learner_config())
    assert fresh(token_batch(whole, np.arange(3), packing=False)).abs().max() == 0


def test_values_learn_the_returns(tied):
    """Fifty steps on returns that depend on the arm: the error falls to a small share of what it was."""
    critic = Critic(tied, FAST, model_config(), learner_config(), total_steps=50, device="cpu")
    returns = torch.from_numpy(np.repeat(ARM_SCORES, ARMS.response_lengths)).float()
    errors = []
    for _ in range(50):
        old = torch.from_numpy(_flat(critic, ARMS))
        errors.append(values(critic.step(ARMS, np.arange(len(ARMS)), old, returns))["critic/error_mean"])
    assert errors[0] == pytest.approx(0.5, abs=1e-6)  # values begin at zero, returns are 0 and 1
    # The first token's value cannot know the arm: its best is 1/2. The second's can.
    assert errors[-1] < 0.3


def test_ppo_with_a_critic_follows_the_reward(tied):
    """One sample a prompt would do: the baseline is the critic's. Good arms become likelier, bad ones less."""
    engine = policy_engine(tied, advantage="gae", critic=FAST, samples_per_prompt=1, epochs=2)
    with pytest.raises(RayalignError, match="no critic yet"):
        engine.improve([rollout_of(tied, ARMS)], [Scores(np.arange(16), ARM_SCORES, 0)])
    engine.start_critic(tied)
    good, bad = (ARMS.take(np.flatnonzero(ARM_SCORES == arm)) for arm in (1, 0))

    def nats(rows):
        return engine.negative_log_likelihood(rows)["nll_sequence"].value()

    before = nats(good), nats(bad)
    for version in range(8):
        found = values(engine.improve([rollout_of(tied, ARMS, version=version)], [Scores(np.arange(16), ARM_SCORES, 0)]))
        assert found["critic/grad_norm"] > 0
    assert nats(good) < before[0] - 1 and nats(bad) > before[1] + 1


def test_a_policy_without_a_critic_starts_none(tied):
    with pytest.raises(RayalignError, match="set improve.critic"):
        policy_engine(tied).start_critic(tied)


def _flat(critic, sequences):
    shares = critic.values(sequences)
    rows, _ = concatenated_rows([(rows, torch.zeros(len(rows))) for rows, _ in shares])
    parts = {}
    for rows, found in shares:
        lengths = sequences.response_lengths[rows]
        parts |= dict(zip(rows.tolist(), found.split(lengths.tolist()), strict=True))
    return torch.cat([parts[row] for row in range(len(sequences))]).numpy()


def _cut(sequences, row, length):
    from tests.models.tiny import sequences_of

    prompt = next(sequences.take(np.array([row])).prompts())
    response = next(sequences.take(np.array([row])).responses())[:length]
    return sequences_of([(prompt, response)])
