"""The implicit engine: losses by hand, references that move or stay, slices, replay, and what each term does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayalign.engines.implicit import ImplicitEngine
from rayalign.errors import StaleSamples
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Rollout, Sequences
from tests.engines.gradients import DESCENT, DESCENT_RATE, distance
from tests.engines.toy import demonstrations, implicit_engine, samples, weights_of
from tests.models.tiny import learner_config, load_plain, plain_logprobs

DEMOS = demonstrations(6)
AGENT = samples(6)


def engine_of(folder: str, *, micro: int = 64, **keys: Any) -> ImplicitEngine:
    """`toy.implicit_engine`, cut into micro-batches of so many tokens."""
    return implicit_engine(folder, learner=learner_config(micro_batch_tokens=micro), **keys)


def sums(folder: str, sequences: Sequences) -> torch.Tensor:
    """[B] log-probs of responses, by transformers alone."""
    with torch.no_grad():
        flat = plain_logprobs(load_plain(folder).double(), sequences)
    return torch.stack([part.sum() for part in flat.split(sequences.response_lengths.tolist())])


def nats(engine: ImplicitEngine, sequences: Sequences) -> float:
    return engine.negative_log_likelihood(sequences)["nll_sequence"].value()


@pytest.mark.parametrize(
    ("loss", "expected"), [("log_sigmoid", math.log(2)), ("hinge", 1.0), ("linear", 0.0), ("gsil", 2 * math.log(2))]
)
def test_t12_at_the_reference_the_loss_is_known(untied, loss, expected):
    """Whatever the models say: no side is ahead of the other."""
    engine = engine_of(untied, demonstrations={"loss": loss})
    assert engine.begin_round(0, np.arange(6), [AGENT]) == 1
    found = values(engine.fit_step([]))
    assert found["loss"] == pytest.approx(expected, abs=1e-6)
    assert found["margin_demo_minus_agent"] == pytest.approx(0, abs=1e-6)
    assert engine.version == 1


@pytest.mark.parametrize("micro", [16, 10_000])
def test_the_first_step_is_half_beta_times_the_difference_of_likelihoods(untied, micro):
    """T12: the gradient is -(beta/2)(grad log pi(demo) - grad log pi(agent)), however the batch is cut."""
    engine = engine_of(untied, optimizer=DESCENT, micro=micro)
    before = weights_of(engine)
    engine.begin_round(0, np.arange(6), [AGENT])
    engine.fit_step([])
    moved = {name: (before[name] - after) / DESCENT_RATE for name, after in weights_of(engine).items()}
    model = load_plain(untied).double()
    by_hand = plain_logprobs(model, DEMOS).sum() - plain_logprobs(model, AGENT.sequences).sum()
    (-0.5 / 2 * by_hand / 6).backward()
    assert distance(moved, {name: p.grad for name, p in model.named_parameters()}) < 2e-4


@pytest.mark.parametrize("loss", ["log_sigmoid", "hinge", "gsil", "dft"])
def test_each_loss_parts_demonstrations_from_samples(untied, loss):
    engine = engine_of(untied, epochs=12, demonstrations={"loss": loss, "num_per_prompt": 1})
    before = nats(engine, DEMOS) - nats(engine, AGENT.sequences)
    for _ in range(engine.begin_round(0, np.arange(6), [AGENT])):
        engine.fit_step([])
    assert nats(engine, DEMOS) - nats(engine, AGENT.sequences) < before - 1


def test_likelihood_alone_needs_no_samples_and_is_fine_tuning(untied):
    engine = engine_of(untied, optimizer=DESCENT, demonstrations={"loss": "likelihood"})
    before = weights_of(engine)
    assert engine.begin_round(0, np.arange(6), []) == 1
    engine.fit_step([])
    moved = {name: (before[name] - after) / DESCENT_RATE for name, after in weights_of(engine).items()}
    model = load_plain(untied).double()
    (-plain_logprobs(model, DEMOS).sum() / 6).backward()
    assert distance(moved, {name: p.grad for name, p in model.named_parameters()}) < 2e-4


def test_preferences_alone_are_dpo(untied):
    """Log 2 at the start; then the chosen side gains on the rejected one. No demonstrations, no samples."""
    pairs = (DEMOS, AGENT.sequences)
    engine = engine_of(untied, pairs=pairs, demonstrations=None, preferences={"loss": "dpo"}, epochs=10)
    steps = engine.begin_round(0, np.arange(0), [])
    found = [values(engine.fit_step([])) for _ in range(steps)]
    assert found[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1]["preference_pair_accuracy"] == 1 and found[-1]["margin_chosen_minus_rejected"] > 0.1


def test_t15_the_reference_of_a_round_is_the_policy_that_drew_its_samples(untied, tmp_path):
    """After a round that changed the policy, the next one's reference is what was saved, not the first model."""
    engine = engine_of(untied, rounds=2, epochs=4)
    for _ in range(engine.begin_round(0, np.arange(6), [AGENT])):
        engine.fit_step([])
    engine.save(str(tmp_path / "after"))
    engine.begin_round(1, np.arange(6), [AGENT])
    rows = engine._demos.sequences
    wanted = sums(str(tmp_path / "after"), rows)
    np.testing.assert_allclose(engine._demos.ref, wanted.numpy(), atol=1e-3)
    assert np.abs(engine._demos.ref - sums(untied, rows).numpy()).max() > 0.5
    assert values(engine.fit_step([]))["loss"] == pytest.approx(math.log(2), abs=1e-5)  # at its reference again


