"""The policy engine: what an update does to the probabilities, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayalign.config.improve import ImportanceConfig
from rayalign.config.model import LoraConfig
from rayalign.engines.scored_batch import minibatches
from rayalign.errors import RayalignError, StaleSamples
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Rollout, Scores
from tests.engines.gradients import DESCENT, DESCENT_RATE, distance
from tests.engines.toy import (
    ARM_SCORES,
    ARMS,
    GROUP_SCORES,
    GROUPS,
    policy_engine,
    rollout_of,
    scores_of,
    weights_of,
)
from tests.models.tiny import learner_config, load_plain, plain_logprobs


@pytest.mark.parametrize("loss", ["policy_gradient", "clipped"])
def test_what_scores_well_becomes_likely(tied, loss):
    """Two arms: ten updates move probability from the bad one to the good one; the version counts them."""
    engine = policy_engine(tied, loss=loss)
    good, bad = ARMS.take(np.flatnonzero(ARM_SCORES == 1)), ARMS.take(np.flatnonzero(ARM_SCORES == 0))

    def nats(rows):
        return engine.negative_log_likelihood(rows)["nll_sequence"].value()

    before = nats(good), nats(bad)
    for version in range(10):
        assert engine.version == version
        engine.improve([rollout_of(tied, ARMS, version=version)], scores_of(ARM_SCORES))
    assert nats(good) < before[0] - 1
    assert nats(bad) > before[1] + 1


def test_the_update_is_the_policy_gradient_by_hand(untied):
    """Advantages of leave-one-out within a prompt, times tempered log-probs, times capped importance weights."""
    temperature, offsets = 0.7, np.random.default_rng(0).normal(size=GROUPS.num_response_tokens)
    drawn = rollout_of(untied, GROUPS, temperature=temperature)
    off = Ragged((drawn.sampler_logprobs.values + offsets).astype(np.float32), GROUPS.response_lengths)
    engine = policy_engine(untied, temperature=temperature, optimizer=DESCENT)
    before = weights_of(engine)
    metrics = values(engine.improve([Rollout(GROUPS, off, 0)], scores_of(GROUP_SCORES)))
    moved = {name: (before[name] - after) / DESCENT_RATE for name, after in weights_of(engine).items()}

    model = load_plain(untied).double()
    logprobs = plain_logprobs(model, GROUPS, temperature=temperature)
    weights = np.exp(-offsets).clip(max=2.0)
    total = torch.zeros((), dtype=torch.float64)
    parts = zip(logprobs.split(GROUPS.response_lengths.tolist()), np.split(weights, off.starts[1:]), strict=True)
    for row, (of_tokens, weight) in enumerate(parts):
        others = (GROUPS.prompt_ids == GROUPS.prompt_ids[row]) & (np.arange(10) != row)
        advantage = float(GROUP_SCORES[row]) - float(GROUP_SCORES[others].mean())
        total = total - advantage * (of_tokens * torch.from_numpy(weight)).sum()
    (total / 10).backward()
    assert distance(moved, {name: p.grad for name, p in model.named_parameters()}) < 2e-5
    assert metrics["importance_mean"] == pytest.approx(weights.mean(), rel=1e-4)
    assert metrics["mismatch_mean"] == pytest.approx(np.abs(offsets).mean(), rel=1e-4)


def test_log_probs_are_tempered(untied):
    """At the sampler's temperature nothing is off, every importance weight is 1; at another, much is."""
    engine = policy_engine(untied, temperature=0.5)
    assert engine.mismatch([rollout_of(untied, GROUPS, temperature=0.5)])["mismatch_max"].value() < 1e-4
    assert engine.mismatch([rollout_of(untied, GROUPS, temperature=1.0)])["mismatch_mean"].value() > 0.1
    metrics = values(engine.improve([rollout_of(untied, GROUPS, temperature=0.5)], scores_of(GROUP_SCORES)))
    assert metrics["importance_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["mismatch_max"] < 1e-4


def test_importance_off_gives_no_weight_to_the_mismatch(untied):
    metrics = policy_engine(untied, importance=ImportanceConfig(mode="off")).improve(
        [rollout_of(untied, GROUPS, temperature=0.5)], scores_of(GROUP_SCORES)
    )
    assert metrics["importance_mean"].value() == 1
    assert metrics["mismatch_mean"].value() > 0.1


def test_stale_samples_are_refused(tied):
    """`max_staleness` versions behind is allowed, one more is not, and nothing is updated then."""
    engine = policy_engine(tied, max_staleness=1)
    for version in (0, 0):
        engine.improve([rollout_of(tied, ARMS, version=version)], scores_of(ARM_SCORES))
    before = weights_of(engine)
    fresh, stale = rollout_of(tied, ARMS, version=2), rollout_of(tied, ARMS, version=0)
    with pytest.raises(StaleSamples, match="version 0 reached the update of version 2"):
        engine.improve([fresh, stale], scores_of(np.tile(ARM_SCORES, 2)))
    assert engine.version == 2
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())


