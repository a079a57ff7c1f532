"""A number that is not finite, put into each place it can come from: no weight moves on it, and it is told after a few."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rayalign.config.improve import CriticConfig, ImportanceConfig
from rayalign.config.model import OptimizerConfig
from rayalign.engines.policy import PolicyEngine
from rayalign.errors import Diverged
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Rollout
from tests.engines.toy import (
    GROUP_SCORES,
    GROUPS,
    demonstrations,
    implicit_engine,
    policy_engine,
    reward_engine,
    rollout_of,
    samples,
    scores_of,
    weights_of,
)
from tests.models.tiny import learner_config

BAD = [math.nan, math.inf, -math.inf]


def spoiled(rollout: Rollout, number: float, *, version: int) -> Rollout:
    """One token of the third response has this log-prob."""
    logprobs = rollout.sampler_logprobs.values.copy()
    logprobs[rollout.sampler_logprobs.starts[2]] = number
    return Rollout(rollout.sequences, Ragged(logprobs, rollout.sampler_logprobs.lengths), version)


def spoil(module: torch.nn.Module) -> Callable[[], None]:
    """Makes a weight of the last norm NaN; gives what mends it."""
    last = [p for name, p in module.named_parameters() if name.endswith("norm.weight")][-1]
    held = getattr(last, "ds_tensor", last).data  # under ZeRO-3 its shard
    before = held.clone()
    held[3] = math.nan

    def mend() -> None:
        held.copy_(before)

    return mend


def check_skipped(engine: PolicyEngine, rollouts: list[Rollout], counts: dict[str, float], told: str) -> None:
    """Three updates: two skipped and counted, the third raises; the weights stay."""
    before = weights_of(engine)
    for rollout in rollouts[:2]:
        assert values(engine.improve([rollout], scores_of(GROUP_SCORES))) == {"num_skipped": 1, **counts}
    with pytest.raises(Diverged, match=told):
        engine.improve([rollouts[2]], scores_of(GROUP_SCORES))
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())


@pytest.mark.parametrize("mode", ["truncate", "mask", "off"])
@pytest.mark.parametrize("number", BAD)
def test_log_probs_of_the_sampler(tied, mode, number):
    """At -inf the importance weight would be inf, cut to the cap, and stepped on; at +inf it would be 0."""
    engine = policy_engine(tied, importance=ImportanceConfig(mode=mode))
    rollouts = [spoiled(rollout_of(tied, GROUPS), number, version=version) for version in range(3)]
    told = "1 of 10 samples have log-probs of the sampler that are not finite, for the 3. update in a row"
    check_skipped(engine, rollouts, {"num_not_finite_sampler_logprobs": 1}, told)


def test_a_good_batch_between_is_learned_from_and_forgives(tied):
    engine = policy_engine(tied)
    good = rollout_of(tied, GROUPS)
    for version in range(6):
        is_bad = version % 3 != 2
        fresh = Rollout(good.sequences, good.sampler_logprobs, version)
        rollout = spoiled(good, math.nan, version=version) if is_bad else fresh
        metrics = engine.improve([rollout], scores_of(GROUP_SCORES))
        assert ("num_skipped" in metrics) == is_bad


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_log_probs_of_the_reference(tied, kl_in, zero_stage):
    engine = policy_engine(tied, kl_coef=0.1, kl_in=kl_in, learner=learner_config(zero_stage=zero_stage))
    spoil(engine._reference)
    rollouts = [rollout_of(tied, GROUPS, version=version) for version in range(3)]
    told = "10 of 10 samples have log-probs of the reference that are not finite.* Look at the model"
    check_skipped(engine, rollouts, {"num_not_finite_ref_logprobs": 10}, told)


@pytest.mark.parametrize("passes", [1, 2])
def test_log_probs_of_the_policy(tied, passes):
    """With several passes they are taken first; with one the loss has them, and the learner sees to it."""
    engine = policy_engine(tied, epochs=passes)
    mend = spoil(engine._policy)
    counts = {"num_not_finite_policy_logprobs": 10.0} if passes > 1 else {}
    for version in range(2):
        metrics = values(engine.improve([rollout_of(tied, GROUPS, version=version)], scores_of(GROUP_SCORES)))
        assert metrics["num_skipped"] == 1 and counts.items() <= metrics.items()
    with pytest.raises(Diverged):
        engine.improve([rollout_of(tied, GROUPS, version=2)], scores_of(GROUP_SCORES))
    mend()
    fresh = weights_of(policy_engine(tied))
    assert all(torch.equal(fresh[name], after) for name, after in weights_of(engine).items())


def test_values_of_the_critic(tied):
    """Neither the policy nor the critic moves."""
    fast = CriticConfig(optimizer=OptimizerConfig(learning_rate=3e-3))
    engine = policy_engine(tied, advantage="gae", critic=fast)
    engine.start_critic(tied)
    critic = engine._critic
    assert critic is not None
    mend = spoil(critic._model)
    before = [p.detach().clone() for p in critic._model.parameters()]
    rollouts = [rollout_of(tied, GROUPS, version=version) for version in range(3)]
    told = "values of the critic that are not finite.*improve.critic.optimizer"
    check_skipped(engine, rollouts, {"num_not_finite_values": 10}, told)
    after = list(critic._model.parameters())
    assert all(torch.equal(a, b.detach()) or a.isnan().any() for a, b in zip(before, after, strict=True))
    mend()
    engine._skipped_in_a_row = 0
    assert "critic/loss" in engine.improve([rollout_of(tied, GROUPS, version=2)], scores_of(GROUP_SCORES))


@pytest.mark.parametrize("loss", ["log_sigmoid", "hinge", "gsil", "dft"])
def test_the_reference_of_an_implicit_reward(untied, loss):
    """It is taken when a round begins: nothing is learned in that round, and the message says of what."""
    engine = implicit_engine(untied, demonstrations={"loss": loss})
    mend = spoil(engine._policy)
    with pytest.raises(Diverged, match="12 of 12 responses have no finite log-prob under the reference"):
        engine.begin_round(0, np.arange(6), [samples(6)])
    mend()
    fresh = weights_of(implicit_engine(untied))
    assert all(torch.equal(fresh[name], after) for name, after in weights_of(engine).items())


def test_estimates_of_dft_are_not_kept_from_a_skipped_step(untied):
    """An infinite estimate in a moving average would stay there, and silence its group for ever."""
    engine = implicit_engine(untied, demonstrations={"loss": "dft"}, epochs=4)
    engine.begin_round(0, np.arange(6), [samples(6)])
    engine.fit_step([])
    demo_loss, groups = engine._demo_loss, engine._demos
    assert demo_loss is not None and groups is not None
    known = demo_loss.averages.copy()
    assert np.isfinite(known).all()
    before, ref = weights_of(engine), groups.ref.copy()
    groups.ref[3] = -np.inf  # of a sample: its estimate is infinite
    assert values(engine.fit_step([]))["num_skipped"] == 1
    np.testing.assert_array_equal(demo_loss.averages, known)
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())
    groups.ref[:] = ref
    assert "num_skipped" not in engine.fit_step([])
    assert np.isfinite(demo_loss.averages).all() and (demo_loss.averages != known).all()


def test_the_rewards_normaliser_overflows_at_no_finite_score(untied, monkeypatch):
    """Squares of scores of 1e30 are no float32s: an infinite deviation would make every score 0."""
    engine = reward_engine(untied, demonstrations())
    raw = np.array([1e30, -1e30, 3e30, 2e30], dtype=np.float32)
    monkeypatch.setattr(engine, "_raw", lambda sequences: (np.arange(4), raw))
    found = values(engine._fit_normaliser(samples().sequences))
    assert found["score_std"] == pytest.approx(np.std([1e30, -1e30, 3e30, 2e30]), rel=1e-6)


@pytest.mark.parametrize("number", BAD)
def test_a_loss_of_the_reward_moves_no_weight(untied, number):
    engine = reward_engine(untied, demonstrations(), steps=1)
    engine._loss = lambda better, worse: (better - worse).sum() * number
    before = [p.detach().clone() for p in engine._reward.parameters()]
    found = values(engine.update([samples()]))
    assert found["num_skipped"] == 1 and math.isfinite(found["score_std"])
    assert all(torch.equal(a, b) for a, b in zip(before, engine._reward.parameters(), strict=True))