def test_a_fixed_reference_stays_the_first_model(untied):
    engine = engine_of(untied, rounds=2, epochs=4, reference="start")
    for _ in range(engine.begin_round(0, np.arange(6), [AGENT])):
        engine.fit_step([])
    engine.begin_round(1, np.arange(6), [AGENT])
    wanted = sums(untied, engine._demos.sequences).numpy()
    np.testing.assert_allclose(engine._demos.ref, wanted, atol=1e-3)
    assert values(engine.fit_step([]))["loss"] < math.log(2) - 0.05


def test_slices_train_on_their_own_rows_and_spin_also_on_the_round_before(untied):
    """A round of two demonstrations has two pairs; with keep_previous the next one has four."""
    engine = engine_of(untied, rounds=2, keep_previous=True)
    engine.begin_round(0, np.array([0, 1]), [AGENT])
    assert len(engine._demos) == 2
    engine.begin_round(1, np.array([2, 3]), [AGENT])
    demos = engine._demos.sequences.take(np.arange(0, 8, 2))
    assert sorted(demos.prompt_ids.tolist()) == [0, 1, 2, 3]
    engine.begin_round(2, np.array([4, 5]), [AGENT])
    assert sorted(engine._demos.sequences.prompt_ids[::2].tolist()) == [2, 3, 4, 5]


def test_on_policy_steps_take_fresh_samples_only(untied):
    """K = 1: the samples are those of this very version; the reference is the policy as the stage began."""
    engine = engine_of(untied, on_policy=True, batch_size=3, demonstrations={"loss": "linear"})
    assert engine.begin_round(0, np.arange(6), []) == 2
    engine.fit_step([samples(3)])
    with pytest.raises(StaleSamples, match="policy v0 came for the step of v1"):
        engine.fit_step([samples(3)])
    engine.fit_step([samples(3, first=3, version=1)])


def test_an_objective_of_ones_own_takes_the_place_of_the_built_in(untied):
    """It is given beta times the log-ratios of both sides; a copy of the built-in one gives its numbers."""
    seen = []

    def own(demo, agent):
        seen.append(len(demo))
        return -torch.nn.functional.logsigmoid(demo - agent).sum()

    ours, theirs = engine_of(untied), engine_of(untied, loss=own)
    for engine in (ours, theirs):
        engine.begin_round(0, np.arange(6), [AGENT])
        engine.fit_step([])
    assert sum(seen) == 6
    assert distance(weights_of(theirs), weights_of(ours)) < 1e-6


def test_demonstrations_and_preferences_are_weighted_by_counts_or_means(untied):
    """T38: by counts each row counts alike; by means each source does. Six demonstrations, two preferences."""
    pairs = (DEMOS.take(np.arange(2)), AGENT.sequences.take(np.arange(2)))
    terms = {"demonstrations": {"loss": "likelihood"}, "preferences": {"loss": "dpo"}}
    factors = {}
    for weighting in ("counts", "means"):
        engine = engine_of(untied, pairs=pairs, weighting=weighting, **terms)
        factors[weighting] = engine._factors()
    assert factors == {"counts": (0.75, 0.25), "means": (1.0, 1.0)}


@pytest.mark.parametrize(("weighting", "factors"), [("counts", (3 * 6 / 8, 2 * 2 / 8)), ("means", (3.0, 2.0))])
def test_one_step_follows_both_gradients_by_their_weights(untied, weighting, factors):
    """5.3 by hand at the reference: w1 fine-tuning on means over rows, w2 DPO with its beta (T38, T41)."""
    pairs = (AGENT.sequences.take(np.arange(2)), DEMOS.take(np.arange(2)))
    terms = {"demonstrations": {"loss": "likelihood", "weight": 3.0}, "preferences": {"weight": 2.0, "beta": 0.4}}
    engine = engine_of(untied, pairs=pairs, weighting=weighting, optimizer=DESCENT, **terms)
    before = weights_of(engine)
    engine.begin_round(0, np.arange(6), [])
    engine.fit_step([])
    moved = {name: (before[name] - after) / DESCENT_RATE for name, after in weights_of(engine).items()}
    model = load_plain(untied).double()
    chosen, rejected = (plain_logprobs(model, side).sum() for side in pairs)
    loss = factors[0] * -plain_logprobs(model, DEMOS).sum() / 6 - factors[1] * 0.4 / 2 * (chosen - rejected) / 2
    loss.backward()
    assert distance(moved, {name: p.grad for name, p in model.named_parameters()}) < 2e-4


def test_dft_keeps_an_average_for_each_group(untied):
    """The first estimate is the average itself; from then on old and new are mixed, and only groups that were seen."""
    two = Rollout(
        Sequences.concatenate([AGENT.sequences, samples(6, seed=77).sequences]),
        Ragged.concatenate([AGENT.sampler_logprobs, samples(6, seed=77).sampler_logprobs]),
        0,
    )
    engine = engine_of(untied, batch_size=2, demonstrations={"loss": "dft", "num_per_prompt": 2})
    assert engine.begin_round(0, np.arange(6), [two]) == 3
    engine.fit_step([])
    known = engine._demo_loss.averages
    assert np.isfinite(known).sum() == 2
    # At the reference every importance ratio is exp(s/tau - log P-) = 1, so the log-average is 0.
    np.testing.assert_allclose(known[np.isfinite(known)], 0, atol=1e-4)