def test_samples_without_a_score_stop_the_update(tied):
    """A scorer that lost some rows is an error at once; a lost row never counts as a score of 0."""
    engine = policy_engine(tied)
    before = weights_of(engine)
    with pytest.raises(RayalignError, match="2 of 16 samples have no score"):
        engine.improve([rollout_of(tied, ARMS)], [Scores(np.arange(14), ARM_SCORES[:14], 1)])
    assert engine.version == 0
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())


def test_scores_that_are_not_finite_are_skipped_and_after_a_few_in_a_row_stop(tied):
    """Two such updates change nothing but the version, a good one between forgives them, a third in a row stops."""
    engine = policy_engine(tied)
    before = weights_of(engine)
    bad = scores_of(np.where(np.arange(16) < 2, np.nan, ARM_SCORES))
    for version in range(2):
        metrics = values(engine.improve([rollout_of(tied, ARMS, version=version)], bad))
        assert metrics == {"num_skipped": 1, "num_unscored": 2}
    assert engine.version == 2
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())
    engine.improve([rollout_of(tied, ARMS, version=2)], scores_of(ARM_SCORES))
    kept = weights_of(engine)
    assert not all(torch.equal(before[name], after) for name, after in kept.items())
    for version in (3, 4):
        engine.improve([rollout_of(tied, ARMS, version=version)], bad)
    with pytest.raises(RayalignError, match="2 of 16 samples have no finite score, for the 3. update in a row"):
        engine.improve([rollout_of(tied, ARMS, version=5)], bad)
    assert all(torch.equal(kept[name], after) for name, after in weights_of(engine).items())


@pytest.mark.parametrize("loss", ["policy_gradient", "clipped"])
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_equal_scores_teach_nothing(tied, zero_stage, loss):
    """A prompt whose samples all score the same has no advantage, whatever the score: no weight moves, nothing is NaN."""
    passes = {"epochs": 2, "minibatches": 2} if loss == "clipped" else {}
    engine = policy_engine(tied, loss=loss, learner=learner_config(zero_stage=zero_stage), **passes)
    before = weights_of(engine)
    per_prompt = np.array([-3.7, 0.1, 1e4], dtype=np.float32)[GROUPS.prompt_ids]
    for version, scores in enumerate((np.zeros(10, dtype=np.float32), per_prompt)):
        metrics = values(engine.improve([rollout_of(tied, GROUPS, version=version)], scores_of(scores)))
        assert metrics["reward_mean"] == pytest.approx(scores.mean(), rel=1e-6)
        assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert engine.version == 2
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())


def test_how_a_batch_comes_in_does_not_matter(tied):
    """One rollout or three, one shard of scores or interleaved ones: the same update."""
    whole = policy_engine(tied, kl_coef=0.1)
    metrics = whole.improve([rollout_of(tied, GROUPS)], scores_of(GROUP_SCORES))
    parts = policy_engine(tied, kl_coef=0.1)
    rollouts = [rollout_of(tied, GROUPS.take(rows)) for rows in np.split(np.arange(10), [1, 7])]
    shards = [Scores(rows, GROUP_SCORES[rows], 1) for rows in (np.array([8, 1, 3]), np.array([9, 0, 7, 2, 4, 5, 6]))]
    same = parts.improve(rollouts, shards)
    expected = weights_of(whole)
    assert distance(weights_of(parts), expected) < 1e-7
    assert values(same)["reward_mean"] == pytest.approx(values(metrics)["reward_mean"])


def test_the_score_of_a_missing_end_replaces_what_was_scored(tied):
    """No random response ends by itself here, so all have the same reward, and no advantage."""
    engine = policy_engine(tied, missing_end_score=-1.0)
    before = weights_of(engine)
    metrics = engine.improve([rollout_of(tied, GROUPS)], scores_of(GROUP_SCORES))
    assert metrics["reward_mean"].value() == -1
    assert metrics["ended_frac"].value() == 0
    assert all(torch.equal(before[name], after) for name, after in weights_of(engine).items())


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_kl_to_the_reference(tied, zero_stage, lora):
    """T9: exactly where it started the KL is 0; it grows; a moved reference is 0 again. LoRA's is its base."""
    engine = policy_engine(tied, lora=lora, learner=learner_config(zero_stage=zero_stage), kl_coef=0.1)

    def update():
        rollout = rollout_of(tied, ARMS, version=engine.version)
        return engine.improve([rollout], scores_of(ARM_SCORES))["kl_policy_to_ref"].value()

    assert update() == 0
    kls = [update() for _ in range(3)]
    assert all(abs(kl) > 1e-3 for kl in kls)
    if lora:
        with pytest.raises(RayalignError, match="reference is its base model"):
            engine.move_reference()
    else:
        engine.move_reference()
        assert update() == pytest.approx(0, abs=1e-6)
        assert abs(update()) > 1e-3


def test_the_kl_is_paid_for(tied):
    """With equal scores only the penalty is left: what became likelier than under the reference becomes less so."""
    engine = policy_engine(tied, kl_coef=1.0)
    for version in range(4):
        engine.improve([rollout_of(tied, ARMS, version=version)], scores_of(ARM_SCORES))
    drifted = rollout_of(tied, ARMS, version=4)
    first = engine.improve([drifted], scores_of(np.zeros(16, dtype=np.float32)))["kl_policy_to_ref"].value()
    good = ARMS.take(np.flatnonzero(ARM_SCORES == 1))
    before = engine.negative_log_likelihood(good)["nll_sequence"].value()
    for version in range(5, 9):
        engine.improve([rollout_of(tied, ARMS, version=version)], scores_of(np.zeros(16, dtype=np.float32)))
    assert abs(first) > 1e-3
    assert engine.negative_log_likelihood(good)["nll_sequence"].value() > before


def test_minibatches_keep_groups_whole():
    """Every row once an epoch; a prompt's rows, wherever they stand, are in one part."""
    ids = np.array([7, 3, 7, 9, 3, 3, 2, 9, 2])
    random = np.random.default_rng(0)
    parts = minibatches(ids, 3, random)
    assert len(parts) == 3
    assert sorted(np.concatenate(parts).tolist()) == list(range(9))
    groups = [set(ids[part].tolist()) for part in parts]
    assert sum(len(group) for group in groups) == 4
    assert sorted(len(part) for part in minibatches(ids, 10, random)) == [2, 2, 2, 3]
    passes = [[part.tolist() for part in minibatches(ids, 4, random)] for _ in range(5)]
    assert any(one != passes[0] for one in passes)  # another order in every pass


def test_epochs_and_minibatches_are_optimiser_steps(tied):
    """Two passes of two parts: four steps, one version; the second pass is off-policy and is clipped."""
    engine = policy_engine(tied, epochs=2, minibatches=2, clip_low=1e-4, clip_high=1e-4)
    metrics = engine.improve([rollout_of(tied, ARMS)], scores_of(ARM_SCORES))
    assert (engine.version, engine._learner.steps_done) == (1, 4)
    assert 0.2 < metrics["clipped_frac"].value() <= 0.75


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_lora_moves_adapters_only(untied, zero_stage, tmp_path):
    """What goes to samplers and to disk is the adapted model; the base below it keeps every bit."""
    learner = learner_config(zero_stage=zero_stage)
    engine = policy_engine(untied, lora=LoraConfig(rank=4, alpha=8), learner=learner, kl_coef=0.1)
    start = weights_of(engine)
    for version in range(2):
        engine.improve([rollout_of(untied, GROUPS, version=version)], scores_of(GROUP_SCORES))
    engine.save(str(tmp_path))
    saved, now = load_plain(str(tmp_path)), weights_of(engine)
    changed = {name for name in now if not torch.equal(now[name], start[name])}
    assert changed and all("_proj" in name for name in changed)
    assert all(torch.equal(p.double(), now[name]) for name, p in saved.named_parameters())
    drawn = rollout_of(str(tmp_path), GROUPS)
    assert engine.mismatch([drawn])["mismatch_max"].value() < 1e-3
    if zero_stage != 3:
        base = dict(load_plain(untied).named_parameters())
        held = engine._policy.lm.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
        assert torch.equal(held, base["model.layers.0.self_attn.q_proj.weight"])
